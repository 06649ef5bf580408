"""Probabilities that a causal language model gives to tokens, labels and whole sets of sequences.

A model is a `DecoderLM`, a `transformers` causal LM, or any callable from ids (B, T) (and a mask, where one is
given) to logits (B, T, V). Probabilities of 0 are -inf, never NaN. Modules score in eval mode; afterwards their modes
are what they were.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from etude.layers.decoder import DecoderLM
from etude.layers.modes import evaluating

LM = nn.Module | Callable[..., Any]


def lm_logits(model: LM, ids: Tensor, mask: Tensor | None = None) -> Tensor:
    """Logits (B, T, V) in the model's own mode, whatever its make; `mask` (B, T), True = real token."""
    if mask is not None and mask.shape != ids.shape:
        raise ValueError(f"mask must have the shape of ids, {tuple(ids.shape)}, got {tuple(mask.shape)}")
    if isinstance(model, DecoderLM):
        return model(ids, mask)
    if hasattr(model, "config") and hasattr(model, "generate"):
        if mask is None:
            return model(ids).logits
        places = (mask.cumsum(-1) - 1).clamp_min(0)  # left padding must not shift positions
        return model(ids, attention_mask=mask.long(), position_ids=places).logits
    out = model(ids) if mask is None else model(ids, mask)
    return out.logits if hasattr(out, "logits") else out


@torch.no_grad()
def token_logprobs(model: LM, ids: Tensor, mask: Tensor | None = None) -> Tensor:
    """log p(token t + 1 | tokens up to t), shape (B, T - 1); 0 where token t or t + 1 is padding.

    Parameters
    ----------
    ids, mask
        (B, T) and (B, T), True = real token. None: all are real.
    """
    if ids.ndim != 2 or ids.shape[1] < 1:
        raise ValueError(f"ids must be (B, T) with at least one token, got {tuple(ids.shape)}")
    if ids.shape[1] == 1:
        return torch.zeros(ids.shape[0], 0, device=ids.device)
    with _scoring(model):
        logits = lm_logits(model, ids, mask)[:, :-1].float()
    picked = _log_softmax(logits).gather(-1, ids[:, 1:].unsqueeze(-1)).squeeze(-1)
    return picked if mask is None else picked.masked_fill(~(mask[:, 1:] & mask[:, :-1]).bool(), 0.0)


def perplexity(model: LM, ids: Tensor, mask: Tensor | None = None) -> Tensor:
    """``exp`` of the mean negative log-probability of each row's tokens after the first, (B,); infinite where one is 0.

    A row without a token to predict raises ValueError.
    """
    scores = token_logprobs(model, ids, mask)
    if mask is None:
        count = torch.full_like(scores[:, :1].sum(1), scores.shape[1])
    else:
        count = (mask[:, 1:] & mask[:, :-1]).sum(1).to(scores.dtype)
    if bool((count == 0).any()):
        raise ValueError(f"row {int((count == 0).nonzero()[0])} has no token to predict: it needs at least two")
    return torch.exp(-scores.sum(1) / count)


@torch.no_grad()
def label_logprobs(
    model: LM, ids: Tensor, positions: Tensor, label_ids: Sequence[int] | Tensor, mask: Tensor | None = None
) -> Tensor:
    """Log-probabilities of the labels as the token after each position, in one pass, (B, P, C).

    Parameters
    ----------
    positions
        (B, P) or (P,): the token at this position is the last one read before the label.
    label_ids
        C different token ids.

    Raises
    ------
    ValueError
        For a position beyond the rows, or labels that are alike or no tokens of the model.
    """
    labels = torch.as_tensor(label_ids, device=ids.device)
    if len(labels.unique()) != len(labels):
        raise ValueError(f"two labels share a token id: {labels.tolist()}")
    positions = positions.expand(ids.shape[0], -1) if positions.ndim == 1 else positions
    if bool((positions < 0).any()) or bool((positions >= ids.shape[1]).any()):
        raise ValueError(f"positions must lie in 0 .. {ids.shape[1] - 1}")
    with _scoring(model):
        logits = lm_logits(model, ids, mask).float()
    _check_tokens(labels, logits.shape[-1], "label_ids")
    at = logits.gather(1, positions.unsqueeze(-1).expand(-1, -1, logits.shape[-1]))
    return _log_softmax(at)[..., labels]


