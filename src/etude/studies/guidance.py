"""Guidance: does pulling a net's layers towards a frozen guide's train what does not train by itself?

Each protocol is one target with one guide; arms differ in what is added to the task's loss.
"""

from collections.abc import Iterator
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import nn

from etude.data.randomness import seeded_build, stream
from etude.data.tasks import Split
from etude.errors import StudyError
from etude.lab.study import Arm, Artifact, Job, Measurement, Plot, Results, Study, StudyConfig
from etude.studies._guidance_plots import guidance_plots
from etude.studies._guidance_problems import Problem, problem
from etude.studies._guidance_training import CNN, FCN, guide_of, mean, train_targets
from etude.training import cka_matrix, error_consistency


class GuidanceConfig(StudyConfig):
    """Lengths are updates; Adam at 1e-3 for targets."""

    protocols: tuple[str, ...] = (FCN, CNN, "copy")
    """Also "wide_fcn" and "parity"."""
    batch_size: PositiveInt = 64
    """Rows of a batch of "plain_cnn" and "copy"; 128 elsewhere, 64 for "parity"."""
    train_rows: PositiveInt = 4000
    fcn_depth: PositiveInt = 10
    fcn_width: PositiveInt = 100
    fcn_guide: Literal["strided", "resnet"] = "strided"
    """Of "deep_fcn" and "wide_fcn": three strided convolutions, or a residual net of 20 layers."""
    fcn_steps: PositiveInt = 800
    fcn_guide_steps: PositiveInt = 2000
    cnn_depth: PositiveInt = 24
    cnn_steps: PositiveInt = 400
    cnn_guide_steps: PositiveInt = 400
    copy_length: PositiveInt = 12
    copy_longest: PositiveInt | None = None
    """If longer than `copy_length`: each batch has a length between the two, and the test this one."""
    copy_symbols: PositiveInt = 8
    copy_layers: PositiveInt = 2
    copy_width: PositiveInt = 64
    copy_steps: PositiveInt = 800
    copy_guide_steps: PositiveInt = 500
    parity_length: PositiveInt = 20
    parity_steps: PositiveInt = 3000
    alpha: PositiveFloat = 1.0
    """Weight of the alignment; "plain_cnn", of many pairs, has its own."""
    cnn_alpha: PositiveFloat = 0.1
    early_share: float = Field(0.25, gt=0, le=1)
    """Share of the updates that the arms that stop early are guided in."""
    temperature: PositiveFloat = 4.0
    """Of logit distillation."""


class GuidanceStudy(Study):
    """Accuracy with a trained, an untrained, a like and a shuffled guide, and with distillation."""

    configs: ClassVar = {
        "quick": GuidanceConfig(
            n_seeds=3, protocols=(CNN,), train_rows=1000, cnn_depth=12, cnn_steps=60, cnn_guide_steps=150,
        ),
        "laptop": GuidanceConfig(),
        "gpu": GuidanceConfig(
            protocols=(FCN, CNN, "copy", "parity"), train_rows=60_000, fcn_depth=20, fcn_width=1024,
            fcn_guide="resnet", fcn_steps=5000, cnn_depth=32, cnn_steps=3000, cnn_guide_steps=3000, copy_length=20,
            copy_longest=40, copy_symbols=10, copy_layers=4, copy_width=512, copy_steps=5000, copy_guide_steps=3000,
            batch_size=256,
        ),
    }  # fmt: skip
    arms: ClassVar = {
        "unguided": Arm("the target alone", role="baseline"),
        "trained_guide": Arm("a guide trained on the same data"),
        "untrained_guide": Arm("the guide's architecture, not trained"),
        "untrained_same_guide": Arm("an untrained net of the target's own kind", role="ablation", protocols=(FCN,)),
        "distillation": Arm("logits of the trained guide", role="baseline", protocols=(FCN, CNN)),
        "early_stop_trained": Arm("trained guide for the first quarter", protocols=(FCN, CNN)),
        "early_stop_untrained": Arm("untrained guide for the first quarter", protocols=(FCN,)),
        "shuffled_guide": Arm("the trained guide sees a permuted batch", role="control"),
    }
    kinds: ClassVar = ("images", "table")

    def task(self, protocol: str, config: GuidanceConfig) -> Any:
        """Nothing: every protocol generates its data by seed."""
        return None

    def measure(self, job: Job) -> Iterator[Measurement | Artifact]:
        """Train the target, score it, and compare its errors and layers with the guide's."""
        p = problem(job.protocol, job.config, job.task)
        name = FCN if job.protocol == "user" else job.protocol
        accuracy = f"token_accuracy_{name}" if name == "copy" else f"accuracy_{name}"
        for seed, done, guidance in train_targets(job, p):
            rows = p.test(seed).to(job.device)
            right = p.correct(done.module, rows)
            yield Measurement(job.arm, seed, accuracy, 100 * mean(right), "points")
            for point in done.curve:
                for key, unit in (("loss", "1"), ("val_loss", "1"), ("metric", "points")):
                    yield Measurement(job.arm, seed, f"curve_{key}", point[key], unit, point["step"])
            guide = guide_of(job, p, seed, "trained_guide")
            guides = p.correct(guide, rows)
            if name not in ("copy", "parity"):  # there the guide makes no errors
                yield Measurement(job.arm, seed, f"error_kappa_{name}", error_consistency(right, guides))
            if job.arm == "unguided":
                yield Measurement(job.arm, seed, "guide_accuracy", 100 * mean(guides), "points")
                if job.protocol != "user" and mean(guides) <= mean(right):
                    raise StudyError(
                        f"{job.protocol}: the guide scores {mean(guides):.3f}, its target alone {mean(right):.3f}: "
                        "it has nothing to hand over, so the study is broken"
                    )
            if isinstance(seen := p.data(seed), Split):
                scored = {"train": 100 * mean(p.correct(done.module, seen.to(job.device))), "test": 100 * mean(right)}
                yield Artifact(job.arm, seed, "fit", [{"rows": k, "value": round(v, 2)} for k, v in scored.items()])
            if guidance is not None:
                report = guidance.report()
                ends = zip(report.pairs, report.similarity[-20:].mean(0).tolist(), strict=True)
                yield Artifact(
                    job.arm, seed, "pairs", [{"pair": f"{t} - {g}", "value": round(v, 4)} for (t, g), v in ends]
                )
                yield Measurement(job.arm, seed, "final_similarity", float(report.similarity[-20:].mean()))
                yield Measurement(job.arm, seed, "alignment_share", float(report.share[-20:].mean()))
            if job.arm in ("unguided", "trained_guide") and seed == job.config.seeds[0]:
                yield from _heat(job, p, seed, done.module, guide, rows.x[:128])

    def plots(self, results: Results) -> list[Plot]:
        """Accuracy by arm and its gap to the training rows, curves, and CKA of layers before and after."""
        return guidance_plots(results, list(self.arms))


def _heat(job: Job, p: Problem, seed: int, net: nn.Module, guide: nn.Module, x: torch.Tensor) -> Iterator[Artifact]:
    """CKA of every layer of the target with every layer of the trained guide, before and after training."""
    start = seeded_build(p.target, stream(seed, "init")).to(job.device)
    for when, model in (("before", start), ("after", net)):
        if when == "before" and job.arm != "unguided":
            continue
        found = cka_matrix(model, guide, [x])
        cells: list[Any] = [
            {"target": i, "guide": j, "cka": round(float(v), 3), "when": f"{when}, {job.arm}"}
            for (i, j), v in np.ndenumerate(found.values.cpu().numpy())
        ]
        yield Artifact(job.arm, seed, f"layers_{when}", cells)
