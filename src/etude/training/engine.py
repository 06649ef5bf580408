"""`train`: one model or many seeds, under the plan that this machine runs quickest.

Seeds are this module's business, not a loop of the caller. Every plan gives each seed the same
initialisation, data order, noise, schedule, clipping and stopping, so that a seed's result depends neither on the
plan (but for rounding) nor on which other seeds are trained with it.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from etude.layers.modes import gradients_on
from etude.training.config import TrainConfig
from etude.training.feed import as_split, move
from etude.training.plan import CLEARLY, PLANS, run_plan, seconds_per_update
from etude.training.run import Build, Problem, State, Trained
from etude.training.updater import Loss


def train(
    build: Build,
    data: Any,
    *,
    loss: Loss | None = None,
    config: TrainConfig,
    seeds: Sequence[int] = (0,),
    step: Callable[..., Any] | None = None,
    penalty: Callable[[nn.Module], Tensor] | None = None,
    val: Any = None,
    metric: Callable[[nn.Module, Any], float] | None = None,
    callbacks: Sequence[Any] = (),
    plan: str = "auto",
    device: str | torch.device = "cpu",
) -> list[Trained]:
    """Train one model for each seed.

    Parameters
    ----------
    build
        ``build(seed)`` returns a module and runs under ``stream(seed, "init")``. Or a module: trained in
        place for one seed, copied for several.
    data
        A `Split` or an (x, y) pair (shuffled by ``stream(seed, "order")``), a function from seed to
        one, `sampled(draw)` (draws from ``stream(seed, "data")``), or an iterable of batches.
    loss
        ``loss(model, batch)`` returns a scalar or a dictionary of terms whose sum is minimised. A batch has
        the fields of the split (`batch.x`, `batch.y`). Dropout and other draws come from
        ``stream(seed, "noise")``.
    seeds
        Different numbers of at least 0; results come in their order.
    step
        ``step(nets, optimizers, batch, generator)`` replaces the update; see
        `etude.training.updater.StepUpdater`.
    penalty
        ``penalty(model)`` is added to the loss.
    val, metric
        Validation data (or a function from seed to them) and ``metric(model, val)``, a number. Both are
        evaluated at each point of the curve, in eval mode and without gradient.
    callbacks
        Objects with any of ``on_start(state)``, ``on_step(state)``, ``on_eval(state)``, ``on_end(state)``. Under
        worker processes they would act on copies, so only callbacks with ``portable = True`` go there.
    plan
        ``"sequential"``: one seed after another, the reference. ``"processes"``: single-threaded worker
        processes. ``"stacked"``: one `baddbmm` a linear layer for all seeds. ``"vmap"``: `torch.func.vmap`.
        ``"processes+stacked"``, ``"processes+vmap"``: the seeds shared out over workers that batch
        theirs. ``"auto"``: the quickest of those that can run this, by timing a few steps of copies
        (`build`, `data` and `loss` are called for it); never processes inside a worker.

    Returns
    -------
    list[Trained]
        One a seed. A seed that diverges (its loss or its weights are not finite) is kept, with `diverged`.

    Raises
    ------
    ValueError
        For settings or data that do not fit, or a plan that cannot run this; the message says why.
    SeedsFailed
        If a worker died; the seeds that ended are in its `results`.
    """
    seeds = (seeds,) if isinstance(seeds, int) else tuple(int(s) for s in seeds)
    if len(set(seeds)) != len(seeds) or not seeds or min(seeds) < 0:
        raise ValueError(f"seeds must be different numbers of at least 0, at least one, got {seeds}")
    if loss is None and step is None:
        raise ValueError("give a loss, or a step that replaces the update")
    if step is not None and penalty is not None:
        raise ValueError("step replaces the update: add the penalty inside it")
    if config.steps is None and config.epochs is None and config.seconds is None:
        raise ValueError("give the length of the run: steps, epochs or seconds")
    if config.patience is not None and (val is None or (loss is None and metric is None)):
        raise ValueError("patience needs something to compare: give val, and a loss or a metric")
    if metric is not None and val is None:
        raise ValueError("metric needs validation data: give val")
    if plan not in PLANS:
        raise ValueError(f"unknown plan {plan!r}: choose one of {', '.join(PLANS)}")
    for callback in callbacks:
        if not any(hasattr(callback, name) for name in ("on_start", "on_step", "on_eval", "on_end")):
            raise ValueError(f"callback {callback!r} has none of on_start, on_step, on_eval, on_end")
    if isinstance(build, nn.Module) and any(t.is_inference() for t in (*build.parameters(), *build.buffers())):
        raise ValueError(
            "the module was made under torch.inference_mode and cannot learn: make it outside, or give a function that "
            "builds it"
        )
    where = torch.device(device)
    with gradients_on():
        if isinstance(data, tuple):
            data = move(as_split(data), where)  # once for all seeds
        if isinstance(val, tuple):
            val = move(as_split(val), where)
        alone = len(seeds) == 1
        problem = Problem(build, data, loss, config, step, penalty, val, metric, tuple(callbacks), where, alone)
        return run_plan(_resolve(problem, seeds), seeds, plan)


def _resolve(problem: Problem, seeds: tuple[int, ...]) -> Problem:
    """Turn what depends on the machine into numbers: `seconds` into steps, `precision="auto"` into one of both."""
    config = problem.config
    if config.precision == "auto":
        timed = {}
        for precision in ("fp32", "bf16"):
            trial = replace(problem, config=replace(config, precision=precision, **_any_length(config)))
            timed[precision] = seconds_per_update(trial, seeds[0])
        better = timed["bf16"] < CLEARLY * timed["fp32"]
        config = replace(config, precision="bf16" if better else "fp32")
        problem = replace(problem, config=config)
    if config.seconds is not None:
        trial = replace(problem, config=replace(config, **_any_length(config)))
        steps = max(1, round(config.seconds / seconds_per_update(trial, seeds[0])))
        problem = replace(problem, config=replace(config, seconds=None, steps=steps))
    return problem


def _any_length(config: Any) -> dict[str, Any]:
    return {"seconds": None, "steps": config.warmup_steps + 1_000_000} if config.seconds is not None else {}


__all__ = ["State", "TrainConfig", "Trained", "train"]
