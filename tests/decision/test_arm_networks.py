"""Networks of many seeds against one dense network a seed, on block vectors that are built here alone."""

import pytest
import torch
from torch import nn

from etude.data import stream
from etude.decision import ArmNetwork, ModuleArms, arm_networks
from etude.training import per_sample_gradients

S, B, K, D, M = 2, 3, 4, 5, 6


def _case(disjoint):
    g = stream(0, "contexts")
    network = ArmNetwork([3, 8], D, n_arms=K if disjoint else None, hidden_dim=M)
    contexts = torch.randn(S, B, D, generator=g) if disjoint else torch.randn(S, B, K, D, generator=g)
    return network, contexts, torch.randint(K, (S, B), generator=g)


def _dense(network, s):
    """Seed s as an ordinary module that takes block vectors."""
    weight = network.weight[s].detach()  # (d, K or 1, m)
    blocks = weight.shape[1]
    net = nn.Sequential(nn.Linear(blocks * D, M), nn.ReLU(), nn.Linear(M, 1))
    with torch.no_grad():
        net[0].weight.copy_(weight.permute(2, 1, 0).reshape(M, -1))
        net[0].bias.copy_(network.bias[s, 0])
        net[2].weight.copy_(network.out[s].T)
        net[2].bias.copy_(network.out_bias[s, 0])
    return net


def _blocks(contexts, disjoint):
    """(S, B, K, inputs)."""
    return torch.einsum("sbd,kl->sbkld", contexts, torch.eye(K)).flatten(3) if disjoint else contexts


@pytest.mark.parametrize("disjoint", [True, False])
def test_predictions_equal_the_dense_networks(disjoint):
    network, contexts, arms = _case(disjoint)
    expected = torch.stack([_dense(network, s)(_blocks(contexts, disjoint)[s])[..., 0] for s in range(S)])
    torch.testing.assert_close(network.predict(contexts), expected)
    torch.testing.assert_close(network.chosen(contexts, arms), expected.gather(2, arms[..., None])[..., 0])


@pytest.mark.parametrize("disjoint", [True, False])
def test_squared_gradients_equal_those_of_the_dense_networks(disjoint):
    network, contexts, arms = _case(disjoint)
    precision = [torch.rand(p.shape, generator=stream(1, "u")) + 0.5 for p in network.parameters()]
    got = network.squared_gradients(contexts, precision)
    before = [u.clone() for u in precision]
    network.add_precision(contexts, arms, precision)
    for s in range(S):
        dense, rows = _dense(network, s), _blocks(contexts, disjoint)[s]
        g = per_sample_gradients(dense, lambda m, x: m(x).sum(), rows.flatten(0, 1)).square()

        def flat(us, s=s):
            weight, bias, out, out_bias = (u[s] for u in us)
            return torch.cat(
                [weight.permute(2, 1, 0).reshape(-1), bias.reshape(-1), out.reshape(-1), out_bias.reshape(-1)]
            )

        torch.testing.assert_close(got[s].flatten(), (g / flat(before)).sum(1), rtol=1e-4, atol=1e-5)
        taken = g.view(B, K, -1)[torch.arange(B), arms[s]].sum(0)
        torch.testing.assert_close(flat(precision) - flat(before), taken, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("disjoint", [True, False])
def test_a_users_module_gives_the_same(disjoint):
    network, contexts, arms = _case(disjoint)
    wrapped = ModuleArms(_dense(network, 0), n_arms=K if disjoint else None)
    one, one_arms = contexts[:1], arms[:1]
    torch.testing.assert_close(wrapped.predict(one), network.predict(contexts)[:1])
    torch.testing.assert_close(wrapped.chosen(one, one_arms), network.chosen(contexts, arms)[:1])
    mine, theirs = wrapped.start_precision(0.3), network.start_precision(0.3)
    for _ in range(2):
        expected = network.squared_gradients(contexts, theirs)[:1]
        torch.testing.assert_close(wrapped.squared_gradients(one, mine), expected, rtol=1e-4, atol=1e-5)
        wrapped.add_precision(one, one_arms, mine)
        network.add_precision(contexts, arms, theirs)
    assert wrapped.width == M


def test_a_modules_gradients_in_parts_are_those_at_once(monkeypatch):
    network, contexts, arms = _case(False)
    wrapped, found = ModuleArms(_dense(network, 0)), []
    for at_once in (2**24, 1):
        monkeypatch.setattr(arm_networks, "_AT_ONCE", at_once)
        precision = wrapped.start_precision(0.3)
        wrapped.add_precision(contexts[:1], arms[:1], precision)
        found.append((wrapped.squared_gradients(contexts[:1], precision), precision[0]))
    torch.testing.assert_close(found[0], found[1])


def test_a_module_in_half_precision_goes_on_counting():
    wrapped, x, arm = ModuleArms(nn.Linear(1, 1).bfloat16()), torch.ones(1, 500, 1, 1).bfloat16(), torch.zeros(1, 1)
    precision = wrapped.start_precision(0.1)
    for b in range(500):
        wrapped.add_precision(x[:, b : b + 1], arm.long(), precision)
    assert precision[0].tolist() == pytest.approx([500.1, 500.1], rel=1e-5)  # 256 in bfloat16
    assert wrapped.squared_gradients(x[:, :1], precision).item() == pytest.approx(2 / 500.1, rel=1e-5)


def test_a_seeds_weights_do_not_depend_on_the_others():
    both, alone = ArmNetwork([3, 8], D, n_arms=K), ArmNetwork([8], D, n_arms=K)
    for p, q in zip(both.parameters(), alone.parameters(), strict=True):
        assert torch.equal(p[1], q[0])
        assert not torch.equal(p[0], p[1])


def test_the_start_is_that_of_linear_layers():
    network = ArmNetwork(range(50), D, n_arms=K, hidden_dim=M)
    bound = (K * D) ** -0.5
    assert network.weight.abs().max() <= bound
    assert network.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)
    assert network.out.abs().max() <= M**-0.5


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="must be at least 1"):
        ArmNetwork([], D)
    with pytest.raises(ValueError, match=r"must map \(\.\.\., d\) to \(\.\.\., 1\): \(3, 4, 5\) became \(3, 4, 2\)"):
        ModuleArms(nn.Linear(D, 2)).predict(torch.zeros(1, B, K, D))
