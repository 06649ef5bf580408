"""State machines written in digits: a reader must find the states and their steps by itself.

Source: Tamkin, Taufeeque & Goodman 2023, arXiv 2310.17230 (TokFSM).
"""

from typing import Any

import torch
from torch import Tensor

from etude.data.automata import PAD, Automaton

_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"


class TokenMachine(Automaton):
    """States written as numbers: a reader sees digits and never where a state begins. Made by `token_machine`."""

    def __init__(self, successors: Tensor, base: int) -> None:
        n = len(successors)
        digits = _digits(n, base)
        names = ["".join(_DIGITS[s // base**j % base] for j in range(digits - 1, -1, -1)) for s in range(n)]
        edges: list[tuple[Any, ...]] = [("begin", "^", (None, ""))]
        for state in [None, *range(n)]:
            weights: dict[tuple[str, str], float] = {}
            for s in range(n) if state is None else successors[state].tolist():
                for j in range(digits):
                    key = (names[s][:j], names[s][j])
                    weights[key] = weights.get(key, 0.0) + 1.0
            for (before, digit), weight in weights.items():
                whole = before + digit
                target = (names.index(whole), "") if len(whole) == digits else (state, whole)
                edges.append(((state, before), digit, target, weight))
        super().__init__(edges, "begin", alphabet=[*_DIGITS[:base], "^"])
        self.successors, self.base, self.digits = successors, base, digits
        self.names = names
        self.begin = base

    def read(self, ids: Tensor) -> Tensor:
        """States (n, m) of token rows (n, 1 + digits * m or more) that start with the begin token; -1 = no state."""
        if ids.ndim != 2 or bool((ids[:, 0] != self.begin).any()):
            raise ValueError(f"rows must be (n, T) and start with the begin token {self.begin}")
        m = (ids.shape[1] - 1) // self.digits
        parts = ids[:, 1 : 1 + m * self.digits].reshape(len(ids), m, self.digits)
        powers = self.base ** torch.arange(self.digits - 1, -1, -1, device=ids.device)
        number = (parts * powers).sum(-1)
        return torch.where((parts < self.base).all(-1) & (number < len(self.successors)), number, PAD)

    def legal(self, states: Tensor) -> Tensor:
        """(n, m - 1) bool: is the step from each state (n, m) to the next one among its successors?"""
        before, after = states[:, :-1], states[:, 1:]
        allowed = (self.successors.to(states.device)[before.clamp_min(0)] == after[..., None]).any(-1)
        return allowed & (before >= 0) & (after >= 0)


def token_machine(
    num_states: int = 100, num_successors: int = 10, *, base: int = 10, generator: torch.Generator
) -> TokenMachine:
    """TokFSM: a random machine whose states are written in as many digits as their largest number needs.

    Each state has `num_successors` different successors of equal probability; the first state is uniform; rows begin
    with the symbol "^", number `base`.

    Raises
    ------
    ValueError
        For a base outside 2..36 or more successors than states.
    """
    if not 2 <= base <= len(_DIGITS):
        raise ValueError(f"base must lie in 2..{len(_DIGITS)}, got {base}")
    if not 1 <= num_successors <= num_states:
        raise ValueError(f"num_successors must lie in 1..{num_states}, the number of states, got {num_successors}")
    order = torch.rand(num_states, num_states, generator=generator).argsort(-1)
    return TokenMachine(order[:, :num_successors].sort(-1).values, base)


def _digits(n: int, base: int) -> int:
    digits = 1
    while base**digits < n:
        digits += 1
    return digits
