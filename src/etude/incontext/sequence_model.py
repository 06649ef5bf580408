"""A sequence model that reads (x, y) pairs and predicts the next y: four ways to lay the pairs out as tokens.

Sources: interleaved, Garg et al. 2022, arXiv 2208.01066, and Akyurek et al. 2022, arXiv 2211.15661; shifted, Kirsch
et al. 2022, arXiv 2212.04458; aligned, prior-fitted networks, Mueller et al. 2021, arXiv 2112.10510.
"""

from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from etude.layers.attention import make_mask
from etude.layers.blocks import FFN, Init, Placement, TransformerConfig, TransformerStack
from etude.layers.mixers import MixerName, make_mixer
from etude.layers.positions import LearnedPositions, SinusoidalPositions

Layout = Literal["interleaved", "shifted", "paired", "aligned"]
_CAUSAL = ("interleaved", "shifted")  # every prefix is a prediction; the other two have context and queries


class SequenceModel(nn.Module):
    """Learner in the context: pairs in, predictions out.

    Parameters
    ----------
    in_dim, out_dim
        Features of x; numbers predicted for each (logits, for classes).
    y_dim
        Features of y as it is read; None: `out_dim` (one-hot labels have as many as there are logits).
    layout
        - "interleaved": tokens x_1, y_1, x_2, y_2, ...; the prediction of y_i is read at x_i.
        - "shifted": tokens [x_i ; y_(i-1)]; read everywhere.
        - "paired": tokens [x_i ; y_i] of the context, causal; queries [x ; 0 ; flag] see context and themselves.
        - "aligned": the same tokens, context sees context, queries see context only; order does not matter.
    mixer
        "attention", "gru", "lstm", or ``make(hidden_dim)`` giving a causal (B, T, D) -> (B, T, D) module.
    position
        None: "learned" for attention, "none" for everything else and for "aligned".
    max_points
        Most pairs in a prompt; learned positions end there.
    shared_slot
        Interleaved only: y is written into the first features of the x slot (Bhattamishra et al. 2023) and
        not into features of its own.
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int = 1,
        *,
        layout: Layout = "interleaved",
        mixer: MixerName | Callable[[int], nn.Module] = "attention",
        num_layers: int = 4,
        hidden_dim: int = 128,
        num_heads: int = 4,
        y_dim: int | None = None,
        max_points: int = 64,
        position: Literal["learned", "sinusoidal", "rope", "none"] | None = None,
        placement: Placement = "pre",
        ffn: FFN = "gelu_tanh",
        dropout: float = 0.0,
        init: Init = "torch",
        shared_slot: bool = False,
    ) -> None:
        super().__init__()
        if layout not in get_args(Layout):
            raise ValueError(f"layout must be one of {', '.join(get_args(Layout))}; got {layout!r}")
        if in_dim < 1 or out_dim < 1 or max_points < 1:
            raise ValueError(f"in_dim, out_dim and max_points must be positive: {in_dim}, {out_dim}, {max_points}")
        attends = mixer == "attention"
        if layout == "aligned" and not attends:
            raise ValueError("layout 'aligned' needs attention: context tokens see each other both ways")
        if position is None:
            position = "learned" if attends and layout != "aligned" else "none"
        if position not in ("learned", "sinusoidal", "rope", "none"):
            raise ValueError(f"position must be learned, sinusoidal, rope or none; got {position!r}")
        self.in_dim, self.out_dim, self.y_dim = in_dim, out_dim, y_dim or out_dim
        self.layout, self.max_points, self.shared_slot = layout, max_points, shared_slot
        self.attends = attends
        if shared_slot and (layout != "interleaved" or self.y_dim > in_dim):
            raise ValueError("shared_slot is for layout 'interleaved' with y_dim <= in_dim")
        flag = 0 if layout in _CAUSAL else 1
        self.read = nn.Linear(in_dim + flag + (0 if shared_slot else self.y_dim), hidden_dim)
        config = TransformerConfig(
            num_layers=num_layers, hidden_dim=hidden_dim, num_heads=num_heads, placement=placement, ffn=ffn,
            dropout=dropout, init=init, position=position, causal=layout != "aligned", max_length=self.max_tokens,
            mixer="attention" if attends else lambda c, layer: make_mixer(mixer, c.hidden_dim),
        )  # fmt: skip
        self.positions: LearnedPositions | SinusoidalPositions | None = None
        if position == "learned":
            self.positions = LearnedPositions(self.max_tokens, hidden_dim)
            nn.init.normal_(self.positions.table.weight, std=0.02)
        elif position == "sinusoidal":
            self.positions = SinusoidalPositions(self.max_tokens, hidden_dim)
        self.stack = TransformerStack(config)
        self.write = nn.Linear(hidden_dim, out_dim)

    @property
    def max_tokens(self) -> int:
        """Positions of a prompt of `max_points` pairs (and of a query behind them, where each is one token)."""
        return 2 * self.max_points if self.layout == "interleaved" else self.max_points + 1

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Predictions.

        Parameters
        ----------
        x
            (B, n, in_dim).
        y
            Interleaved and shifted: (B, n) or (B, n, y_dim), of which the last is never read, so n - 1 will do.
            Paired and aligned: the labels of the first inputs (the context); the other inputs are queries.

        Returns
        -------
        Tensor
            (B, n, out_dim), the prediction of y_i from the pairs before i; paired and aligned: (B, queries,
            out_dim). Without the last axis where `out_dim` is 1.
        """
        x, y = self._check(x, y)
        if self.layout in _CAUSAL:
            h = self.hidden(x, y[:, : x.shape[1] - 1])
            h = h[:, ::2] if self.layout == "interleaved" else h
        else:
            h = self._context_query(x, y)
        return self._out(h)

    def predict(self, X: Tensor, y: Tensor, Xq: Tensor) -> Tensor:
        """Predictions for queries that do not see each other, all behind the same pairs.

        The prefix is computed once: the queries stand side by side behind it and are masked from each other
        (with a recurrent mixer the prefix is copied).

        Parameters
        ----------
        X, y, Xq
            (B, n, in_dim), (B, n[, y_dim]), (B, m, in_dim).

        Returns
        -------
        Tensor
            (B, m, out_dim), without the last axis where `out_dim` is 1.

        Raises
        ------
        ValueError
            For shapes that do not fit, or more pairs than `max_points`, or as many where learned positions of the
            interleaved layout leave none for the query.
        """
        X, y = self._check(X, y)
        B, n, m = *X.shape[:2], Xq.shape[1] if Xq.ndim == 3 else 0
        if Xq.shape != (B, m, self.in_dim):
            raise ValueError(f"Xq must be ({B}, m, {self.in_dim}) beside these pairs, got shape {tuple(Xq.shape)}")
        if y.shape[1] != n:
            raise ValueError(f"{n} inputs and {y.shape[1]} labels: queries stand behind whole pairs")
        if self.layout not in _CAUSAL and self.attends:
            return self(torch.cat([X, Xq], 1), y)
        if not self.attends:
            rows = torch.arange(B, device=X.device).repeat_interleave(m)
            longer = torch.cat([X[rows], Xq.reshape(B * m, 1, Xq.shape[-1])], 1)
            return self(longer, y[rows])[:, -1].reshape(B, m, *([self.out_dim] if self.out_dim > 1 else []))
        if self.layout == "interleaved" and n == self.max_points and isinstance(self.positions, LearnedPositions):
            raise ValueError(f"{n} pairs leave no place for a query: build the model with max_points={n + 1}")
        blank = y.new_zeros(B, m, self.y_dim)
        if self.layout == "interleaved":
            tokens = torch.cat([self._interleave(X, y), self._token(Xq, blank)], 1)
            prefix = 2 * n
        else:
            before = torch.cat([y.new_zeros(B, 1, self.y_dim), y], 1)
            tokens = torch.cat([self._token(X, before[:, :n]), self._token(Xq, before[:, n:].expand(B, m, -1))], 1)
            prefix = n
        T = prefix + m
        places = torch.arange(T, device=X.device).clamp_max(prefix)
        mask = make_mask("causal", T, device=X.device)
        mask[prefix:, prefix:] = torch.eye(m, dtype=torch.bool, device=X.device)
        return self._out(self._run(tokens, places, prefix + 1, mask)[:, prefix:])

    def hidden(self, x: Tensor, y: Tensor) -> Tensor:
        """The last hidden states (B, T, hidden_dim) of the interleaved or shifted tokens.

        x and y as in `forward`; interleaved: T = 2n, or 2n - 1 where the last y is not given.
        """
        x, y = self._check(x, y)
        n = x.shape[1]
        if self.layout == "interleaved":
            tokens = self._interleave(x, y)[:, : n + y.shape[1]]
        else:
            before = torch.cat([y.new_zeros(len(y), 1, self.y_dim), y[:, : n - 1]], 1)
            tokens = self._token(x, before)
        T = tokens.shape[1]
        return self._run(tokens, torch.arange(T, device=x.device), T, None)

    def layer_states(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        """Hidden states (B, T, hidden_dim) before the first and after every layer: "layer0", "layer1", ...

        x and y as in `hidden`; interleaved and shifted layouts.
        """
        states: dict[str, Tensor] = {}

        def before(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            states.setdefault("layer0", args[0])

        def after(module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
            states[f"layer{len(states)}"] = out

        blocks = self.stack.layers()
        hooks = [blocks[0].register_forward_pre_hook(before), *(b.register_forward_hook(after) for b in blocks)]
        try:
            self.hidden(x, y)
        finally:
            for hook in hooks:
                hook.remove()
        return states

    def _context_query(self, x: Tensor, y: Tensor) -> Tensor:
        B, n, c = *x.shape[:2], y.shape[1]
        labels = torch.cat([y, y.new_zeros(B, n - c, self.y_dim)], 1)
        flag = (torch.arange(n, device=x.device) >= c).to(x.dtype)[None, :, None].expand(B, n, 1)
        tokens = self.read(torch.cat([x, labels, flag], -1))
        if self.layout == "aligned":
            mask = make_mask("context_query", n, n_context=c, device=x.device)
        else:
            mask = make_mask("causal", n, device=x.device)
            mask[c:, c:] = torch.eye(n - c, dtype=torch.bool, device=x.device)
        if not self.attends:
            if n - c > 1:
                raise ValueError("a recurrent mixer takes one query at a time: use predict")
            return self._run(tokens, torch.arange(n, device=x.device), n, None)[:, c:]
        places = torch.arange(n, device=x.device).clamp_max(c)
        return self._run(tokens, places, c + 1 if n > c else c, mask)[:, c:]

    def _run(self, tokens: Tensor, places: Tensor, length: int, mask: Tensor | None) -> Tensor:
        if self.positions is not None:
            tokens = tokens + self.positions(places, length)
        rotary = places if self.stack.config.position == "rope" else None
        return self.stack(tokens, mask if self.attends else None, positions=rotary)

    def _token(self, x: Tensor, y: Tensor) -> Tensor:
        return self.read(x if self.shared_slot else torch.cat([y, x], -1))

    def _interleave(self, x: Tensor, y: Tensor) -> Tensor:
        B, n, c = *x.shape[:2], y.shape[1]
        xs = self._token(x, y.new_zeros(B, n, self.y_dim))
        if self.shared_slot:
            ys = self.read(nn.functional.pad(y, (0, self.in_dim - self.y_dim)))
        else:
            ys = self._token(x.new_zeros(B, c, self.in_dim), y)
        if c < n:
            ys = torch.cat([ys, ys.new_zeros(B, n - c, ys.shape[-1])], 1)
        return torch.stack([xs, ys], 2).flatten(1, 2)

    def _out(self, h: Tensor) -> Tensor:
        out = self.write(h)
        return out.squeeze(-1) if self.out_dim == 1 else out

    def _check(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        if x.ndim != 3 or x.shape[-1] != self.in_dim:
            raise ValueError(f"x must be (B, n, {self.in_dim}), got shape {tuple(x.shape)}")
        y = y.unsqueeze(-1) if y.ndim == 2 and self.y_dim == 1 else y
        if y.ndim != 3 or y.shape[0] != x.shape[0] or y.shape[-1] != self.y_dim:
            expected = f"(B, n, {self.y_dim})" if self.y_dim > 1 else "(B, n)"
            raise ValueError(f"y must be {expected} with as many rows as x, got shape {tuple(y.shape)}")
        n, c = x.shape[1], y.shape[1]
        if c > n or (self.layout in _CAUSAL and c < n - 1):
            raise ValueError(f"{n} inputs and {c} labels do not fit the layout {self.layout!r}")
        if (n if self.layout in _CAUSAL else c) > self.max_points:
            raise ValueError(f"a prompt of {max(n, c)} points is longer than max_points={self.max_points}")
        return x, y.to(x.dtype)


__all__ = ["Layout", "SequenceModel"]
