"""The study at the quick tier: every laptop claim is measured, the control learns nothing inside an episode."""

import json
import os
import warnings

import numpy as np
import pytest
import torch

from etude.data import ImageSet
from etude.errors import UsageError
from etude.lab.jobs import UserData, tickets
from etude.lab.registry import study
from etude.lab.runner import configure, run_study
from etude.lab.study import Job, Results


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    return run_study("fast-slow-memory", ledger=tmp_path_factory.mktemp("ledger") / "l.sqlite", jobs=1)


def values(result, arm, metric):
    rows = [r for r in result.rows if (r["arm"], r["metric"]) == (arm, metric) and r["step"] is None]
    assert len(rows) == 3
    return np.array([r["value"] for r in sorted(rows, key=lambda r: r["seed"])])


def test_every_claim_of_the_laptop_is_measured(result):
    assert result.errors == []
    assert {v.claim for v in result.verdicts} == {"F1", "F2", "F2b", "F3", "F4", "F6", "F7"}


def test_the_control_does_not_learn_inside_an_episode(result):
    for arm in ("plain", "fast"):
        gain = values(result, arm, "accuracy_second") - values(result, "labels_hidden", "accuracy_second")
        assert gain.mean() > 5, arm
    assert values(result, "labels_hidden", "ln_mse_point_10").min() > 0.5


def test_synthetic_gradients_point_along_true_ones(result):
    assert values(result, "fast", "gradient_cosine").min() > 0.1
    for other in ("permuted", "permuted_redraw"):
        assert np.abs(values(result, "fast", f"gradient_cosine_{other}")).max() < 0.15


def test_class_means_are_hard_to_beat(result):
    assert values(result, "prototypes", "accuracy_second").min() > 85
    assert values(result, "label_counter", "accuracy_rarest_second").max() < 30


def test_plots_are_drawn(result):
    writes = {"protocol": "classes", "arm": "fast", "seed": 1000, "name": "writes", "value": [[0.1, 0.2], [0.3, 0.0]]}
    plots = study("fast-slow-memory").plots(Results(result.rows, [writes]))
    assert {p.name for p in plots} == {
        "accuracy-by-presentation-classes", "mse-by-point-sinusoids", "accuracy-by-step-from-switch-classes", "cosine",
        "writes",
    }  # fmt: skip
    assert all(json.dumps(p.spec) for p in plots)


@pytest.mark.parametrize("wrong", [{"items": 3}, {"lr": -1}, {"points": 0}])
def test_settings_that_cannot_run_are_refused(wrong):
    with pytest.raises(UsageError, match=f"setting {next(iter(wrong))} = "):
        configure(study("fast-slow-memory"), "quick", settings=wrong)


def test_a_reused_feedback_and_its_control_are_measured():
    the_study = study("fast-slow-memory")
    config = the_study.configs["quick"].model_copy(update={"steps": 4, "batch_size": 8})
    job = Job("transfer", "feedback_reused", (1,), config, the_study.task("transfer", config))
    found = {m.arm: m.value for m in the_study.measure(job)}
    assert set(found) == {"fast", "feedback_reused", "feedback_permuted"}
    assert all(1 <= v <= 5 for v in found.values())


@pytest.mark.skipif("ETUDE_DATA" not in os.environ, reason="optional: ETUDE_DATA is not set")
def test_characters_of_omniglot_are_measured():
    """Tiny, since the claim is one of the gpu tier."""
    the_study = study("fast-slow-memory")
    small = {"steps": 2, "batch_size": 2, "test_episodes": 4, "channels": 4, "omniglot_items": 20}
    config = the_study.configs["quick"].model_copy(update=small)
    task = the_study.task("omniglot", config)
    for arm in ("fast", "plain", "labels_hidden", "prototypes"):
        found = {m.metric: m.value for m in the_study.measure(Job("omniglot", arm, (1,), config, task))}
        assert 0 <= found["omniglot_accuracy_fifth"] <= 100, arm


def test_the_users_images_become_episodes():
    the_study = study("fast-slow-memory")
    config = the_study.configs["quick"].model_copy(
        update={"steps": 2, "batch_size": 4, "test_episodes": 20, "channels": 4}
    )
    y = torch.arange(8).repeat_interleave(6)
    x = torch.rand(48, 1, 16, 16, generator=torch.Generator().manual_seed(0)) + y[:, None, None, None] / 8
    task = the_study.user_task(ImageSet(x, y, tuple("abcdefgh"), "mine"), config)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for arm in ("fast", "prototypes", "maml_1"):
            found = list(the_study.measure(Job("user", arm, (1,), config, task)))
            assert {m.metric for m in found} >= {"accuracy_second", "accuracy_by_presentation"}
    with pytest.raises(ValueError, match="has 4 classes and needs 6: half"):
        the_study.user_task(ImageSet(x[:24], y[:24], tuple("abcd"), "few"), config)


def test_every_job_on_the_users_images_brings_numbers():
    """Reusing a feedback from sinusoids is no question to images: its job brought nothing, which broke the run."""
    the_study = study("fast-slow-memory")
    config = the_study.configs["quick"].model_copy(
        update={"steps": 1, "batch_size": 2, "test_episodes": 4, "channels": 4, "n_seeds": 3}
    )
    y = torch.arange(6).repeat_interleave(4)
    x = torch.rand(24, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    task = the_study.user_task(ImageSet(x, y, tuple("abcdef"), "mine"), config)
    arms = {t.arm for t in tickets(the_study, config, "quick", user=UserData("photos"))}
    assert "fast" in arms and "feedback_reused" not in arms
    for arm in arms:
        assert list(the_study.measure(Job("user", arm, (1,), config, task))), arm
