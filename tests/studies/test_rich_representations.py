"""The study at the quick tier shows what it must, its controls lose, and it takes the user's table."""

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from etude.data.images import ImageSet
from etude.data.randomness import stream
from etude.data.tasks import Split
from etude.errors import DataError
from etude.lab.jobs import UserData
from etude.lab.runner import run_study
from etude.lab.study import Job
from etude.studies._rich_nets import Form, ensemble, make_net, nets_of
from etude.studies._rich_problems import _few, five_shot, reduced, scores, transfer
from etude.studies.rich_representations import RichConfig, RichStudy
from etude.training import TrainConfig, train

EXTRA = ("cat5", "cat10", "logit_ensemble5")


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    return run_study("rich-representations", ledger=tmp_path_factory.mktemp("ledger") / "l.sqlite", jobs=1)


def mean(result, arm, metric):
    return np.mean([r["value"] for r in result.rows if r["arm"] == arm and r["metric"] == metric])


def test_every_claim_is_measured(result):
    assert result.errors == []
    assert {v.claim for v in result.verdicts} == {"R1", "R2", "R2b", "R2c", "R3", "R4", "R4b", "R4c", "R5", "R6", "R7"}
    assert all(v.n == 3 for v in result.verdicts)


def test_joined_nets_know_more_and_copies_do_not(result):
    probe = "target_probe_accuracy"
    assert mean(result, "cat5", probe) > mean(result, "single", probe) + 1
    assert mean(result, "cat5", probe) > mean(result, "five_copies", probe) + 1
    assert mean(result, "cat5", "effective_rank") > mean(result, "single", "effective_rank") + 5
    assert mean(result, "five_copies", "effective_rank") == pytest.approx(mean(result, "single", "effective_rank"))
    assert mean(result, "random_features_p8", "source_accuracy") < mean(result, "cat5_p8", "source_accuracy") - 2


@pytest.mark.parametrize("protocol", ["digits", "blocks"])
def test_ten_nets_and_the_ensemble_are_measured_wherever_five_joined_ones_are(result, protocol):
    found = {a: {r["metric"] for r in result.rows if (r["arm"], r["protocol"]) == (a, protocol)} for a in EXTRA}
    five = found.pop("cat5") - {"cka_between_members"}
    assert five <= found["cat10"]
    assert five - {"probe_by_nets", "probe_by_features"} <= found["logit_ensemble5"]
    assert {m for m in found["cat10"] if m.endswith("head_accuracy")} >= {"source_head_accuracy"}


def test_ten_nets_are_five_and_five_others_and_the_ensemble_knows_its_classes_only(result):
    curve = {(r["arm"], r["step"]) for r in result.rows if r["metric"] == "probe_by_nets"}
    assert curve == {*(("cat5", n) for n in range(1, 6)), ("cat10", 10)}
    assert mean(result, "cat10", "effective_rank") > mean(result, "cat5", "effective_rank") + 2
    probe = "target_probe_accuracy"
    assert mean(result, "cat10", probe) > mean(result, "single", probe) + 1
    assert mean(result, "cat5", probe) > mean(result, "logit_ensemble5", probe) + 1
    head = "source_head_accuracy"
    assert mean(result, "logit_ensemble5", head) > mean(result, "single", head) - 1
    assert mean(result, "logit_ensemble5", "effective_rank") <= 5


def test_the_ensemble_of_logits_is_the_mean_of_its_nets():
    study = RichStudy()
    config = study.configs["quick"].model_copy(update={"steps": 5})
    data = transfer("blocks", None, 3, config)
    job = Job("blocks", "cat10", (3,), config, None)
    ten, five = (nets_of(job, data, 3, arm, n) for arm, n in (("cat10", 10), ("cat5", 5)))
    assert ten[:5] == five
    assert len({n[0].weight[0, 0].item() for n in ten}) == 10
    x = data.source.x[:7]
    assert torch.allclose(ensemble(five)(x), torch.stack([n(x) for n in five]).mean(0), atol=1e-6)
    (wide,) = nets_of(job, data, 3, "wide5", 1)
    assert torch.allclose(ensemble([wide])(x), wide(x), atol=1e-6)


