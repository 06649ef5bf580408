"""Language models with codes in their attention, on real text or the user's own: the large half of the study."""

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from etude import trust
from etude.data import Tokenizer, sampled, stream, train_tokenizer
from etude.data.tasks import Split
from etude.lab.study import Arm, Job, Measurement
from etude.layers import DecoderConfig, DecoderLM
from etude.studies._codebook_concepts import concept_measurements
from etude.training import TrainConfig, corrupt, lm_loss, token_rows, train
from etude.trust import CodebookModel, codebook

LM_ARMS = {
    "lm_plain": Arm("language model, fine-tuned without codebooks", role="baseline", derived=True),
    "lm_codebook_k8": Arm("language model, eight codes in each attention layer", derived=True),
    "lm_codes_shuffled": Arm("the same, each token with another token's codes", role="control", derived=True),
    "lm_codebook_random_concept": Arm("the code that was found for another concept", role="control", derived=True),
}
LENGTH = 64


def text_measurements(job: Job) -> Iterator[Measurement]:
    """Losses of every size, and concepts of the first."""
    texts = {s: _parts(job.task, s) for s in job.seeds}
    tokenizers = {s: train_tokenizer(texts[s][0], "bpe", job.config.text_vocab) for s in job.seeds}
    rows = {s: [token_rows(p, tokenizers[s], max_length=LENGTH, pack=True).x for p in texts[s]] for s in job.seeds}
    for size, (width, layers) in zip(("small", "large"), job.config.text_sizes, strict=False):
        models = _models(job, width, layers, tokenizers, {s: r[0] for s, r in rows.items()})
        for seed, plain, cb in zip(job.seeds, *models, strict=True):
            test = rows[seed][1].to(job.device)
            yield Measurement("lm_plain", seed, f"{size}_lm_ce", _loss(plain, test), "nats")
            yield Measurement("lm_codebook_k8", seed, f"{size}_lm_ce", _loss(cb, test), "nats")
            with cb.shuffled(stream(seed, "shuffle")):
                yield Measurement("lm_codes_shuffled", seed, f"{size}_lm_ce", _loss(cb, test), "nats")
            if size == "small":
                yield from concept_measurements(job, seed, plain, cb, tokenizers[seed], texts[seed][1], 4 * LENGTH)


def _parts(data: Any, seed: int) -> tuple[list[str], list[str]]:
    """Nine tenths of the documents to learn from, one to test."""
    texts = [t for t in data.texts if t.strip()]
    order = torch.randperm(len(texts), generator=stream(seed, "split")).tolist()
    cut = max(1, len(texts) // 10)
    return [texts[i] for i in order[cut:]], [texts[i] for i in order[:cut]]


def _models(
    job: Job, width: int, layers: int, tokenizers: dict[int, Tokenizer], rows: dict[int, Tensor]
) -> tuple[list[nn.Module], list[Any]]:
    """The fine-tuned net and the one with codebooks, one a seed each."""
    c = job.config
    heads = max(1, width // 32)

    def batches(name: str) -> Any:
        def draw(seed: int, t: int) -> Split:
            return Split(rows[seed][torch.randint(len(rows[seed]), (c.batch_size,), generator=stream(seed, name, t))])

        return lambda seed: sampled(lambda _, t: draw(seed, t))

    def build(seed: int) -> nn.Module:
        return DecoderLM(
            DecoderConfig(
                num_layers=layers, hidden_dim=width, num_heads=heads, vocab_size=tokenizers[seed].vocab_size,
                position="rope", max_length=4 * LENGTH,
            )
        )  # fmt: skip

    def loss(net: nn.Module, batch: Split) -> Tensor:
        return lm_loss(net, corrupt(batch.x))

    def with_codes(seed: int) -> CodebookModel:
        start = rows[seed][:200].to(job.device)
        cb = codebook.wrap(
            copy.deepcopy(bases[seed]), "*.mixer.merged", c.text_codes, min(8, c.text_codes), groups=heads,
            dead_after=c.dead_after, example=start[:1],
        )  # fmt: skip
        cb.initialize(start.split(50), generator=stream(seed, "codes"))
        return cb

    shared: dict[str, Any] = {"seeds": job.seeds, "device": job.device}
    config = TrainConfig(steps=c.text_steps, lr=c.lr)
    bases = {t.seed: t.module for t in train(build, batches("train"), loss=loss, config=config, **shared)}
    config = TrainConfig(steps=max(1, c.text_steps // 2), lr=c.lr)
    step = trust.finetuning_step(loss, replace_steps=round(0.6 * c.text_steps / 2))
    plain = train(lambda s: copy.deepcopy(bases[s]), batches("finetune"), loss=loss, config=config, **shared)
    coded = train(with_codes, batches("finetune"), step=step, config=config, **shared)
    return [t.module for t in plain], [t.module for t in coded]


@torch.no_grad()
def _loss(net: nn.Module, rows: Tensor) -> float:
    parts = [float(lm_loss(net, corrupt(part))) * len(part) for part in rows.split(64)]
    return sum(parts) / len(rows)
