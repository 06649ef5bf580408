"""Finite automata with probabilities: draw strings, accept them, say what comes next and how uncertain it is.

An `Automaton` is its list of edges. Grammars (Reber), hidden branches (garden paths) and state machines written in
digits (`etude.data.state_machines`) differ in that list only.

Source: Rabin 1963, Information and Control 6 (probabilistic automata).
"""

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import connected_components
from torch import Tensor

PAD = -1
ROUNDS = 200  # batches that `sample` throws away before it gives up on a range of lengths


class Strings(NamedTuple):
    """Strings and the states behind them."""

    symbols: Tensor
    """(n, T) int64, -1 behind the end."""
    states: Tensor
    """(n, T + 1) int64 state numbers, the start first, -1 behind the end."""
    lengths: Tensor
    """(n,) symbols."""
    complete: Tensor
    """(n,) bool: the string has ended, it was not cut off."""


class Automaton:
    """A finite automaton whose edges have probabilities; several edges of a state may carry one symbol.

    Parameters
    ----------
    edges
        (source, symbol, target) or (source, symbol, target, weight). States are any hashable names, symbols single
        characters. Weights are relative to the other edges of the state; 1 where none is given.
    start
        A state, or a mapping from states to weights.
    accept
        Where a string may end. A state without edges ends every string there. In a list, ending is one more choice
        with weight 1; a mapping gives the probability of ending.
    alphabet
        Symbols in the order of their numbers. None: as they come in `edges`.

    Raises
    ------
    ValueError
        For no edges, unknown states or symbols, weights that are not positive, probabilities outside [0, 1].

    Examples
    --------
    >>> machine = Automaton([("a", "x", "a"), ("a", "y", "b")], "a", ["b"])
    >>> machine.accepts(["xxy", "xx", "yx"]).tolist()
    [True, False, False]
    """

    def __init__(
        self,
        edges: Iterable[tuple[Any, ...]],
        start: Hashable | Mapping[Any, float],
        accept: Iterable[Hashable] | Mapping[Any, float] = (),
        *,
        alphabet: Sequence[str] | None = None,
    ) -> None:
        rows = [_edge(e) for e in edges]
        if not rows:
            raise ValueError("an automaton needs at least one edge")
        names = dict.fromkeys(name for source, _, target, _ in rows for name in (source, target))
        self.states: tuple[Hashable, ...] = tuple(names)
        self._number = {name: i for i, name in enumerate(self.states)}
        used = tuple(dict.fromkeys(symbol for _, symbol, _, _ in rows))
        self.alphabet: tuple[str, ...] = used if alphabet is None else tuple(alphabet)
        self._symbol = {symbol: i for i, symbol in enumerate(self.alphabet)}
        if unknown := [s for s in used if s not in self._symbol]:
            raise ValueError(f"symbols {unknown} of the edges are not in the alphabet {list(self.alphabet)}")
        self.source = torch.tensor([self._number[r[0]] for r in rows])
        self.symbol = torch.tensor([self._symbol[r[1]] for r in rows])
        self.target = torch.tensor([self._number[r[2]] for r in rows])
        weight = torch.tensor([r[3] for r in rows], dtype=torch.float64)
        total = torch.zeros(len(self.states), dtype=torch.float64).index_add_(0, self.source, weight)
        self.accepting = torch.zeros(len(self.states), dtype=torch.bool)
        self.stop = torch.where(total > 0, 0.0, 1.0).double()
        for name in accept:
            i = self.number(name)
            self.accepting[i] = True
            if isinstance(accept, Mapping):
                if not 0 <= accept[name] <= 1 or (total[i] == 0 and accept[name] < 1):
                    raise ValueError(f"state {name!r} cannot end a string with probability {accept[name]}")
                self.stop[i] = accept[name]
            elif total[i] > 0:
                self.stop[i] = 1 / (1 + total[i])
        self.probability = weight / total[self.source] * (1 - self.stop[self.source])
        starts = start if isinstance(start, Mapping) else {start: 1.0}
        self.start = torch.zeros(len(self.states), dtype=torch.float64)
        for name, share in starts.items():
            if not (share > 0 and math.isfinite(share)):
                raise ValueError(f"start weights must be positive, got {share} for {name!r}")
            self.start[self.number(name)] = share
        self.start /= self.start.sum()
        self._tables()

    def number(self, state: Hashable) -> int:
        """The number of a state by its name."""
        if state not in self._number:
            raise ValueError(f"unknown state {state!r}: the edges name {list(self.states)[:12]}")
        return self._number[state]

    @property
    def deterministic(self) -> bool:
        """The symbols so far tell the state: one start, and no state has a symbol on two edges."""
        pairs = self.source * len(self.alphabet) + self.symbol
        return len(pairs.unique()) == len(pairs) and int((self.start > 0).sum()) == 1

    def _tables(self) -> None:
        """Edges of each state side by side, so that a step of many walks is a few look-ups."""
        order = self.source.argsort(stable=True)
        degree = torch.bincount(self.source, minlength=len(self.states))
        first = degree.cumsum(0) - degree
        place = torch.arange(len(order)) - first[self.source[order]]
        self._out = torch.full((len(self.states), max(1, int(degree.max()))), PAD)
        self._out[self.source[order], place] = order
        p = torch.where(self._out >= 0, self.probability[self._out.clamp_min(0)], 0.0)
        self._upto = p.cumsum(-1)

    # --- drawing -----------------------------------------------------------------------------------------------

    def sample(self, n: int, lengths: int | tuple[int, int] | None, generator: torch.Generator) -> Strings:
        """Draw `n` strings.

        Parameters
        ----------
        lengths
            A number: the first so many symbols. (low, high): whole strings of low to high symbols, others are
            thrown away. None: whole strings.

        Raises
        ------
        ValueError
            If strings never end or (next to) none has such a length.
        """
        if n < 1:
            raise ValueError(f"n must be at least 1, got {n}")
        if isinstance(lengths, int):
            if lengths < 1:
                raise ValueError(f"lengths must be at least 1, got {lengths}")
            return self._walk(n, lengths, generator)
        low, high = (0, 10_000) if lengths is None else lengths
        if not 0 <= low <= high:
            raise ValueError(f"lengths must be 0 <= low <= high, got {lengths}")
        kept: list[Strings] = []
        have = 0
        for _ in range(ROUNDS):
            drawn = self._walk(max(n, 64), high, generator)
            good = drawn.complete & (drawn.lengths >= low)
            kept.append(Strings(*(column[good] for column in drawn)))
            have += int(good.sum())
            if have >= n:
                break
        else:
            raise ValueError(f"{have} of {ROUNDS * max(n, 64)} strings ended after {low} to {high} symbols")
        width = max(k.symbols.shape[1] for k in kept)
        symbols = torch.cat([_widen(k.symbols, width) for k in kept])[:n]
        states = torch.cat([_widen(k.states, width + 1) for k in kept])[:n]
        ends = torch.cat([k.lengths for k in kept])[:n]
        longest = int(ends.max())
        return Strings(symbols[:, :longest], states[:, : longest + 1], ends, torch.ones(n, dtype=torch.bool))

    def _walk(self, n: int, steps: int, generator: torch.Generator) -> Strings:
        u = torch.rand(n, generator=generator, dtype=torch.float64)
        state = torch.bucketize(u, self.start.cumsum(0), right=True).clamp_max(len(self.states) - 1)
        running = torch.ones(n, dtype=torch.bool)
        symbols: list[Tensor] = []
        states = [state]
        for _ in range(steps + 1):  # one draw more than symbols: does the last one end the string?
            u = torch.rand(n, generator=generator, dtype=torch.float64)
            place = (u[:, None] >= self._upto[state]).sum(-1)
            running = running & (u < 1 - self.stop[state])
            if len(symbols) == steps or not bool(running.any()):
                break
            edge = self._out[state, place.clamp_max(self._out.shape[1] - 1)]
            edge = torch.where(edge < 0, self._out[state, 0].clamp_min(0), edge)  # u within rounding of 1
            state = torch.where(running, self.target[edge], state)
            symbols.append(torch.where(running, self.symbol[edge], PAD))
            states.append(torch.where(running, state, PAD))
        x = torch.stack(symbols, 1) if symbols else torch.empty(n, 0, dtype=torch.long)
        return Strings(x, torch.stack(states, 1), (x >= 0).sum(-1), ~running)

    # --- reading -----------------------------------------------------------------------------------------------

    def encode(self, strings: Sequence[str]) -> Tensor:
        """(n, T) symbol numbers, -1 behind the end; characters outside the alphabet are an error."""
        width = max((len(s) for s in strings), default=0)
        out = torch.full((len(strings), width), PAD)
        for i, text in enumerate(strings):
            if foreign := sorted(set(text) - set(self.alphabet)):
                raise ValueError(f"string {i} holds {foreign}, which are not in the alphabet {list(self.alphabet)}")
            out[i, : len(text)] = torch.tensor([self._symbol[c] for c in text], dtype=torch.long)
        return out

    def decode(self, symbols: Tensor) -> list[str]:
        """Strings of symbol numbers (n, T), up to the first -1."""
        return ["".join(self.alphabet[i] for i in row if i >= 0) for row in symbols.tolist()]

    def beliefs(self, strings: Sequence[str] | Tensor) -> Tensor:
        """(n, T + 1, S): probability of each state before the first symbol, after one, after two ...

        All zero behind the end of a string and after a symbol that was impossible.
        """
        return self._filter(strings)[0]

    def log_probs(self, strings: Sequence[str] | Tensor) -> Tensor:
        """(n, T): log-probability of each symbol after those before it; 0 behind the end, -inf if impossible."""
        return self._filter(strings)[1]

    def _filter(self, strings: Sequence[str] | Tensor) -> tuple[Tensor, Tensor]:
        ids = strings if isinstance(strings, Tensor) else self.encode(strings)
        belief = self.start.expand(len(ids), -1)
        beliefs, scores = [belief], []
        for t in range(ids.shape[1]):
            fits = (self.symbol == ids[:, t, None]) * self.probability * belief[:, self.source]
            moved = torch.zeros_like(belief).index_add_(1, self.target, fits)
            mass = moved.sum(-1, keepdim=True)
            belief = torch.where(mass > 0, moved / mass.clamp_min(1e-300), 0.0)
            beliefs.append(belief)
            scores.append(torch.where(ids[:, t] < 0, 0.0, mass[:, 0].log()))
        none = torch.empty(len(ids), 0, dtype=torch.float64)
        return torch.stack(beliefs, 1), torch.stack(scores, 1) if scores else none

    def accepts(self, strings: Sequence[str] | Tensor) -> Tensor:
        """(n,) bool: some path from a start reads the whole string and ends where it may end."""
        ids = strings if isinstance(strings, Tensor) else self._known(strings)
        beliefs = self.beliefs(ids)
        lengths = (ids != PAD).sum(-1)
        last = beliefs[torch.arange(len(ids)), lengths]
        return (last[:, self.accepting] > 0).any(-1)

    def _known(self, strings: Sequence[str]) -> Tensor:
        """Symbol numbers; foreign characters become a number that no edge carries."""
        out = torch.full((len(strings), max((len(s) for s in strings), default=0)), PAD)
        for i, text in enumerate(strings):
            ids = [self._symbol.get(c, len(self.alphabet)) for c in text]
            out[i, : len(text)] = torch.tensor(ids, dtype=torch.long)
        return out

    def next_probs(self, state: Hashable | Tensor) -> Tensor:
        """(V + 1,): probability of each next symbol, last that the string ends; `state` a name or beliefs (..., S)."""
        if isinstance(state, Tensor):
            belief = state.double()
        else:
            belief = torch.nn.functional.one_hot(torch.tensor(self.number(state)), len(self.states)).double()
        mass = belief[..., self.source] * self.probability
        out = torch.zeros(*belief.shape[:-1], len(self.alphabet) + 1, dtype=torch.float64)
        out.index_add_(-1, self.symbol, mass)
        out[..., -1] = belief @ self.stop
        return out

    # --- how uncertain -----------------------------------------------------------------------------------------

    def entropy(self, length: int) -> float:
        """Nats in the first `length` symbols (where a string ends counts too): `length` times a model's floor.

        Raises
        ------
        ValueError
            If the automaton is not deterministic: then draw strings and average `log_probs`.
        """
        local, moves = self._local_entropy(), self._matrix()
        occupancy, total = self.start.numpy(), 0.0
        for _ in range(length):
            total += float(occupancy @ local)
            occupancy = occupancy @ moves
        return total

    def entropy_rate(self) -> float:
        """Nats a symbol in the long run; where strings end, the nats of a whole string over its mean length.

        Raises
        ------
        ValueError
            If the automaton is not deterministic, or what it settles in depends on chance.
        """
        local, moves = self._local_entropy(), self._matrix()
        _, label = connected_components(csr_matrix(moves), directed=True, connection="strong")
        open_ = {int(label[s]) for s, t in zip(*moves.nonzero(), strict=True) if label[s] != label[t]}
        open_ |= {int(label[s]) for s in np.flatnonzero(self.stop.numpy() > 0)}
        reached = self._reached(moves)
        closed = sorted({int(c) for c in label[reached]} - open_)
        if not closed:
            inner = np.flatnonzero(reached)
            visits = np.linalg.solve(
                np.eye(len(inner)) - moves[np.ix_(inner, inner)].T, self.start.numpy()[inner]
            )  # fmt: skip
            symbols = visits @ (1 - self.stop.numpy()[inner])
            return float(visits @ local[inner] / symbols)
        if len(closed) > 1 or bool((self.stop.numpy()[reached] > 0).any()):
            raise ValueError("chance decides where this automaton settles, so it has no single entropy rate")
        inner = np.flatnonzero(label == closed[0])
        system = np.vstack([moves[np.ix_(inner, inner)].T - np.eye(len(inner)), np.ones(len(inner))])
        share = np.linalg.lstsq(system, np.r_[np.zeros(len(inner)), 1.0], rcond=None)[0]
        return float(share @ local[inner])

    def _reached(self, moves: Any) -> Any:
        seen = self.start.numpy() > 0
        while True:
            more = seen | (seen @ (moves > 0))
            if (more == seen).all():
                return seen
            seen = more

    def _matrix(self) -> Any:
        moves = np.zeros((len(self.states), len(self.states)))
        np.add.at(moves, (self.source.numpy(), self.target.numpy()), self.probability.numpy())
        return moves

    def _local_entropy(self) -> Any:
        if not self.deterministic:
            raise ValueError("symbols do not tell the state here: draw strings and average log_probs instead")
        p = self.next_probs(torch.eye(len(self.states), dtype=torch.float64))
        return -(p * p.clamp_min(1e-300).log()).sum(-1).numpy()


def _edge(edge: tuple[Any, ...]) -> tuple[Hashable, str, Hashable, float]:
    if len(edge) not in (3, 4):
        raise ValueError(f"an edge is (source, symbol, target) or (source, symbol, target, weight), got {edge!r}")
    source, symbol, target = edge[:3]
    weight = float(edge[3]) if len(edge) == 4 else 1.0
    if not isinstance(symbol, str) or len(symbol) != 1:
        raise ValueError(f"a symbol is one character, got {symbol!r} in {edge!r}")
    if not (weight > 0 and math.isfinite(weight)):
        raise ValueError(f"weights must be positive, got {weight} in {edge!r}")
    return source, symbol, target, weight


def _widen(t: Tensor, width: int) -> Tensor:
    return torch.nn.functional.pad(t, (0, width - t.shape[1]), value=PAD)