def test_splits_do_not_overlap_and_the_blocks_are_what_they_say():
    data = transfer("mnist1d", None, 3, RichConfig(signal_rows=500))
    assert data.source.x.shape[1] == 40
    assert set(data.target.y.tolist()) == {0, 1, 2, 3, 4}
    assert not {tuple(r) for r in data.target.x.tolist()} & {tuple(r) for r in data.target_test.x.tolist()}
    assert torch.bincount(data.target.y).max() - torch.bincount(data.target.y).min() <= 5
    blocks = transfer("blocks", None, 3, RichConfig(block_rows=4000))
    x = blocks.source.x.view(-1, 6, 5)
    agree = ((x[:, :, 0] * x[:, :, 1] > 0) == (blocks.source.y[:, None] == 1)).float().mean(0)
    assert torch.allclose(agree, torch.full((6,), 0.92), atol=0.02)
    x = blocks.shifted.x.view(-1, 6, 5)
    agree = ((x[:, :, 0] * x[:, :, 1] > 0) == (blocks.shifted.y[:, None] == 1)).float().mean()
    assert float(agree) == pytest.approx((2 * 0.92 + 4 * 0.5) / 6, abs=0.02)


def test_five_shot_of_perfect_and_of_useless_features():
    y = torch.arange(200) % 5
    perfect = torch.nn.functional.one_hot(y).float()
    assert five_shot(perfect, y, stream(0, "e")) == 100
    assert five_shot(torch.randn(200, 8, generator=stream(0, "x")), y, stream(0, "e")) == pytest.approx(20, abs=4)
    few, rest = _few(data := Split(perfect, y), 10, stream(0, "l"))
    assert torch.bincount(few.y).tolist() == [10] * 5
    assert few.n + rest.n == data.n


def test_five_shot_episodes_of_many_classes_have_five_of_them():
    y = torch.arange(600) % 20
    useless = torch.randn(600, 8, generator=stream(0, "x"))
    assert five_shot(useless, y, stream(0, "e")) == pytest.approx(20, abs=4)  # not 5, as it were of twenty
    assert five_shot(torch.nn.functional.one_hot(y).float(), y, stream(0, "e")) == 100


def test_a_rare_class_takes_no_part_in_five_shot_episodes():
    y = torch.cat([torch.arange(60) % 3, torch.full((3,), 3)])
    rows = torch.nn.functional.one_hot(y).float()
    rows[-3:] = rows[:3]  # as one of three it would be mistaken
    assert five_shot(rows, y, stream(0, "e")) == 100
    with pytest.raises(DataError, match="1 of the 2 classes .* six rows"):
        five_shot(rows[:23], torch.cat([torch.zeros(20), torch.ones(3)]).long(), stream(0, "e"))


def test_a_representation_that_has_died_is_scored():
    data = transfer("mnist1d", None, 3, RichConfig(signal_rows=200))
    found = scores(lambda x: torch.zeros(len(x), 4), data, 3, RichConfig(strengths=(1.0,)))
    assert found["effective_rank"] == 0
    assert found["target_probe_accuracy"] == pytest.approx(20, abs=6)


