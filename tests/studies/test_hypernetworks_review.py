"""The comparison at the quick tier: what conditioning gives on far tasks, and that the problems are what they say."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from etude.data import load_images
from etude.data.randomness import stream
from etude.errors import UsageError
from etude.lab.jobs import UserData
from etude.lab.registry import study
from etude.lab.runner import configure, run_study
from etude.lab.study import Job
from etude.studies._review_nets import WaveNet, per_task_net
from etude.studies._review_problems import OpenSet, TurnedTasks, Waves
from etude.studies._review_runs import open_set


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    return run_study("hypernetworks-review", ledger=tmp_path_factory.mktemp("ledger") / "l.sqlite", jobs=1)


def mean(result, arm, metric="mean_test_accuracy"):
    return np.mean([r["value"] for r in result.rows if (r["arm"], r["metric"]) == (arm, metric)])


def test_every_claim_is_measured(result):
    assert result.errors == []
    assert {v.claim for v in result.verdicts} == {"H1", "H1s", "H1f", "H2", "H2b", "H3", "H3b", "H4"}
    assert all(v.n == 3 for v in result.verdicts)


def test_conditioning_pays_where_tasks_differ(result):
    assert mean(result, "chunk_far") > mean(result, "same_embedding_far") + 3
    assert mean(result, "all_at_once_far") > mean(result, "shared_far") + 5
    assert mean(result, "independent_far") > mean(result, "shared_far") + 5
    assert mean(result, "noise_untrained", "ood_auroc") < mean(result, "noise_hypernetwork", "ood_auroc") - 5
    assert mean(result, "shuffled_condition", "ln_test_mse") > mean(result, "data_conditioned", "ln_test_mse") + 0.2


def test_sizes_follow_the_survey(result):
    assert mean(result, "independent_near", "share_of_parameters") == pytest.approx(1)
    assert mean(result, "shared_near", "share_of_parameters") == pytest.approx(1 / 12)
    share = {k: mean(result, f"{k}_near", "share_of_parameters") for k in ("chunk", "split", "all_at_once")}
    assert share["chunk"] < share["split"] < share["all_at_once"]


def test_tasks_are_turned_and_share_no_training_image():
    data = TurnedTasks.of(load_images("digits"), 3, 90.0, 4, 50, 60)
    assert data.x.shape == (4, 50, 64)
    back = [torch.rot90(x.view(-1, 8, 8), -t, (1, 2)).flatten(1) for t, x in enumerate(data.x)]
    rows = {tuple(r) for x in back for r in x.round(decimals=4).tolist()}
    assert len(rows) >= 195  # the set itself holds a few equal images
    whole = {tuple(r) for r in load_images("digits").x.flatten(1).round(decimals=4).tolist()}
    assert rows <= whole  # turned by quarter turns, and nothing else
    batch = data.draw(7, stream(0, "b"))
    assert batch.x.shape == (4, 7, 64)
    assert batch.y.shape == (4, 7)


def test_a_set_too_small_says_which_setting_fits():
    digits = load_images("digits")
    with pytest.raises(ValueError, match=r"rows=500 asks for 2000 images in 4 tasks, .* 1438: --set rows=359"):
        TurnedTasks.of(digits, 3, 90.0, 4, 500, 60)
    with pytest.raises(ValueError, match=r"test_rows=400 .* 359: --set test_rows=359"):
        TurnedTasks.of(digits, 3, 90.0, 4, 50, 400)
    pair = replace(digits, x=digits.x[digits.y < 3], y=digits.y[digits.y < 3], classes=digits.classes[:3])
    config = study("hypernetworks-review").configs["quick"]
    assert list(open_set(Job("user", "single", (3,), config, pair), 3)) == []


def test_unknown_classes_are_never_trained_on_and_waves_follow_their_formula():
    data = OpenSet.of(load_images("digits"), 3, 100)
    assert data.train.n == 100
    assert int(data.train.y.max()) == data.classes - 1 == 4
    waves = Waves.of(3, 5000, "test")
    c = waves.c
    clean = (0.5 + c[:, :1]) * torch.sin(math.pi * (1 + 3 * c[:, 1:2]) * waves.x + 2 * math.pi * c[:, 2:])
    assert float((waves.y - clean).std()) == pytest.approx(0.05, rel=0.1)


def test_nets_of_the_arms():
    torch.manual_seed(0)
    x = torch.randn(3, 5, 6)
    same = per_task_net("same_embedding", 3, (6, 8, 4))
    out = same(x[:1].expand(3, -1, -1))
    assert torch.allclose(out[0], out[2])
    assert not any(p.requires_grad for p in same.hyper.condition.parameters())
    apart = per_task_net("independent", 3, (6, 8, 4))(x[:1].expand(3, -1, -1))
    assert not torch.allclose(apart[0], apart[2])
    for kind in ("data_conditioned", "concatenation", "concatenation_wide", "film"):
        net, c = WaveNet(kind), torch.rand(7, 3)
        y = net(torch.randn(7, 1), c)
        assert y.shape == (7, 1)
        assert not torch.allclose(net(torch.zeros(7, 1), c)[0], net(torch.zeros(7, 1), c)[1])


def test_images_of_the_user(tmp_path):
    from PIL import Image

    rng = np.random.default_rng(0)
    for k in range(4):
        (tmp_path / "im" / f"k{k}").mkdir(parents=True)
        for i in range(40):
            a = rng.integers(0, 60, (10, 10), dtype=np.uint8)
            a[k * 2 : k * 2 + 3, 1:5] += 180
            Image.fromarray(a).save(tmp_path / "im" / f"k{k}" / f"{i}.png")
    result = run_study(
        "hypernetworks-review", ledger=tmp_path / "l.sqlite", jobs=1, user=UserData(str(tmp_path / "im")),
        settings={"steps": 20, "wave_steps": 5, "wave_rows": 50, "tasks": 3, "rows": 20, "test_rows": 20},
    )  # fmt: skip
    assert result.errors == []
    assert mean(result, "independent_near") > 30


@pytest.mark.parametrize("lr", [-1.0, 0.0])
def test_a_learning_rate_that_cannot_be_right_is_refused(lr):
    with pytest.raises(UsageError, match="setting lr = .* greater than 0"):
        configure(study("hypernetworks-review"), "quick", settings={"lr": lr})
