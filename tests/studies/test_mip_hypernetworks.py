"""The study at the quick tier: sizes of weights and gradients show the effect, and the plots are drawn."""

import numpy as np
import pytest
from PIL import Image

from etude.errors import UsageError
from etude.lab.jobs import UserData
from etude.lab.registry import study
from etude.lab.runner import configure, run_study


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    return run_study("mip-hypernetworks", ledger=tmp_path_factory.mktemp("ledger") / "l.sqlite", jobs=1)


def values(result, arm, metric):
    rows = [r for r in result.rows if (r["arm"], r["metric"]) == (arm, metric) and r["step"] is None]
    return np.array([r["value"] for r in sorted(rows, key=lambda r: r["seed"])])


def test_every_claim_is_measured(result):
    assert result.errors == []
    assert {v.claim for v in result.verdicts} == {"M1", "M1b", "M2", "M3", "M3b", "M3c", "M4", "M5", "M6"}
    assert all(v.n == 3 for v in result.verdicts)


def test_the_default_is_proportional_at_the_start_and_mip_is_not(result):
    assert values(result, "default", "r_squared_at_init").min() > 0.999
    assert values(result, "mip", "cov_of_weight_norm_at_init").max() < 0.05
    assert {v.claim: v.verdict for v in result.verdicts}["M1"] == "holds"


def test_gradients_vary_less_with_mip_and_nothing_but_the_seed_moves_the_reseeded_default(result):
    assert (values(result, "mip", "cov_of_gradient_norm") < values(result, "default", "cov_of_gradient_norm")).all()
    both = (
        values(result, "default", "cov_of_weight_norm_at_init"),
        values(result, "default_reseeded", "cov_of_weight_norm_at_init"),
    )
    assert np.allclose(*both, atol=1e-4)


def test_a_net_that_is_told_the_wrong_condition_is_worse(result):
    for metric in ("ln_test_loss", "ln_test_loss_denoiser"):
        assert (values(result, "mip_shuffled_condition", metric) > values(result, "mip", metric)).all(), metric


def test_images_of_the_user(tmp_path):
    rng = np.random.default_rng(0)
    for k in range(3):
        (tmp_path / "im" / f"k{k}").mkdir(parents=True)
        for i in range(30):
            a = rng.integers(0, 60, (12, 12), dtype=np.uint8)
            a[3 * k : 3 * k + 3, 2:8] += 180
            Image.fromarray(a).save(tmp_path / "im" / f"k{k}" / f"{i}.png")
    short = {
        "steps": 6,
        "steps_sgd": 3,
        "steps_denoiser": 2,
        "steps_cnn": 2,
        "steps_cell": 1,
        "noise_steps": 20,
        "signals": 40,
    }
    result = run_study(
        "mip-hypernetworks", ledger=tmp_path / "l.sqlite", jobs=1, user=UserData(str(tmp_path / "im")), settings=short
    )
    assert result.errors == []
    assert values(result, "default", "r_squared_at_init").min() > 0.999
    assert np.isfinite(values(result, "mip", "ln_test_loss_cnn")).all()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"signals": 3}, "greater than or equal to 4"),
        ({"pool": 3}, "pool=3 leaves 2 x 2 pixels of digits: its convnet needs 5"),
        ({"lr_adam": -1.0}, "greater than 0"),
        ({"lr_sgd": 0.0}, "greater than 0"),
    ],
)
def test_settings_that_cannot_be_right_are_refused(settings, words):
    with pytest.raises(UsageError, match=words):
        configure(study("mip-hypernetworks"), "quick", settings=settings)
