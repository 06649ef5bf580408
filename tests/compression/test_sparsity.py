"""Pruning by name, part and gate; reports, recovery and sweeps."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import prune as torch_prune

from etude.compression import prune, sparsity
from etude.data.randomness import seeded_build, stream
from etude.layers import make_rnn
from etude.layers.masks import current_masks
from etude.layers.surgery import TargetError


def gru(seed=0):
    return seeded_build(lambda: nn.GRU(3, 4, num_layers=2, batch_first=True), stream(seed, "init"))


def test_parts_and_globs():
    assert prune(gru(), 0.5, "weight_hh").replaced == ("weight_hh_l0", "weight_hh_l1")
    assert prune(gru(), 0.5, ["*_l1"]).replaced == ("weight_ih_l1", "weight_hh_l1", "bias_ih_l1", "bias_hh_l1")
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    assert prune(net, 0.5, "1.weight").replaced == ("1.weight",)
    assert prune(net, 0.5, "weight").replaced == ("0.weight", "1.weight")
    nets = nn.ModuleDict({"a": nn.GRU(3, 4, bidirectional=True), "b": gru(), "a_l": nn.Linear(2, 2)})
    assert prune(nets, 0.5, "a.weight_hh").replaced == ("a.weight_hh_l0", "a.weight_hh_l0_reverse")
    assert prune(nets, 0.5, "b.weight_ih.update").replaced == ("b.weight_ih_l0", "b.weight_ih_l1")


def test_biases_stay_and_global_differs_from_layer():
    net = gru()
    with torch.no_grad():
        net.weight_ih_l0.add_(10)
    wide, each = copy.deepcopy(net), net
    prune(wide, 0.4)
    prune(each, 0.4, scope="layer")
    assert bool((wide.weight_ih_l0 != 0).all())
    assert int((each.weight_ih_l0 == 0).sum()) == round(0.4 * 36)
    assert not any("bias" in name for name in current_masks(wide))


@pytest.mark.parametrize("kind, gates", [(nn.GRU, ("reset", "update", "new")),
                                         (nn.LSTM, ("input", "forget", "cell", "output"))])  # fmt: skip
def test_one_gate(kind, gates):
    for i, gate in enumerate(gates):
        net = kind(3, 4)
        prune(net, 1.0, f"weight_hh.{gate}")
        zero = (net.weight_hh_l0 == 0).view(len(gates), 4, 4)
        assert [bool(z.all()) for z in zero] == [j == i for j in range(len(gates))]
        assert not bool(zero[[j for j in range(len(gates)) if j != i]].any())
    net = kind(3, 4)
    prune(net, 0.5, [f"weight_hh.{gates[0]}", "weight_hh"])  # the whole covers its gate
    assert int((net.weight_hh_l0 == 0).sum()) == round(0.5 * net.weight_hh_l0.numel())


@pytest.mark.parametrize("cell, options, gates", [
    ("lstm", {"peephole": True}, ("input", "forget", "cell", "output")),
    ("lstm97", {"peephole": True}, ("input", "cell", "output")),
])  # fmt: skip
def test_gates_of_the_lstm_variants(cell, options, gates):
    for i, gate in enumerate(gates):
        net = make_rnn(cell, 3, 4, **options)
        prune(net, 1.0, f"weight_hh.{gate}")
        assert [bool((z == 0).all()) for z in net.weight_hh_l0.chunk(len(gates))] == [j == i for j in range(len(gates))]
    net = make_rnn(cell, 3, 4, **options)  # peepholes go to every gate but the cell
    prune(net, 1.0, "weight_ch.output")
    assert (net.weight_ch_l0 != 0).view(-1, 4).all(1).tolist() == [True] * (len(gates) - 2) + [False]
    for absent in ("weight_ch.cell", "weight_hh.new", *(["weight_hh.forget"] * (cell == "lstm97"))):
        with pytest.raises(TargetError, match="no weight"):
            prune(net, 0.5, absent)


def test_a_gate_off_changes_what_the_equations_say():
    net, x = nn.GRU(2, 3), torch.ones(5, 1, 2)
    prune(net, 1.0)  # no weights: only biases are left, so every input gives the same states
    assert torch.allclose(net(x)[0], net(2 * x)[0])


def test_all_of_it_is_zero_and_none_of_it_is_all():
    net = gru()
    before = {n: p.clone() for n, p in net.named_parameters()}
    prune(net, 0.0)
    assert all(torch.equal(getattr(net, n), before[n]) for n in current_masks(net))
    prune(net, 1)
    assert all(int(getattr(net, n).count_nonzero()) == 0 for n in current_masks(net))


def test_twice_counts_relative_to_all_weights():
    once, twice = gru(), gru()
    prune(once, 0.8)
    prune(twice, 0.5)
    prune(twice, 0.8)
    assert all(torch.equal(a, b) for a, b in zip(current_masks(once).values(), current_masks(twice).values()))
    prune(twice, 0.3)  # less than is gone already: nothing comes back
    assert all(torch.equal(a, b) for a, b in zip(current_masks(once).values(), current_masks(twice).values()))


def test_scores_of_ones_own():
    net = nn.Linear(4, 1)
    prune(net, 0.5, "weight", scores={"weight": torch.tensor([[4.0, 1.0, 3.0, 2.0]])})
    assert (net.weight != 0).tolist() == [[True, False, True, False]]
    with pytest.raises(TargetError, match="scores has no"):
        prune(net, 0.5, "weight", scores={"other": torch.ones(1, 4)})
    wide = nn.Linear(4, 5)
    with pytest.raises(ValueError, match=r"\(5, 4\), but its scores \(1, 4\)"):  # would broadcast
        prune(wide, 0.5, "weight", scores={"weight": torch.ones(1, 4)})
    half, fine = nn.Linear(4, 1).bfloat16(), 1 + 1e-4 * torch.tensor([[3.0, 0.0, 2.0, 1.0]])
    prune(half, 0.5, "weight", scores={"weight": fine})  # all equal in the weight's own precision
    assert (half.weight != 0).tolist() == [[True, False, True, False]]
    prune(wide, 0.5, "weight", scores={"weight": torch.arange(20).view(5, 4)})
    prune(wide, 0.5, "weight", scores={"weight": torch.arange(20).view(5, 4)})
    assert int((wide.weight != 0).sum()) == 10


def test_bad_input():
    with pytest.raises(ValueError, match=r"write 0\.8"):
        prune(gru(), 80)
    with pytest.raises(TargetError, match=r"weight_ih_l0.*reset, update, new"):
        prune(gru(), 0.5, "weight_xx")
    with pytest.raises(TargetError, match=r"targets is empty.*weight_ih_l0"):
        prune(gru(), 0.5, ())
    with pytest.raises(TargetError, match="forget"):
        prune(gru(), 0.5, "weight_hh.forget")  # a GRU has none
    net = gru()
    with torch.no_grad():
        net.weight_hh_l1[0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"weight_hh_l1.*1 entries"):
        prune(net, 0.5)
    assert not current_masks(net)


def test_tied_weights_are_refused_and_a_shared_module_is_not():
    net = nn.ModuleDict({"embed": nn.Embedding(5, 4), "head": nn.Linear(4, 5)})
    net["head"].weight = net["embed"].weight
    with pytest.raises(TargetError, match=r"'embed\.weight' and 'head\.weight'"):
        prune(net, 0.5, "weight")
    assert not current_masks(net)
    one = nn.Linear(4, 4)
    twice = nn.Sequential(one, one)
    assert prune(twice, 0.5, "weight").replaced == ("0.weight",)
    assert int((twice[1].weight == 0).sum()) == 8
    prune(twice, 0.75, "weight")  # masked once, still one place
    assert int((one.weight == 0).sum()) == 12


def test_report_counts():
    net = gru()
    prune(net, 0.75, "weight_hh")
    rows = {r.name: r for r in sparsity.report(net)}
    one, total = rows["weight_hh_l0"], rows["total"]
    assert one.entries == 48 and one.dense_bytes == 192
    assert total.entries == sum(p.numel() for p in net.parameters())
    assert total.entries - total.nonzeros == 72
    assert one.compressed_bytes == 4 * one.nonzeros + 6
    assert rows["bias_ih_l0"].compressed_bytes == rows["bias_ih_l0"].dense_bytes
    assert "faster" in (sparsity.report.__doc__ or "")


def _mean(net):
    with torch.no_grad():
        return float(net(torch.ones(1, 3, 3))[0].mean())


def _fit(net):
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
    net(torch.ones(1, 3, 3))[0].mean().neg().backward()
    optimizer.step()


def test_recover_keeps_masks_and_climbs():
    net = gru()
    with pytest.raises(TargetError, match="prune it first"):
        sparsity.recover(net, _fit, metric=_mean)
    prune(net, 1.0, "weight_hh")
    history = sparsity.recover(net, _fit, epochs=3, metric=_mean)
    assert len(history) == 4 and history == sorted(history) and history[3] > history[0] + 0.1
    assert int(net.weight_hh_l0.count_nonzero()) == 0
    with pytest.raises(ValueError, match="epochs"):
        sparsity.recover(net, _fit, 0, metric=_mean)


def test_sweep_equals_pruning_one_by_one_and_leaves_the_model_alone():
    net, calls = gru(), []

    def measure(model):
        calls.append(1)
        return _mean(model)

    before = {n: p.clone() for n, p in net.state_dict().items()}
    rows = sparsity.sweep(net, [0.0, 0.5, 1.0], measure)
    assert len(rows) == 9 and len(calls) == 1 + 3 * 2  # the dense model once
    for row in rows:
        peer = copy.deepcopy(net)
        names = [(peer, n) for n, _ in peer.named_parameters() if n.startswith(sparsity.PARTS[row.part])]
        torch_prune.global_unstructured(names, torch_prune.L1Unstructured, amount=row.amount)
        assert row.value == pytest.approx(_mean(peer), abs=1e-6)
        assert row.drop == pytest.approx(_mean(net) - row.value)
    assert all(torch.equal(before[n], p) for n, p in net.state_dict().items())
    pruned = copy.deepcopy(net)
    prune(pruned, 0.5)
    gone = sparsity.sweep(pruned, [1.0, 0.2], _mean, parts={"both": sparsity.PARTS["both"]})
    assert gone[1].value == pytest.approx(_mean(pruned)) != pytest.approx(gone[0].value)  # what was gone stays gone
    again = sparsity.sweep(net, [0.9], _mean, _fit, parts={"recurrent": "weight_hh"}, epochs=2)
    assert [r.epoch for r in again] == [0, 1, 2] and again[2].value > again[0].value
    with pytest.raises(ValueError, match=r"write 0\.9"):
        sparsity.sweep(net, [90], _mean)
