"""How the study of recurrent sparsity prunes one kind of cell, and sums up over the kinds."""

import copy
from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from etude.compression.pruning import prepared
from etude.compression.sparsity import PARTS
from etude.data import Task, seeded_build, stream
from etude.lab.study import Job, Measurement
from etude.layers.masks import apply_masks
from etude.studies._sparsity_nets import accuracy, classifier, string_loss
from etude.training import TrainConfig, train

GROUPS = {
    "": ("tanh", "relu", "gru", "lstm"),
    "_gated": ("gru", "lstm"),
    "_plain": ("tanh", "relu"),
    "_recovering": ("relu", "gru", "lstm"),
}
NAMED = {  # arms of the claims: part and share removed; pruned_input_80 removes 70 % from ReLU
    "pruned_both_40": ("both", 0.4), "pruned_both_60": ("both", 0.6), "pruned_both_65": ("both", 0.65),
    "pruned_both_90": ("both", 0.9), "pruned_input_70": ("input", 0.7), "pruned_input_80": ("input", 0.8),
    "pruned_recurrent_70": ("recurrent", 0.7), "no_input": ("input", 1.0),
}  # fmt: skip
RETRAINED = {"pruned_both_90_retrained": ("both", 0.9), "no_recurrent_retrained": ("recurrent", 1.0)}
AMOUNTS = (0.4, 0.6, 0.65, 0.7, 0.8, 0.9, 0.95, 1.0)


def prune_cell(
    job: Job, cell: str, tasks: Mapping[int, Task], scores: dict[tuple[int, str], dict[str, float]]
) -> Iterator[Measurement]:
    """One kind of cell: whole, pruned by every amount, retrained."""
    c = job.config

    def build(seed: int) -> nn.Module:
        return classifier(cell, c, tasks[seed].num_classes)

    common: dict[str, Any] = dict(loss=string_loss, seeds=job.seeds, device=job.device)
    fit = dict(batch_size=c.batch_size, lr=c.lr, clip_norm=5.0)
    nets = train(build, lambda s: tasks[s].train, config=TrainConfig(epochs=c.epochs, **fit), **common)
    pruned: dict[str, dict[int, nn.Module]] = {arm: {} for arm in RETRAINED}
    for done in nets:
        seed, test = done.seed, tasks[done.seed].test
        assert test is not None
        raw = seeded_build(lambda seed=seed: build(seed), stream(seed, "init"))  # type: ignore[misc]
        scores.setdefault((seed, "dense"), {})[cell] = accuracy(done.module, test)
        scores.setdefault((seed, "untrained"), {})[cell] = accuracy(raw, test)
        for part, targets in PARTS.items():
            ranked, curve = prepared(done.module, targets), {0.0: scores[seed, "dense"][cell]}
            for amount in AMOUNTS:
                net = copy.deepcopy(done.module)
                apply_masks(net, ranked.masks(amount))
                curve[amount] = accuracy(net, test)
                for arm in [a for a, what in RETRAINED.items() if what == (part, amount)]:
                    pruned[arm][seed] = net
            for amount, value in curve.items():
                yield Measurement("dense", seed, f"accuracy_{cell}_{part}", value, "points", step=amount)
            for arm, (which, amount) in NAMED.items():
                if which == part:
                    amount = 0.7 if (arm, cell) == ("pruned_input_80", "relu") else amount
                    scores.setdefault((seed, arm), {})[cell] = curve[amount]
    retraining = TrainConfig(steps=c.retrain_steps, eval_every=max(1, c.retrain_steps // 4), **fit)
    for arm, by_seed in pruned.items():
        again = train(
            lambda s, nets=by_seed: copy.deepcopy(nets[s]), lambda s: tasks[s].train,  # type: ignore[misc]
            config=retraining,
            val=lambda s: tasks[s].test, metric=accuracy, **common,
        )  # fmt: skip
        for done in again:
            test = tasks[done.seed].test
            assert test is not None
            scores.setdefault((done.seed, arm), {})[cell] = accuracy(done.module, test)
            yield Measurement(arm, done.seed, f"retraining_{cell}", accuracy(by_seed[done.seed], test), "points", 0.0)
            for point in done.curve:
                yield Measurement(arm, done.seed, f"retraining_{cell}", point["metric"], "points", point["step"])


def summary(arm: str, seed: int, by_cell: Mapping[str, float], dense: Mapping[str, float]) -> Iterator[Measurement]:
    """Accuracy by kind of cell, and mean and worst change of the groups of cells that the claims name."""
    for cell, value in by_cell.items():
        yield Measurement(arm, seed, f"accuracy_{cell}", value, "points")
    for suffix, cells in GROUPS.items():
        mean = sum(by_cell[cell] for cell in cells) / len(cells)
        worst = min(by_cell[cell] - dense[cell] for cell in cells)
        yield Measurement(arm, seed, "mean_accuracy" if not suffix else f"accuracy{suffix}", mean, "points")
        yield Measurement(arm, seed, f"worst_accuracy_change{suffix}", worst, "points")