def test_many_classes_are_drawn_and_half_of_them_are_new():
    x = torch.arange(40 * 30).view(-1, 1, 1, 1).expand(-1, 1, 2, 3) / 1200
    images = ImageSet(x, torch.arange(40).repeat_interleave(30), tuple(map(str, range(40))), "made up")
    data = [transfer("omniglot", images, seed, RichConfig(classes=10, labels=5)) for seed in (3, 3, 4)]
    drawn = []
    for d in data:
        assert d.classes == 5
        assert d.shape == (1, 2, 3)
        origin = {
            (part, int(c)): {int(v * 1200 + 0.5) // 30 for v in rows.x[rows.y == c][:, 0]}
            for part, rows in (("source", d.source), ("source", d.source_test), ("target", d.target))
            for c in rows.y.unique()
        }
        assert all(len(o) == 1 for o in origin.values())  # a class is one class of the set, in every part
        drawn.append({k: next(iter(o)) for k, o in origin.items()})
        assert len(set(drawn[-1].values())) == 10
        assert torch.bincount(d.target.y).tolist() == [5] * 5
    assert drawn[0] == drawn[1] != drawn[2]
    assert transfer("omniglot", images, 3, RichConfig()).classes == 20


def test_the_gpu_tier_has_residual_nets_and_runs():
    gpu = RichStudy.configs["gpu"]
    assert (gpu.n_seeds, gpu.net, gpu.classes, gpu.signal_rows) == (10, "resnet", 100, 50_000)
    tiny = gpu.model_copy(
        update=dict(classes=8, depth=8, hidden_size=2, features=4, steps=5, tune_steps=1, strengths=(1.0,), labels=6)
    )
    shape, g = (3, 5, 4), stream(0, "images")
    images = ImageSet(
        torch.rand(12 * 20, *shape, generator=g), torch.arange(12).repeat(20), tuple("abcdefghijkl"), "made up"
    )
    study, sizes = RichStudy(), {}
    data = transfer("omniglot", images, 1000, tiny)
    assert data.shape == shape
    for arm in ("single", "wide5", "deep", "snapshots5", "distill5", "two_stage"):
        found = list(study.measure(Job("omniglot", arm, (1000,), tiny, images)))
        assert {m.arm for m in found} == {arm}
        if arm in ("single", "wide5", "deep"):
            (net,) = nets_of(Job("omniglot", arm, (1000,), tiny, images), data, 1000, arm, 1)
            assert any(isinstance(m, torch.nn.Conv2d) for m in net.modules())
            sizes[arm] = sum(p.numel() for p in net.parameters())
            assert net[-1].in_features == 4 * (5 if arm == "wide5" else 1)
    assert 3 < sizes["wide5"] / sizes["single"] < 8
    assert sizes["deep"] > sizes["single"] * 1.5
    signals = tiny.model_copy(update={"signal_rows": 200})
    found = list(study.measure(Job("mnist1d", "cat5", (1000,), signals, None)))
    assert "shifted_accuracy" in {getattr(m, "metric", "") for m in found}


def test_residual_nets_of_five_seeds_are_the_same_together_and_one_by_one():
    tiny = RichStudy.configs["gpu"].model_copy(
        update=dict(depth=8, hidden_size=4, features=4, steps=4, signal_rows=200)
    )
    data = transfer("mnist1d", None, 3, tiny)
    together, alone = (
        train(
            lambda s: make_net(tiny, data, Form.of(tiny, "cat5")), Split(data.source.x, data.source.y), seeds=(1, 2),
            loss=lambda net, b: torch.nn.functional.cross_entropy(net(b.x), b.y),
            config=TrainConfig(steps=4, batch_size=64, optimizer="sgd", lr=0.05), plan=plan,
        )
        for plan in ("vmap", "sequential")
    )  # fmt: skip
    for a, b in zip(together, alone, strict=True):
        assert torch.allclose(a.module.eval()(data.source.x), b.module.eval()(data.source.x), atol=1e-4)


def test_a_table_of_the_user(tmp_path):
    rng = np.random.default_rng(0)
    y = rng.integers(0, 4, 240)
    rows = rng.normal(size=(240, 6)) + 2 * np.eye(6)[y]
    lines = ["a,b,c,d,e,f,kind"] + [",".join(f"{v:.3f}" for v in r) + f",k{k}" for r, k in zip(rows, y)]
    (tmp_path / "t.csv").write_text("\n".join(lines))
    result = run_study(
        "rich-representations", ledger=tmp_path / "l.sqlite", jobs=1, settings={"steps": 30, "tune_steps": 10},
        user=UserData(str(tmp_path / "t.csv"), target="kind"),
    )  # fmt: skip
    assert result.errors == []
    assert mean(result, "cat5", "target_probe_accuracy") > 60


def test_main_directions_are_those_of_the_rows_that_the_probe_is_fitted_to():
    few = torch.randn(50, 3, generator=stream(0, "few")) * torch.tensor([9.0, 3.0, 0.1])
    test = torch.randn(40, 3, generator=stream(1, "test")) * torch.tensor([0.1, 3.0, 9.0])
    a, b = reduced(few, test, 2)
    assert a.std(0)[0] > 6
    assert b.std(0)[0] < 3
    assert torch.allclose(reduced(few, test[:7], 2)[1], b[:7])


@pytest.mark.parametrize("change", [{"strengths": ()}, {"strengths": (0,)}, {"lr": -1}, {"weight_decay": -1}])
def test_settings_out_of_bounds_are_refused(change):
    with pytest.raises(ValidationError, match=next(iter(change))):
        RichConfig(**change)
