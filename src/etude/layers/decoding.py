"""Greedy, beam and sampled decoding of any step function, with constraints.

One batched step serves all rows and beams. Decoding always ends: after `max_steps` at the latest, and rows that
found no end are reported.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

Step = Callable[[Tensor, Any], tuple[Tensor, Any]]
Allowed = Callable[[Tensor], Tensor]


class Decoded(NamedTuple):
    """What `decode` found; n is 1 (greedy), `beam_size` (best first) or `num_samples`."""

    sequences: Tensor
    """(batch, n, m) int64, without the end symbol, padded with -1."""
    scores: Tensor
    """(batch, n): summed log-probability, the end symbol's included; -inf for a beam that does not exist. float64 where
    the logits are, else float32."""
    finished: Tensor
    """(batch, n) bool: the end symbol was reached; without `end_id`, all `max_steps` symbols were written."""


def decode(
    step: Step,
    start: Tensor | tuple[Tensor, Any],
    *,
    max_steps: int,
    method: Literal["greedy", "beam", "sample"] = "greedy",
    beam_size: int = 1,
    num_samples: int = 1,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    end_id: int | None = None,
    allowed: Allowed | None = None,
    generator: torch.Generator | None = None,
) -> Decoded:
    """Write sequences symbol by symbol.

    Parameters
    ----------
    step
        ``step(last (R,), state) -> logits (R, V), state``. R is batch * n and constant; the rows of one batch
        entry are neighbours. Tensors of the state (inside tuples, lists, dicts) have the R rows on their first
        axis; an object with a method ``reorder(index)`` is asked to pick rows itself.
    start
        The first `last`, shape (batch,), or a pair of it and the state after the shared prefix.
    method
        "greedy"; "beam": the `beam_size` best by summed log-probability, not normalised by length;
        "sample": `num_samples` independent draws a row. `beam_size` > 1 alone means "beam".
    temperature, top_k, top_p
        Shape the distribution that is sampled ("sample" only); scores are log-probabilities of the model itself, after
        `allowed`.
    end_id
        Symbol that ends a sequence.
    allowed
        ``allowed(prefix (R, t)) -> bool (R, V)``, True = may come next. Rows that have ended may be given any
        mask. A row that has not ended and may not go on stops, unfinished.
    generator
        Source of the draws; needed by "sample".

    Returns
    -------
    Decoded

    Raises
    ------
    ValueError
        For options that do not fit, an `end_id` outside of the symbols, NaN logits, or a mask of another shape.
    """
    last, state = start if isinstance(start, tuple) else (start, None)
    if method == "greedy" and beam_size > 1:
        method = "beam"
    _check(method, last, max_steps, beam_size, num_samples, temperature, top_k, top_p, generator)
    n = {"greedy": 1, "beam": beam_size, "sample": num_samples}[method]
    batch, device = last.shape[0], last.device
    base = torch.arange(batch, device=device)
    last, state = _reorder((last, state), base.repeat_interleave(n))
    prefix = last.new_empty((batch * n, 0), dtype=torch.int64)
    scores = torch.zeros(batch, n, device=device)
    if method == "beam":
        scores[:, 1:] = -math.inf  # all beams start equal: only one may branch
    open_ = torch.ones(batch, n, dtype=torch.bool, device=device)
    finished = torch.zeros_like(open_)
    for _ in range(max_steps):
        logits, state = step(last, state)
        if end_id is not None and not 0 <= end_id < logits.shape[-1]:
            raise ValueError(f"end_id must be a symbol in 0..{logits.shape[-1] - 1}, got {end_id}: no row would end")
        logp = _log_probabilities(logits, prefix, allowed, open_.view(-1))
        if method == "beam":
            logp_beams = logp.view(batch, n, -1)
            source, symbol, scores, kept = _branch(logp_beams, scores, open_)
            rows = (base[:, None] * n + source).view(-1)
            open_, finished = open_.gather(1, source), finished.gather(1, source)
            state, prefix = _reorder((state, prefix), rows)
            open_ = open_ & kept
        else:
            drawn = logp.argmax(-1) if method == "greedy" else _draw(logp, temperature, top_k, top_p, generator)
            picked = logp.gather(1, drawn[:, None]).view(batch, n)
            open_ = open_ & torch.isfinite(picked)  # nothing allowed: the row stops here
            scores = torch.where(open_, scores + picked, scores)
            symbol = drawn.view(batch, n)
        if end_id is not None:
            ended = open_ & (symbol == end_id)
            finished, open_ = finished | ended, open_ & ~ended
        written = torch.where(open_, symbol, -1).view(-1, 1)
        prefix = torch.cat([prefix, written], dim=1)
        if not bool(open_.any()):
            break
        last = torch.where(open_, symbol, 0 if end_id is None else end_id).view(-1)
    if end_id is None:
        finished = open_
    width = int((prefix >= 0).sum(1).max()) if prefix.numel() else 0
    return Decoded(prefix[:, :width].view(batch, n, width), scores, finished)


def _check(
    method: str, last: Tensor, max_steps: int, beam_size: int, num_samples: int, temperature: float,
    top_k: int | None, top_p: float | None, generator: torch.Generator | None,
) -> None:  # fmt: skip
    if method not in ("greedy", "beam", "sample"):
        raise ValueError(f"method must be greedy, beam or sample, got {method!r}")
    if last.dim() != 1:
        raise ValueError(f"start must have shape (batch,), got {tuple(last.shape)}")
    for name, value in (("max_steps", max_steps), ("beam_size", beam_size), ("num_samples", num_samples)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if not (temperature > 0 and math.isfinite(temperature)):
        raise ValueError(f"temperature must be positive, got {temperature}: for the most likely symbol use greedy")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k must be at least 1, got {top_k}")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p must lie in (0, 1], got {top_p}")
    if method != "sample" and not (temperature == 1.0 and top_k is top_p is None):
        shaped = f"temperature={temperature}, top_k={top_k}, top_p={top_p}"
        raise ValueError(f"only method='sample' draws from a shaped distribution, got {shaped} with {method!r}")
    if method == "sample" and generator is None:
        raise ValueError("sampling needs a generator=: pass a torch.Generator")
    if method == "sample" and beam_size > 1:
        raise ValueError("beam_size belongs to beam search: use num_samples with method='sample'")
    if method != "sample" and num_samples > 1:
        raise ValueError(f"num_samples belongs to method='sample', got {num_samples} with {method!r}")


def check_allowed(mask: Tensor, shape: Sequence[int]) -> Tensor:
    """What a constraint returned; ValueError unless it is bool of this shape, (rows, symbols)."""
    if mask.dtype != torch.bool or tuple(mask.shape) != tuple(shape):
        raise ValueError(f"what is allowed next must be bool {tuple(shape)}, got {mask.dtype} {tuple(mask.shape)}")
    return mask


def _reorder(state: Any, index: Tensor) -> Any:
    if state is None:
        return None
    if isinstance(state, Tensor):
        return state.index_select(0, index)
    if hasattr(state, "reorder"):
        return state.reorder(index)
    if isinstance(state, dict):
        return {k: _reorder(v, index) for k, v in state.items()}
    if isinstance(state, tuple) and hasattr(state, "_fields"):
        return type(state)(*(_reorder(v, index) for v in state))
    if isinstance(state, (tuple, list)):
        return type(state)(_reorder(v, index) for v in state)
    raise ValueError(f"a state may hold tensors, tuples, lists and dicts, got {type(state).__name__} without reorder()")


def _log_probabilities(logits: Tensor, prefix: Tensor, allowed: Allowed | None, open_: Tensor) -> Tensor:
    """Normalised over what is allowed, in single precision or double; a row that may not go on is -inf throughout."""
    if bool((torch.isnan(logits).any(-1) & open_).any()):
        row = int((torch.isnan(logits).any(-1) & open_).nonzero()[0])
        raise ValueError(f"row {row}: the step returned NaN logits after {prefix.shape[1]} symbols")
    if allowed is not None:
        logits = logits.masked_fill(~check_allowed(allowed(prefix), logits.shape), -math.inf)
    logits = logits if logits.dtype == torch.float64 else logits.float()
    return torch.nan_to_num(logits.log_softmax(-1), nan=-math.inf, neginf=-math.inf)


def _branch(logp: Tensor, scores: Tensor, open_: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The best continuations of every row: source beam, symbol, score, and whether it went on."""
    batch, n, size = logp.shape
    dead = open_ & torch.isneginf(logp).all(-1)  # alive but may not go on: keep it, once, as it is
    still = ~open_ | dead
    total = torch.where(still[..., None], -math.inf, scores[..., None] + logp)
    total = torch.cat([total, torch.where(still, scores, -math.inf)[..., None]], dim=-1)  # column V: stays
    best, index = total.view(batch, -1).topk(n, dim=1)
    source, symbol = index // (size + 1), index % (size + 1)
    stays = symbol == size
    return source, torch.where(stays, 0, symbol), best, ~stays & torch.isfinite(best)


def _draw(
    logp: Tensor, temperature: float, top_k: int | None, top_p: float | None, generator: torch.Generator | None
) -> Tensor:
    assert generator is not None
    z = logp / temperature
    if top_k is not None and top_k < z.shape[-1]:
        rest = z.argsort(dim=-1, descending=True, stable=True)[:, top_k:]  # of equal ones the first stay
        z = z.scatter(1, rest, -math.inf)
    if top_p is not None and top_p < 1:
        ranked, order = z.softmax(-1).sort(dim=-1, descending=True, stable=True)
        drop = ranked.cumsum(-1) - ranked >= top_p  # the symbol that passes top_p stays
        z = z.masked_fill(torch.zeros_like(drop).scatter(1, order, drop), -math.inf)
    p = torch.nan_to_num(z.softmax(-1), nan=0.0)
    p[:, 0] = torch.where(p.sum(-1) > 0, p[:, 0], 1.0)  # a row that may not go on draws anything; it stops
    return torch.multinomial(p.to(generator.device), 1, generator=generator)[:, 0].to(logp.device)
