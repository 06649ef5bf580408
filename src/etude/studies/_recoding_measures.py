"""What the study of recoding measures on trained models."""

from collections.abc import Iterator
from typing import Any

import torch

from etude.data.randomness import stream
from etude.lab.bench import compare
from etude.lab.study import Artifact, Job, Measurement
from etude.studies import _recoding_nets as nets
from etude.studies import _recoding_problems as problems
from etude.studies._recoding_arms import NLL, RANDOM, TESTED
from etude.training import TrainConfig, train

LAGS = 5
TRAINED_WITH = ("dropout", "members", "weight_decay")  # settings that the tests have no use for


def trained(job: Job, tokens: int, *, weight_decay: float = 0.0, **options: Any) -> dict[int, nets.StatefulLM]:
    """A net a seed, made with the recoder's `options`; the members of an ensemble are pulled to their anchors."""
    c, text = job.config, job.task
    ids = text.train[:tokens]

    def batches(seed: int) -> list[problems.Window]:
        return problems.windows(
            ids, c.batch_size, c.bptt, int(torch.randint(len(ids), (), generator=stream(seed, "cut")))
        )

    config = TrainConfig(epochs=c.epochs, lr=c.lr, clip_norm=0.5, weight_decay=weight_decay)
    penalty = (lambda lm: lm.recoder.decoder.penalty(len(ids))) if "members" in options else None
    done = train(
        lambda seed: nets.language_model(text.vocab_size, c, **options), batches, loss=nets.lm_loss,
        config=config, seeds=job.seeds, device=job.device, penalty=penalty,
        plan="sequential",  # a net that carries its state along
    )  # fmt: skip
    return {d.seed: d.module for d in done}


def _draws(job: Job, seed: int) -> torch.Generator:
    number = int(torch.randint(2**31, (), generator=stream(seed, "test")))
    return torch.Generator(job.device).manual_seed(number)


def _windows(job: Job, length: int = problems.WINDOW) -> list[problems.Window]:
    return problems.windows(job.task.test.to(job.device), job.config.test_rows, length)


def test_time(job: Job, seed: int, lm: nets.StatefulLM) -> Iterator[Measurement | Artifact]:
    test = _windows(job)
    plain = nets.read(lm.recoder, test, _draws(job, seed))
    yield from _scores("plain", seed, plain, plain)
    later: dict[str, nets.Reading] = {"plain": plain}
    for arm, options in TESTED.items():
        model = nets.recoded(lm, **options)
        found = nets.read(model, test, _draws(job, seed))
        yield from _scores(arm, seed, found, plain)
        if arm in ("nll_gold_alpha_01", "random_direction_alpha_01"):
            later[arm] = nets.read(model, test, _draws(job, seed), every=LAGS + 1)
        if arm == "nll_gold_alpha_1":
            rows: Any = [plain.nll[0, :24].tolist(), found.nll[0, :24].tolist()]
            yield Artifact(arm, seed, "sentence", [list(problems.sentence(job.task.words, test[0])), *rows])
    for arm, found in later.items():  # a step after every sixth token; the five tokens between see what it left behind
        steps = torch.arange(found.nll.shape[1])
        for lag in range(1, LAGS + 1):
            yield Measurement(
                arm, seed, "later_nll", float(found.nll[:, steps % (LAGS + 1) == lag].mean()), "nats", lag
            )
        yield Measurement(arm, seed, "later_nll", float(found.nll[:, steps % (LAGS + 1) > 0].mean()), "nats")
    moved = nets.dynamic_evaluation(
        lm, job.task.test.to(job.device), job.config.test_rows, 5, job.config.dynamic_lr, seed
    )
    yield Measurement("dynamic_evaluation", seed, "perplexity", moved)
    yield Measurement("dynamic_evaluation", seed, "perplexity_change", 100 * (moved / plain.perplexity - 1), "%")
    yield from _speed(seed, lm, test[:2], _draws(job, seed), job.config.timing_seconds)