@torch.no_grad()
def enumerate_logits(
    model: LM, vocabularies: Sequence[Sequence[int] | Tensor], *, prefix: Tensor, batch_size: int = 4096
) -> list[Tensor]:
    """Logits of every next token over all sequences that take token i from ``vocabularies[i]``.

    Sequences share prefixes: with vocabularies of 40, 40 and 40 there are 1 + 40 + 1,600 contexts instead of
    64,000 sequences, and a `DecoderLM` reads one new token a context.

    Parameters
    ----------
    prefix
        (T,) ids before the first slot (at least one, such as a start token).
    batch_size
        Contexts a forward pass.

    Returns
    -------
    list of Tensor
        Slot i: (n_1, ..., n_(i-1), V), float32.

    Raises
    ------
    ValueError
        For a vocabulary without or with equal tokens, or with one that the model lacks.
    """
    slots = [torch.as_tensor(v, dtype=torch.long, device=prefix.device) for v in vocabularies]
    if not slots or prefix.ndim != 1 or len(prefix) < 1:
        raise ValueError("give at least one vocabulary and a prefix (T,) of at least one token")
    for i, slot in enumerate(slots):
        if slot.ndim != 1 or len(slot) == 0 or len(slot.unique()) != len(slot):
            raise ValueError(f"vocabulary {i} must hold different token ids, at least one")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    with _scoring(model):
        return _walk(model, slots, prefix, batch_size)


def enumerate_logprobs(
    model: LM,
    vocabularies: Sequence[Sequence[int] | Tensor],
    *,
    prefix: Tensor,
    temperature: float = 1.0,
    restrict: bool = True,
    batch_size: int = 4096,
) -> Tensor:
    """Log-probability of every sequence that takes token i from ``vocabularies[i]``, (n_1, ..., n_k).

    Parameters
    ----------
    temperature
        Divides the logits of every slot.
    restrict
        Each slot's probabilities are normalised over its vocabulary (decoding that may write nothing else), so
        that they sum to 1 over all sequences. False: over all tokens.
    """
    logits = enumerate_logits(model, vocabularies, prefix=prefix, batch_size=batch_size)
    return combine_logits(logits, vocabularies, temperature=temperature, restrict=restrict)


def combine_logits(
    logits: Sequence[Tensor],
    vocabularies: Sequence[Sequence[int] | Tensor],
    *,
    temperature: float = 1.0,
    restrict: bool = True,
) -> Tensor:
    """`enumerate_logprobs` from the result of `enumerate_logits`: further temperatures cost no forward pass."""
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    total: Tensor | None = None
    for i, (slot_logits, vocabulary) in enumerate(zip(logits, vocabularies, strict=True)):
        ids = torch.as_tensor(vocabulary, dtype=torch.long, device=slot_logits.device)
        _check_tokens(ids, slot_logits.shape[-1], f"vocabulary {i}")
        scaled = slot_logits.double() / temperature
        scores = _log_softmax(scaled[..., ids]) if restrict else _log_softmax(scaled)[..., ids]
        total = scores if total is None else total.unsqueeze(-1) + scores
    assert total is not None
    return total


def _walk(model: LM, slots: list[Tensor], prefix: Tensor, batch_size: int) -> list[Tensor]:
    """Breadth first over the tree of prefixes."""
    sizes: list[int] = []
    out = []
    contexts = prefix.unsqueeze(0)
    cache = model.new_cache() if isinstance(model, DecoderLM) else None
    new = contexts
    for i, slot in enumerate(slots):
        if isinstance(model, DecoderLM) and cache is not None:
            last = i == len(slots) - 1
            parts = []
            rows = torch.arange(len(contexts), device=prefix.device)
            if len(contexts) <= batch_size or not last:
                parts.append(model(new, cache=cache)[:, -1])
            else:
                for chunk in rows.split(batch_size):
                    parts.append(model(new[chunk], cache=cache.select(chunk))[:, -1])
        else:
            parts = [lm_logits(model, chunk)[:, -1] for chunk in contexts.split(batch_size)]
        logits = torch.cat(parts).float()
        _check_tokens(slot, logits.shape[-1], f"vocabulary {i}")  # before they are fed to the model
        out.append(logits.reshape(*sizes, logits.shape[-1]))
        if i == len(slots) - 1:
            break
        repeat = torch.arange(len(contexts), device=prefix.device).repeat_interleave(len(slot))
        new = slot.repeat(len(contexts)).unsqueeze(1)
        contexts = torch.cat([contexts[repeat], new], 1)
        cache = None if cache is None else cache.select(repeat)
        sizes.append(len(slot))
    return out


def _scoring(model: LM) -> AbstractContextManager[None]:
    """Eval mode, where the model has one."""
    return evaluating(*[model] if isinstance(model, nn.Module) else [])


def _check_tokens(ids: Tensor, vocab_size: int, what: str) -> None:
    beyond = ids[(ids < 0) | (ids >= vocab_size)]
    if len(beyond):
        raise ValueError(f"{what} holds {int(beyond[0])}: the tokens of the model are 0 .. {vocab_size - 1}")


def _log_softmax(logits: Tensor) -> Tensor:
    """Log-softmax that gives -inf, not NaN, where every logit is -inf."""
    scores = logits.log_softmax(-1)
    nothing = (logits == -torch.inf).all(-1, keepdim=True)
    return torch.where(nothing, torch.full_like(scores, -torch.inf), scores)
