"""Targets of every form: modules that stand twice, embeddings with padding, LSTMs, norms with state, dicts of tensors."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from etude.hypernetworks import HyperNetwork, TaskCondition
from etude.layers import mlp

IDS = torch.tensor([2, 0, 1, 1, 2])


class Words(nn.Module):
    """Ids (B, T) to two numbers."""

    def __init__(self, recurrent: bool = False, **options) -> None:
        super().__init__()
        self.emb = nn.Embedding(9, 4, **options)
        self.rnn = nn.LSTM(4, 4, batch_first=True) if recurrent else None
        self.out = nn.Linear(4, 2)

    def forward(self, ids):
        x = self.emb(ids)
        return self.out((x if self.rnn is None else self.rnn(x)[0]).mean(1))


def rows_equal_single_ones(hyper: HyperNetwork, x, atol: float = 1e-5) -> None:
    rows = hyper(x, task=IDS)
    for i, t in enumerate(IDS.tolist()):
        torch.testing.assert_close(rows[i], hyper(x, task=t)[i], atol=atol, rtol=1e-4)
        torch.testing.assert_close(rows[i], hyper.export(task=t)(x)[i], atol=atol, rtol=1e-4)


def test_a_module_that_stands_twice_is_generated_once():
    layer, act = nn.Linear(4, 4), nn.Tanh()
    hyper = HyperNetwork(nn.Sequential(layer, act, nn.Linear(4, 4), act, layer), TaskCondition(3, 2), init="gain")
    assert hyper.layout.size == 2 * 20
    rows_equal_single_ones(hyper, torch.randn(5, 4))
    net = hyper.export(task=1)
    assert net[0] is net[4]
    assert sum(p.numel() for p in net.parameters()) == 40
    assert all(layer.get_parameter(n) is p for n, p in layer.named_parameters())  # the caller's own


def test_an_lstm_keeps_its_own_weights_where_they_are_not_generated():
    ids = torch.randint(0, 9, (5, 6))
    hyper = HyperNetwork(Words(recurrent=True), TaskCondition(3, 2), targets=["emb", "out*"], init="gain")
    rows_equal_single_ones(hyper, ids)
    assert all(n.startswith("rnn.") for n in hyper.parameter_report().unmatched)
    hyper(ids, task=IDS).square().sum().backward()
    assert all(p.grad is not None for p in hyper.parameters())
    with pytest.raises(ValueError, match=r"rnn is a LSTM.*leave it out of targets"):
        HyperNetwork(Words(recurrent=True), TaskCondition(3, 2))


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("held", [0.0, 0.7])
def test_the_row_of_padding_is_not_generated(residual, held):
    net = Words(padding_idx=2)
    with torch.no_grad():
        net.emb.weight[2] = held
    hyper = HyperNetwork(net, TaskCondition(3, 2), residual=residual)
    table = hyper.generate(IDS)["emb.weight"]
    assert torch.equal(table[:, 2], torch.full((5, 4), held))
    assert bool((table[:, 3] != 0).all())
    fresh = HyperNetwork(Words(padding_idx=2), TaskCondition(3, 2), residual=residual)
    fresh.load_state_dict(hyper.state_dict())
    assert torch.equal(fresh.generate(IDS)["emb.weight"], table)
    opt = torch.optim.SGD(hyper.parameters(), 0.1)
    hyper(torch.randint(0, 9, (5, 6)), task=IDS).square().sum().backward()
    opt.step()
    assert torch.equal(hyper.generate(IDS)["emb.weight"][:, 2], torch.full((5, 4), held))


def test_padding_of_a_tied_embedding():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.out = nn.Linear(4, 9, bias=False)
            self.emb = nn.Embedding(9, 4, padding_idx=0)
            with torch.no_grad():
                self.emb.weight[0] = 0
            self.out.weight = self.emb.weight

        def forward(self, ids):
            return self.out(self.emb(ids).mean(1))

    hyper = HyperNetwork(Tied(), TaskCondition(3, 2), init="gain")
    assert float(hyper.generate(task=1)["out.weight"][0].abs().max()) == 0
    rows_equal_single_ones(hyper, torch.randint(0, 9, (5, 6)))


def test_dicts_of_tensors_and_several_results():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = mlp((6, 5, 3))

        def forward(self, batch):
            return {"y": self.body(batch["x"]) + batch["shift"], "sums": batch["x"].sum(1)}

    hyper = HyperNetwork(Net(), TaskCondition(3, 2), init="gain")
    batch = {"x": torch.randn(5, 6), "shift": torch.randn(5, 1)}
    rows = hyper(batch, task=IDS)
    assert rows["y"].shape == (5, 3)
    assert torch.allclose(rows["sums"], batch["x"].sum(1))
    for i, t in enumerate(IDS.tolist()):
        assert torch.allclose(rows["y"][i], hyper(batch, task=t)["y"][i], atol=1e-6)
    with pytest.raises(ValueError, match="2 conditions for 5 rows"):
        hyper(batch, task=torch.tensor([0, 1]))


def test_dropout_draws_for_every_row_in_training():
    target = nn.Sequential(nn.Linear(3, 400, bias=False), nn.Dropout(0.5))
    hyper = HyperNetwork(target, TaskCondition(3, 2), init="gain")
    out = hyper(torch.ones(2, 3), task=torch.tensor([1, 1]))
    zeros = out == 0
    assert not torch.equal(zeros[0], zeros[1])
    assert 0.4 < float(zeros.float().mean()) < 0.6
    assert not bool((hyper.eval()(torch.ones(2, 3), task=torch.tensor([1, 1])) == 0).any())


def spectral() -> nn.Module:
    return nn.Sequential(parametrizations.spectral_norm(nn.Linear(6, 4)), nn.ReLU(), nn.Linear(4, 2))


def test_spectral_norm_of_the_target():
    x = torch.randn(5, 6)
    with pytest.warns(UserWarning, match="share spectral norm's vectors"):
        hyper = HyperNetwork(spectral(), TaskCondition(3, 2))
    with pytest.raises(ValueError, match="0 would update its spectral norm from every set"):
        hyper(x, task=IDS)
    hyper = HyperNetwork(spectral(), TaskCondition(3, 2), buffers="per_condition", init="gain")
    for t in range(3):
        for _ in range(60):
            hyper(x, task=t)
    hyper.eval()
    rows_equal_single_ones(hyper, x)
    for t in range(3):  # each task's weight is divided by its own largest singular value
        net = hyper.export(task=t)
        assert torch.linalg.matrix_norm(net[0].weight, 2).item() == pytest.approx(1, abs=1e-2)


@pytest.mark.parametrize(
    ("target", "words"),
    [
        (lambda: nn.utils.weight_norm(nn.Linear(3, 3)), "the target holds a weight that is no parameter"),
        (lambda: nn.Sequential(nn.utils.spectral_norm(nn.Linear(3, 3))), "0 holds a weight that is no parameter"),
        (lambda: nn.Sequential(nn.Embedding(3, 3, sparse=True)), "0 gives sparse gradients.*sparse=False"),
    ],
)
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_targets_that_cannot_be_generated_are_named(target, words):
    with pytest.raises(ValueError, match=words):
        HyperNetwork(target(), TaskCondition(3, 2))


def test_what_is_no_target_or_condition_is_named():
    with pytest.raises(TypeError, match="target must be a module, got a dict"):
        HyperNetwork({}, TaskCondition(3, 2))
    with pytest.raises(TypeError, match="condition must be.*got a int"):
        HyperNetwork(mlp((6, 5, 3)), 3)
    with pytest.raises(ValueError, match="chunk_dim must be at least 1, got 0"):
        HyperNetwork(mlp((6, 5, 3)), TaskCondition(3, 2), strategy="chunk", chunk_dim=0)


def test_one_hidden_size_may_be_a_number():
    assert HyperNetwork(mlp((6, 5, 3)), TaskCondition(3, 2), hidden=7).generator.head.in_features == 7


def test_a_copy_of_a_net_with_shared_parts_goes_on():
    layer = nn.Linear(4, 4)
    hyper = HyperNetwork(nn.Sequential(layer, nn.Tanh(), layer), TaskCondition(3, 2))
    x = torch.randn(5, 4)
    hyper(x, task=1).sum().backward()
    twin = copy.deepcopy(hyper)  # no weight of the last pass was left behind in the target
    assert torch.equal(twin(x, task=IDS), hyper(x, task=IDS))
