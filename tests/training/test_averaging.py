"""Soups: the mean of weights, whatever holds them, and the greedy choice."""

import math

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from etude.training import GreedySoup, model_soup, reestimate_batchnorm


def line(weight: float) -> nn.Linear:
    net = nn.Linear(1, 1, bias=False)
    nn.init.constant_(net.weight, weight)
    return net


def test_mean_of_modules_states_and_files(tmp_path):
    nets = [nn.Linear(2, 3) for _ in range(3)]
    save_file(nets[2].state_dict(), tmp_path / "c.safetensors")
    mixed = [nets[0], nets[1].state_dict(), tmp_path / "c.safetensors"]
    for name, value in model_soup(mixed).items():
        assert torch.allclose(value, sum(n.state_dict()[name] for n in nets) / 3, atol=1e-7)
    weighted = model_soup([line(1.0), line(4.0)], weights=[2, 1])
    assert weighted["weight"].item() == pytest.approx(2.0)
    assert nets[0].weight.requires_grad


def test_sums_are_taken_in_float32_and_types_kept():
    values = [1.0, 2**-9, 2**-9, 2**-9]  # in bfloat16 each small step is lost
    state = model_soup([{"w": torch.tensor([v], dtype=torch.bfloat16)} for v in values], weights=[1, 1, 1, 1])
    assert state["w"].dtype == torch.bfloat16
    assert state["w"].item() == pytest.approx((1 + 3 * 2**-9) / 4, rel=2**-8)
    double = model_soup([{"w": torch.tensor([1 / 3], dtype=torch.float64)}] * 3)
    assert double["w"].item() == pytest.approx(1 / 3, abs=1e-15)


def test_integer_buffers_are_the_firsts_and_running_statistics_are_measured_anew():
    a, b = nn.BatchNorm1d(1), nn.BatchNorm1d(1)
    a.num_batches_tracked.fill_(7)
    b.running_mean.fill_(4.0)
    state = model_soup([a, b])
    assert int(state["num_batches_tracked"]) == 7
    assert state["running_mean"].item() == 2.0
    x = torch.arange(10.0)[:, None]
    seen = []

    def score(m):
        seen.append(m.running_mean.item())
        return 1.0

    soup = GreedySoup(score, prepare=lambda m: reestimate_batchnorm(m, x)).fit([a, b])
    assert seen[2] == pytest.approx(4.5)
    assert soup.model_.running_mean.item() == pytest.approx(4.5)


def test_greedy_takes_what_helps_in_the_order_of_scores():
    models = [line(4.0), line(9.0), line(1.0), line(2.0)]
    soup = GreedySoup(lambda m: -abs(m.weight.item() - 2.6)).fit(models)
    # best is 2; with 4 the mean is 3, better (0.4 off); with 1 it is 7/3 (0.27 off); with 9 it would be 4
    assert soup.scores_ == pytest.approx([-1.4, -6.4, -1.6, -0.6])
    assert soup.kept_ == [3, 0, 2]
    assert soup.model_.weight.item() == pytest.approx(7 / 3)
    assert soup.score_ == pytest.approx(-abs(7 / 3 - 2.6))
    assert [m.weight.item() for m in models] == [4.0, 9.0, 1.0, 2.0]
    alone = GreedySoup(lambda m: -abs(m.weight.item() - 9)).fit(models)
    assert alone.kept_ == [1]
    assert alone.model_.weight.item() == 9.0


def test_a_model_that_scores_nan_is_left_out():
    with pytest.warns(UserWarning, match="model 1 scores NaN"):
        soup = GreedySoup(lambda m: math.nan if m.weight.item() == 5 else m.weight.item()).fit([line(1.0), line(5.0)])
    assert soup.kept_ == [0]
    with pytest.warns(UserWarning, match="left out"), pytest.raises(ValueError, match="every model scores NaN"):
        GreedySoup(lambda m: math.nan).fit([line(1.0)])


def test_files_need_a_template(tmp_path):
    save_file(line(3.0).state_dict(), tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="give template="):
        GreedySoup(lambda m: 0.0).fit([tmp_path / "a.safetensors"])
    soup = GreedySoup(lambda m: 0.0, template=line(0.0)).fit([tmp_path / "a.safetensors"])
    assert soup.model_.weight.item() == 3.0


def test_what_does_not_fit_is_named():
    with pytest.raises(ValueError, match="no models"):
        model_soup([])
    with pytest.raises(ValueError, match="other tensors than model 0: bias"):
        model_soup([nn.Linear(1, 1, bias=False), nn.Linear(1, 1)])
    with pytest.raises(ValueError, match=r"weight \(1, 2\) instead of \(1, 1\)"):
        model_soup([line(1.0), nn.Linear(2, 1, bias=False)])
    with pytest.raises(ValueError, match="need 2 finite weights"):
        model_soup([line(1.0), line(2.0)], weights=[1.0])
    with pytest.raises(ValueError, match="sum other than 0"):
        model_soup([line(1.0), line(2.0)], weights=[1.0, -1.0])
