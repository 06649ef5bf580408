"""Masks by score, on any weight, permanent when asked for; beside torch.nn.utils.prune."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import prune as torch_prune

from etude.data.randomness import seeded_build, stream
from etude.layers.masks import (
    apply_masks,
    current_masks,
    make_permanent,
    mask_by_rank,
    mask_by_score,
    rank_scores,
    weight_names,
)
from etude.layers.recurrent import LSTM
from etude.layers.surgery import TargetError


def lstm(seed=0):
    return seeded_build(lambda: LSTM(3, 5, num_layers=2, batch_first=True), stream(seed, "init"))


def weights(net):
    return {n: p for n, p in net.named_parameters() if n.startswith("weight")}


@given(amount=st.floats(0, 1), seed=st.integers(0, 99), scope=st.sampled_from(["global", "layer"]))
@settings(max_examples=30, deadline=None)
def test_exactly_the_rounded_share_goes_and_it_is_the_lowest(amount, seed, scope):
    g = stream(seed, "scores")
    scores = {"a": torch.rand(4, 7, generator=g), "b": torch.rand(11, generator=g)}
    masks = mask_by_score(scores, amount, scope)
    groups = [["a", "b"]] if scope == "global" else [["a"], ["b"]]
    for names in groups:
        s = torch.cat([scores[n].flatten() for n in names])
        m = torch.cat([masks[n].flatten() for n in names])
        assert int((~m).sum()) == round(amount * len(s))
        if m.any() and (~m).any():
            assert s[~m].max() < s[m].min()


@pytest.mark.parametrize("amount", [0.0, 0.1, 0.37, 0.8, 1.0])
def test_identical_to_torch_prune(amount):
    ours, peer = lstm(), lstm()
    apply_masks(ours, mask_by_score({n: p.abs() for n, p in weights(ours).items()}, amount))
    names = [(peer, n) for n in weights(peer)]
    torch_prune.global_unstructured(names, torch_prune.L1Unstructured, amount=amount)
    for name, mask in current_masks(ours).items():
        assert torch.equal(mask, getattr(peer, f"{name}_mask").bool())
    x = torch.randn(2, 6, 3, generator=stream(0, "x"))
    assert torch.allclose(ours(x)[0], peer(x)[0])


def test_ties_go_in_order():
    assert mask_by_score({"w": torch.ones(6)}, 0.5)["w"].tolist() == [False] * 3 + [True] * 3


def test_one_ranking_serves_every_amount():
    scores = {"w": torch.rand(50, generator=stream(0, "s"))}
    ranks = rank_scores(scores)
    for amount in (0.2, 0.6):
        assert torch.equal(mask_by_rank(ranks, amount)["w"], mask_by_score(scores, amount)["w"])


def test_masked_entries_stay_zero_in_training_and_the_others_move():
    net = lstm()
    apply_masks(net, mask_by_score({n: p.abs() for n, p in weights(net).items()}, 0.7))
    before = {n: getattr(net, n).detach().clone() for n in current_masks(net)}
    optimizer = torch.optim.Adam(net.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        net(torch.ones(2, 4, 3))[0].square().sum().backward()
        optimizer.step()
    for name, mask in current_masks(net).items():
        now = getattr(net, name)
        assert bool((now[~mask] == 0).all())
        assert bool((now[mask] != before[name][mask]).all())


def test_copies_are_independent_and_state_holds_the_masks():
    net, x = lstm(), torch.ones(2, 4, 3)
    apply_masks(net, mask_by_score({n: p.abs() for n, p in weights(net).items()}, 0.5))
    y = net(x)[0]  # in a graph: an RNN must not hold on to it
    twin = copy.deepcopy(net)
    make_permanent(twin)
    assert torch.allclose(twin(x)[0], y)
    assert torch.allclose(net(x)[0], y)  # taking the masks off a copy leaves the model as it was
    assert current_masks(net) and not current_masks(twin)
    fresh = lstm(1)
    apply_masks(fresh, {n: torch.ones_like(p) for n, p in weights(fresh).items()})
    fresh.load_state_dict(net.state_dict())
    assert torch.allclose(fresh(x)[0], y)
    assert all(torch.equal(a, b) for a, b in zip(current_masks(net).values(), current_masks(fresh).values()))


def test_permanent_is_a_plain_module_again():
    net, x = lstm(), torch.ones(2, 4, 3)
    report = apply_masks(net, {"weight_hh_l0": torch.zeros(20, 5)})
    assert report.parameters_before - report.parameters_after == 100
    y = net(x)[0]
    make_permanent(net)
    assert type(net) is not None and set(net.state_dict()) == set(lstm().state_dict())
    assert int(net.weight_hh_l0.count_nonzero()) == 0
    assert isinstance(net.weight_hh_l0, nn.Parameter) and torch.equal(net(x)[0], y)
    assert not net._forward_hooks


def test_a_second_mask_keeps_what_both_keep():
    net = nn.Linear(4, 1)
    apply_masks(net, {"weight": torch.tensor([[1, 1, 0, 0]])})
    apply_masks(net, {"weight": torch.tensor([[1, 0, 1, 0]])})
    assert current_masks(net)["weight"].tolist() == [[True, False, False, False]]
    assert weight_names(net) == ["bias", "weight"]


def test_bad_input():
    net = nn.Linear(4, 2)
    with pytest.raises(ValueError, match=r"for 80 % write 0\.8"):
        mask_by_score({"w": torch.ones(3)}, 80)
    for amount in (-0.1, float("nan"), 1.01):
        with pytest.raises(ValueError, match=r"\[0, 1\]"):
            mask_by_score({"w": torch.ones(3)}, amount)
    with pytest.raises(ValueError, match="1 NaN"):
        mask_by_score({"w": torch.tensor([1.0, float("nan")])}, 0.5)
    with pytest.raises(ValueError, match="no scores"):
        mask_by_score({}, 0.5)
    with pytest.raises(ValueError, match="scope"):
        mask_by_score({"w": torch.ones(3)}, 0.5, "network")  # type: ignore[arg-type]
    with pytest.raises(TargetError, match="weight"):
        apply_masks(net, {"wieght": torch.ones(2, 4)})
    with pytest.raises(TargetError, match="no parameter 'running_mean'"):  # a buffer: no report would show its mask
        apply_masks(nn.BatchNorm1d(3), {"running_mean": torch.ones(3)})
    with pytest.raises(ValueError, match=r"\(3, 3\)"):
        apply_masks(net, {"weight": torch.ones(3, 3)})
    assert not current_masks(net)
    with pytest.raises(TargetError, match="prune it first"):
        make_permanent(net)
