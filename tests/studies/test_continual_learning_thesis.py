"""The quick tier shows the direction, its controls lose, and it takes the user's images."""

import numpy as np
import pytest
import torch

from etude.data import class_stream
from etude.data.images import ImageSet
from etude.data.tasks import Split, Task
from etude.errors import UsageError
from etude.lab.runner import UserData, run_study
from etude.lab.study import Results
from etude.studies import _continual_problems as problems
from etude.studies._continual_tasks import TASKS
from etude.studies.continual_learning_thesis import ContinualConfig, ContinualStudy


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return run_study("continual-learning-thesis", "quick", ledger=tmp_path_factory.mktemp("l") / "l.sqlite", jobs=1)


def mean(run, arm: str, metric: str) -> float:
    found = [r["value"] for r in run.rows if (r["arm"], r["metric"], r["step"]) == (arm, metric, None)]
    assert found, (arm, metric)
    return float(np.mean(found))


@pytest.mark.slow
def test_every_claim_is_measured_and_no_seed_is_lost(run):
    assert run.state in ("done", "broken") and run.errors == []
    assert {v.claim for v in run.verdicts if v.n == 3} == {
        "C1", "C1b", "C1c", "C2", "C3", "C4", "C5", "C6", "C6b", "C6c", "C7", "C7b",
    }  # fmt: skip


@pytest.mark.slow
def test_importance_protects_and_its_place_matters(run):
    forgetting = {arm: mean(run, arm, "average_forgetting") for arm in ("mas", "mas_shuffled", "fine_tune")}
    assert forgetting["mas"] < forgetting["fine_tune"] - 5
    assert forgetting["mas"] < forgetting["mas_shuffled"]
    assert mean(run, "mas", "average_accuracy") > mean(run, "fine_tune", "average_accuracy")


@pytest.mark.slow
def test_memories_and_gates_beat_their_controls(run):
    for arm in ("reservoir", "mir", "gss_greedy"):
        for stream in ("first_task_large", "third_task_large", "balanced_100", "balanced_300"):
            assert mean(run, arm, f"accuracy_{stream}") > mean(run, "single", f"accuracy_{stream}") + 5, (arm, stream)
    chance = 100 / 6
    assert mean(run, "autoencoder_gate", "gate_accuracy") > chance + 30
    assert mean(run, "gate_shuffled_tasks", "gate_accuracy") < chance + 20
    assert mean(run, "classifier_gate", "gate_accuracy") > chance + 30


@pytest.mark.slow
def test_plots_are_drawn(run):
    matrix = [[0.9, None], [0.5, 0.8]]
    extra = [
        {"protocol": "digits", "arm": "mas", "seed": 1000, "name": "matrix", "value": matrix},
        {"protocol": "digits", "arm": "mir", "seed": 1000, "name": "memory", "value": {"balanced_100": [3, 4]}},
        {"protocol": "digits", "arm": "task_free_mas", "seed": 1000, "name": "plateaus",
         "value": {"plateaus": [4], "borders": [14]}},
    ]  # fmt: skip
    names = {p.name for p in ContinualStudy().plots(Results(run.rows, extra))}
    assert names == {"over-time-digits", "accuracy-digits", "memory-digits", "plateaus-digits"}


def test_weights_are_settings() -> None:
    names = {name for settings in TASKS.values() for name in settings} | {"subset_weight", "free_weight"}
    assert names == {n for n in ContinualConfig.model_fields if n.endswith("_weight")}
    for name in names:
        with pytest.raises(ValueError, match=name):
            ContinualConfig(**{name: -1})


def labelled(counts: list[int]) -> Task:
    y = torch.repeat_interleave(torch.tensor(counts))
    rows = Split(torch.arange(len(y)).float()[:, None], y)
    return Task("toy", "images", rows, None, rows, len(counts))


@pytest.mark.parametrize("which,sizes", [("balanced", (40, 40)), ("first", (40, 4)), ("third", (4, 40))])
def test_streams_have_the_sizes_that_are_asked_for(which, sizes) -> None:
    task = labelled([30] * 5)
    found = problems.disjoint(task, 3, 40, 4, which)
    wanted = class_stream(task, (2, 3), seed=3, sizes=sizes, order=range(5))
    assert all(torch.equal(a.rows["train"], b.rows["train"]) for a, b in zip(found, wanted, strict=True))


def test_a_rare_class_gives_what_it_has() -> None:
    found = problems.disjoint(labelled([30, 3, 30, 30]), 0, 40, 1, "first")
    assert [torch.bincount(s.train.y, minlength=4).tolist() for s in found] == [[20, 3, 0, 0], [0, 0, 1, 1]]


def images(*counts: int) -> ImageSet:
    y = torch.repeat_interleave(torch.tensor(counts))
    return ImageSet(torch.rand(len(y), 1, 9, 9, generator=torch.Generator().manual_seed(0)), y, ("a", "b"), "mine")


@pytest.mark.parametrize("counts", [(2, 40), (4, 5)])
def test_too_few_images_are_refused_before_anything_runs(counts) -> None:
    with pytest.raises(ValueError, match=f"{sum(counts)} images of 2 classes, {counts[0]} of 'a', are too few"):
        ContinualStudy().user_task(images(*counts), ContinualStudy.configs["quick"])


def pictures(folder, **counts: int) -> str:
    from PIL import Image

    rng = np.random.default_rng(0)
    for name, n in counts.items():
        (folder / name).mkdir(parents=True)
        for i in range(n):
            Image.fromarray(rng.integers(0, 255, (12, 12), dtype=np.uint8)).save(folder / name / f"{i}.png")
    return str(folder)


@pytest.mark.slow
def test_images_of_the_user(tmp_path) -> None:
    small = {"tasks": 2, "epochs": 1, "gate_epochs": 1, "width": 8, "small_width": 4, "iterations": 1}
    own = UserData(pictures(tmp_path / "pets", cat=12, dog=3, ü=9))
    done = run_study("continual-learning-thesis", ledger=tmp_path / "l.sqlite", jobs=1, user=own, settings=small)
    assert done.errors == [] and {v.claim for v in done.verdicts if v.n == 3} >= {"C1", "C2", "C3", "C5", "C6", "C7b"}
    few = UserData(pictures(tmp_path / "few", cat=3, dog=3))
    with pytest.raises(UsageError, match="cannot use .*few: 6 images of 2 classes, 3 of 'cat', are too few"):
        run_study("continual-learning-thesis", ledger=tmp_path / "l.sqlite", jobs=1, user=few, settings=small)
