"""Training language models: what is hidden from the model, what it must say, and the run.

Sources: causal, Radford et al. 2018; prefix, Liu et al. 2018, arXiv 1801.10198, and Raffel et al. 2019; masked (15 %
of the tokens: 80 % a mask, 10 % a random token, 10 % unchanged), Devlin et al. 2018, arXiv 1810.04805.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from etude.data.tasks import Split
from etude.layers.cross_entropy import masked_cross_entropy
from etude.training.config import TrainConfig
from etude.training.engine import Trained, train

Objective = Literal["causal", "prefix", "mlm"]
IGNORE = -100


class LMBatch(NamedTuple):
    """Rows ready for a model: logits at position t are compared with ``targets[t]``, -100 = not compared."""

    inputs: Tensor
    """(B, T) ids."""
    targets: Tensor
    """(B, T)"""
    mask: Tensor | None
    """(B, T), True = real token; None: all are."""
    prefix_lengths: Tensor | None = None
    """(B,) tokens that may see each other."""


def corrupt(
    ids: Tensor,
    mask: Tensor | None = None,
    objective: Objective = "causal",
    generator: torch.Generator | None = None,
    *,
    mask_id: int | None = None,
    vocab_size: int | None = None,
    rate: float = 0.15,
) -> LMBatch:
    """Make a batch of an objective.

    Parameters
    ----------
    ids, mask
        (B, T) and (B, T), True = real token (None: all), padding at the end.
    objective
        - "causal": every real token after the first is a target, at the position before it.
        - "prefix": a prefix of uniform length is read in both directions, only tokens after it are targets.
        - "mlm": a share `rate` of the real tokens is hidden; these are the targets, at their own positions.
    generator
        Of the draws. None: torch's own, which the engine seeds with the run's noise stream.
    mask_id, vocab_size
        The masking token and the number of tokens, for "mlm".
    """
    if ids.ndim != 2:
        raise ValueError(f"ids must be (B, T), got shape {tuple(ids.shape)}")
    given = None if mask is None else mask.bool()
    mask = torch.ones_like(ids, dtype=torch.bool) if given is None else given
    if mask.shape != ids.shape:
        raise ValueError(f"mask {tuple(mask.shape)} does not fit ids {tuple(ids.shape)}")
    if objective == "mlm":
        return _hide(ids, mask, generator, mask_id, vocab_size, rate)._replace(mask=given)
    if objective not in ("causal", "prefix"):
        raise ValueError(f"objective must be 'causal', 'prefix' or 'mlm', got {objective!r}")
    targets = torch.full_like(ids, IGNORE)
    after = mask[:, 1:] & mask[:, :-1]
    targets[:, :-1] = torch.where(after, ids[:, 1:], IGNORE)
    if objective == "causal":
        return LMBatch(ids, targets, given)
    lengths = mask.sum(1)
    share = torch.rand(len(ids), generator=generator, device=ids.device)
    prefix = (share * lengths.clamp_min(1)).long()  # 0 .. length - 1: at least one target
    inside = torch.arange(ids.shape[1], device=ids.device) < prefix[:, None] - 1
    return LMBatch(ids, targets.masked_fill(inside, IGNORE), given, prefix)


def _hide(
    ids: Tensor,
    mask: Tensor,
    generator: torch.Generator | None,
    mask_id: int | None,
    vocab_size: int | None,
    rate: float,
) -> LMBatch:
    if mask_id is None or vocab_size is None:
        raise ValueError("objective 'mlm' needs mask_id and vocab_size")
    if not 0 < rate <= 1:
        raise ValueError(f"rate must lie in (0, 1], got {rate}")
    draw, kind = (torch.rand(ids.shape, generator=generator, device=ids.device) for _ in range(2))
    other = torch.randint(vocab_size, ids.shape, generator=generator, device=ids.device)
    hidden = (draw < rate) & mask
    inputs = torch.where(hidden & (kind < 0.8), mask_id, ids)
    inputs = torch.where(hidden & (kind >= 0.9), other, inputs)
    return LMBatch(inputs, torch.where(hidden, ids, IGNORE), mask)


def lm_loss(model: nn.Module, batch: LMBatch) -> Tensor:
    """Mean cross-entropy over the targets that count, in nats a token."""
    if batch.prefix_lengths is not None:
        logits = model(batch.inputs, batch.mask, prefix_lengths=batch.prefix_lengths)
    else:
        logits = model(batch.inputs) if batch.mask is None else model(batch.inputs, batch.mask)
    return masked_cross_entropy(getattr(logits, "logits", logits), batch.targets)


def token_rows(texts: Any, tokenizer: Any = None, *, max_length: int | None = None, pack: bool = False) -> Split:
    """Rows of ids as a split: x (n, T), lengths (n,).

    Parameters
    ----------
    texts
        Strings, or ids: (n, T), or a list of lists.
    tokenizer
        Whatever has ``encode(texts, max_length) -> (ids, mask, ...)``; None for ids.
    max_length
        Longest row; longer texts are cut.
    pack
        Join all texts and cut them into full rows of `max_length`: no padding and nothing lost but the end.
    """
    if isinstance(texts, Tensor):
        ids, lengths = texts.long(), torch.full((len(texts),), texts.shape[1] if texts.ndim == 2 else 0)
        if ids.ndim != 2:
            raise ValueError(f"ids must be (n, T), got shape {tuple(ids.shape)}")
    elif len(texts) == 0:
        raise ValueError("no texts to train on")
    elif isinstance(texts[0], str):
        if tokenizer is None:
            raise ValueError("texts need a tokenizer")
        encoded = tokenizer.encode(list(texts), None if pack else max_length)
        ids, lengths = encoded.ids, encoded.mask.sum(1)
    else:
        rows = [torch.as_tensor(row, dtype=torch.long) for row in texts]
        lengths = torch.tensor([len(row) for row in rows])
        ids = nn.utils.rnn.pad_sequence(rows, batch_first=True)
    if pack:
        if max_length is None or max_length < 2:
            raise ValueError(f"pack needs max_length of at least 2, got {max_length}")
        stream = ids[torch.arange(ids.shape[1]) < lengths[:, None]]
        full = len(stream) // max_length
        if full == 0:
            raise ValueError(f"{len(stream)} tokens make no full row of {max_length}")
        ids = stream[: full * max_length].view(full, max_length)
        lengths = torch.full((full,), max_length)
    elif max_length is not None:
        ids, lengths = ids[:, :max_length], lengths.clamp_max(max_length)
    return Split(x=ids, lengths=lengths)


def train_language_model(
    build: nn.Module | Callable[[int], nn.Module],
    texts: Any,
    tokenizer: Any = None,
    objective: Objective = "causal",
    *,
    config: TrainConfig,
    seeds: Sequence[int] = (0,),
    val: Any = None,
    max_length: int | None = None,
    pack: bool = False,
    mask_id: int | None = None,
    vocab_size: int | None = None,
    callbacks: Sequence[Any] = (),
    plan: str = "auto",
    device: str | torch.device = "cpu",
) -> list[Trained]:
    """Train one language model a seed.

    Parameters
    ----------
    build
        ``build(seed)`` returns a model from ids (B, T), and a mask where rows are padded, to logits (B, T, V).
    texts, tokenizer, max_length, pack
        See `token_rows`. `texts` may be a function from seed to texts.
    objective, mask_id, vocab_size
        See `corrupt`; new draws for every batch.
    val
        Held-out texts, or a function from seed to them; with ``config.patience`` the run stops on their loss.

    Returns
    -------
    list of Trained
        Losses are nats a target; `bits_per_character` makes them comparable across tokenisers.
    """

    def rows(source: Any) -> Any:
        def make(part: Any) -> Split:
            if not isinstance(part, Split):
                part = token_rows(part, tokenizer, max_length=max_length, pack=pack)
            padded = part.lengths is not None and bool((part.lengths < part.x.shape[1]).any())
            return part if padded else part._replace(lengths=None)  # no mask where nothing is padded

        if callable(source):
            return lambda seed: make(source(seed))
        return make(source)

    def loss(model: nn.Module, batch: Split) -> Tensor:
        mask = None
        if batch.lengths is not None:
            mask = torch.arange(batch.x.shape[1], device=batch.x.device) < batch.lengths[:, None]
        return lm_loss(model, corrupt(batch.x, mask, objective, mask_id=mask_id, vocab_size=vocab_size))

    corrupt(torch.zeros(1, 2, dtype=torch.long), None, objective, mask_id=mask_id, vocab_size=vocab_size)
    return train(
        build, rows(texts), loss=loss, config=config, seeds=seeds, val=None if val is None else rows(val),
        callbacks=callbacks, plan=plan, device=device,
    )  # fmt: skip


def bits_per_character(nats_per_token: float, tokens: int, characters: int) -> float:
    """A loss in nats a token as bits a character of the text: comparable between tokenisers."""
    if characters < 1:
        raise ValueError(f"characters must be at least 1, got {characters}")
    return nats_per_token * tokens / characters / 0.6931471805599453
