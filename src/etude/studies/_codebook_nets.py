"""How the study of codebooks trains its nets: one first training, several fine-tunings on the same batches."""

import copy
from functools import partial
from typing import Any

from torch import Tensor, nn

from etude import trust
from etude.data import TokenMachine, sampled, seeded_build, stream
from etude.data.tasks import Split
from etude.lab.study import Arm, Job
from etude.layers import DecoderConfig, DecoderLM
from etude.training import TrainConfig, corrupt, lm_loss, train
from etude.trust import CodebookModel, codebook

MLP, HEADS = "*.ffn", "*.mixer.merged"
LARGE_ARMS = {  # where `many_codes` and `scratch` ask for them
    **{f"codebook_k{k}_many": Arm(f"k = {k} of a larger codebook", role="ablation", derived=True) for k in (1, 4, 16)},
    "codebook_scratch": Arm("one code, trained with codebooks from the start", role="ablation", derived=True),
}


def train_nets(job: Job, machines: dict[int, TokenMachine]) -> dict[str, list[nn.Module]]:
    """For each arm its nets, one a seed: trained once, then fine-tuned without codes and with k of them."""
    c = job.config
    width = machines[job.seeds[0]].digits * c.length + 1

    def batches(name: str) -> Any:
        def draw(seed: int) -> Any:
            return sampled(
                lambda _, t: Split(machines[seed].sample(c.batch_size, width, stream(seed, name, t)).symbols)
            )

        return draw

    def build(seed: int) -> nn.Module:
        return DecoderLM(
            DecoderConfig(
                num_layers=c.num_layers, hidden_dim=c.hidden_dim, num_heads=c.num_heads, vocab_size=11, position="rope",
                max_length=width, tie=False, placement="parallel",
            )
        )  # fmt: skip

    def loss(net: nn.Module, batch: Split) -> Tensor:
        return lm_loss(net, corrupt(batch.x))

    config = TrainConfig(steps=c.steps, lr=c.lr, batch_size=c.batch_size)
    shared: dict[str, Any] = {"seeds": job.seeds, "device": job.device}
    first = train(build, batches("train"), loss=loss, config=config, **shared)
    bases = {t.seed: t.module for t in first}
    config = TrainConfig(steps=c.finetune_steps, lr=c.lr, batch_size=c.batch_size)
    more = batches("finetune")

    def with_codes(net: nn.Module, seed: int, k: int, num_codes: int = c.num_codes) -> CodebookModel:
        start = machines[seed].sample(c.test_rows, width, stream(seed, "start")).symbols.to(job.device)
        cb = codebook.wrap(
            net, [MLP, HEADS], num_codes, k, groups={HEADS: c.num_heads}, dead_after=c.dead_after, example=start[:1]
        )
        cb.initialize([start], generator=stream(seed, "codes"))
        return cb

    def coded(seed: int, k: int, num_codes: int = c.num_codes) -> CodebookModel:
        return with_codes(copy.deepcopy(bases[seed]), seed, k, num_codes)

    found = {"plain": train(lambda s: copy.deepcopy(bases[s]), more, loss=loss, config=config, **shared)}
    step = trust.finetuning_step(loss, replace_steps=round(0.6 * c.finetune_steps))
    for k in c.ks:
        start = partial(coded, k=k)
        found[f"codebook_k{k}"] = train(start, more, step=step, config=config, **shared)
        if c.many_codes is not None:
            start = partial(coded, k=k, num_codes=c.many_codes)
            found[f"codebook_k{k}_many"] = train(start, more, step=step, config=config, **shared)
    if c.scratch:
        whole = TrainConfig(steps=c.steps + c.finetune_steps, lr=c.lr, batch_size=c.batch_size)
        fill = trust.finetuning_step(loss, replace_steps=round(0.6 * (c.steps + c.finetune_steps)))
        found["codebook_scratch"] = train(
            lambda s: with_codes(build(s), s, 1), batches("train"), step=fill, config=whole, **shared
        )
    nets = {arm: [t.module for t in trained] for arm, trained in found.items()}
    fresh = [seeded_build(lambda s=s: build(s), stream(s, "init")).to(job.device) for s in job.seeds]  # type: ignore[misc]
    nets["codebook_untrained"] = [with_codes(n, s, 1).eval() for n, s in zip(fresh, job.seeds, strict=True)]
    return nets