def _scores(arm: str, seed: int, found: nets.Reading, plain: nets.Reading) -> Iterator[Measurement]:
    yield Measurement(arm, seed, "perplexity", found.perplexity)
    wrong = found.confidence[~found.right]
    yield Measurement(arm, seed, "confidence_on_errors", 100 * float(wrong.mean()), "points")
    error = 100 * float((found.confidence - found.right.float()).mean())
    yield Measurement(arm, seed, "overconfidence", error, "points")
    if found.before is None or found.after is None:
        return
    yield Measurement(arm, seed, "perplexity_change", 100 * (found.perplexity / plain.perplexity - 1), "%")
    change = found.after - found.before
    yield Measurement(arm, seed, "signal_change", float(change.mean()), "nats")
    yield Measurement(arm, seed, "share_of_steps_lowered", 100 * float((change < 0).float().mean()), "points")
    for name, column in (("signal_before", found.before), ("signal_after", found.after)):
        for t, value in enumerate(column[:, :40].mean(0).tolist()):
            yield Measurement(arm, seed, name, value, "nats", t)


def _speed(
    seed: int, lm: nets.StatefulLM, test: list[problems.Window], draws: torch.Generator, seconds: float
) -> Iterator[Measurement]:
    """Tokens a second against the plain net, the median of turns."""
    plain = nets.recoded(lm, step_size=0.0)
    ours = nets.recoded(lm, track=False, **NLL)
    for arm, model in (("recoder", ours), ("plain_repeat", plain)):
        turn, other = (lambda m=m: nets.read(m, test, draws) for m in (model, plain))
        a, b, *_ = compare(turn, other, min_seconds=seconds)
        ratios = sorted(y / x for x, y in zip(a, b, strict=True))
        yield Measurement(arm, seed, "speed_ratio", ratios[len(ratios) // 2])


def two_by_two(
    job: Job, seed: int, lm: nets.StatefulLM, options: Any, with_name: str, without_name: str
) -> Iterator[Measurement]:
    test, track = _windows(job), {k: v for k, v in options.items() if k not in TRAINED_WITH}
    without = nets.read(nets.recoded(lm, step_size=0.0), test, _draws(job, seed))
    arms: dict[str, Any] = {with_name: track}
    if with_name == "trained_with_tested_with":
        arms["trained_with_random_direction"] = track | RANDOM
    yield Measurement(without_name, seed, "perplexity", without.perplexity)
    yield Measurement(without_name, seed, "perplexity_change", 0.0, "%")
    for name, how in arms.items():
        yield from _scores(name, seed, nets.read(nets.recoded(lm, **how), test, _draws(job, seed)), without)


def garden_path(job: Job) -> Iterator[Measurement]:
    """A small model of the grammar, read with and without recoding where the cue contradicts."""
    c, data = (
        job.config,
        {s: problems.garden_path_windows(job.config.garden_path_strings, 32, s, "garden") for s in job.seeds},
    )
    small = c.model_copy(update={"hidden_size": 32, "num_layers": 1})
    done = train(
        lambda seed: nets.language_model(14, small), lambda seed: data[seed][0], loss=nets.lm_loss,
        config=TrainConfig(epochs=c.epochs, lr=1e-2, clip_norm=0.5), seeds=job.seeds, device=job.device,
        plan="sequential",
    )  # fmt: skip
    for d in done:
        _, test, floor, cue = data[d.seed]
        moved = [w._replace(ids=w.ids.to(job.device), targets=w.targets.to(job.device)) for w in test]
        for arm, options in (("plain", {"step_size": 0.0}), *((a, TESTED[a]) for a in TESTED if "alpha_1" in a)):
            nll = nets.read(nets.recoded(d.module, **options), moved, _draws(job, d.seed)).nll.mean(0)
            yield Measurement(arm, d.seed, "steps_to_recover", problems.steps_to_recover(nll, floor, cue), "steps")
            for t, value in enumerate(nll.tolist()):
                yield Measurement(arm, d.seed, "garden_path_nll", value, "nats", t - cue)
        for t, value in enumerate(floor.tolist()):
            yield Measurement("garden_path", d.seed, "garden_path_nll", value, "nats", t - cue)
