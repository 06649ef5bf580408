"""Joined representations: shapes, statistics, any architecture, copies, diversity, and bad input."""

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from torch import nn

from etude.data.randomness import seeded_build, stream
from etude.data.tasks import Split
from etude.layers import TargetError, convnet, make_rnn, mlp
from etude.training import CatRepresentation, diversity_report, represent
from etude.training.representations import last_linear


def net(seed=0, sizes=(5, 16, 6, 3)):
    return seeded_build(lambda: mlp(sizes), stream(seed, "init"))


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=stream(seed, "x"))


def test_the_representation_is_what_the_last_linear_layer_takes_in():
    m, x = net(), normal(7, 5)
    assert last_linear(m) == "4"
    assert torch.equal(represent(m, x), m[:4](x))
    assert torch.equal(represent(m, x, "1"), m[:2](x))
    assert torch.equal(represent(m, (x, "label")), m[:4](x))


def test_blocks_stand_side_by_side_in_any_architecture():
    nets = [
        convnet((1, 8, 8), (4, 6), 3),
        seeded_build(lambda: nn.Sequential(nn.Flatten(), *mlp((64, 9, 2))), stream(1, "i")),
    ]
    x = normal(10, 1, 8, 8)
    cat = CatRepresentation(nets, normalize=None)
    z = cat(x)
    assert z.shape == (10, 15)
    assert cat.block_dims == (6, 9)
    assert torch.equal(z[:, :6], represent(nets[0], x))
    named = CatRepresentation(nets, layers=["0", "1"], normalize=None)
    with pytest.warns(UserWarning, match="averaged over its last axes"):
        assert named(x).shape == (10, 4 + 9)


def test_batch_normalisation_uses_the_statistics_of_fit_only():
    nets, x = [net(0), net(1)], normal(400, 5) * 3
    cat = CatRepresentation(nets).fit(x)
    z = cat.transform(x)
    live = z.std(0, correction=0) > 0
    assert torch.allclose(z.mean(0), torch.zeros(12), atol=1e-5)
    assert torch.allclose(z.std(0, correction=0)[live], torch.ones(int(live.sum())), atol=1e-4)
    assert torch.allclose(cat.transform(x[:3]), z[:3], atol=1e-5)  # a row's features do not depend on its batch
    loader = [(part, None) for part in x.split(64)]
    assert torch.allclose(CatRepresentation(nets).fit(loader).transform(loader), z, atol=1e-4)
    with pytest.raises(RuntimeError, match="call fit"):
        CatRepresentation(nets)(x)


def test_transform_without_fit_takes_the_rows_themselves_and_says_so():
    nets, x = [net(0), net(1)], normal(40, 5)
    cat = CatRepresentation(nets)
    with pytest.warns(UserWarning, match="fit was not called"):
        z = cat.transform((part, None) for part in x.split(16))
    assert torch.equal(z, CatRepresentation(nets).fit(x).transform(x))
    assert torch.allclose(cat.transform(x[:3]), z[:3], atol=1e-5)


def test_l2_gives_every_block_length_one():
    z = CatRepresentation([net(0), net(1)], normalize="l2")(normal(9, 5))
    lengths = torch.stack([z[:, :6].norm(dim=1), z[:, 6:].norm(dim=1)])
    assert ((lengths - 1).abs() < 1e-5).logical_or(lengths == 0).all()


def test_extraction_is_in_eval_mode_and_leaves_no_trace():
    members = [
        seeded_build(lambda: mlp((5, 16, 6, 3), norm="batch", dropout=0.5), stream(s, "i")).train() for s in (0, 1)
    ]
    cat, x = CatRepresentation(members, normalize=None), normal(20, 5)
    assert torch.equal(cat.transform(x), cat.transform(x))
    assert all(m.training for m in members)
    assert float(members[0][1].num_batches_tracked) == 0
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in cat.modules())
    cat(x).sum().backward()
    assert members[1][0].weight.grad is not None


def test_in_a_pipeline_of_scikit_learn():
    x = normal(120, 5).numpy()
    y = (x[:, 0] * x[:, 1] > 0).astype(int)
    pipe = make_pipeline(CatRepresentation([net(0), net(1)]), LogisticRegression()).fit(x, y)
    assert pipe.predict(x).shape == (120,)
    assert isinstance(CatRepresentation([net(0)]).fit_transform(x), np.ndarray)


def test_members_are_moved_to_one_type_and_copies_are_named():
    cat = CatRepresentation([net(0), net(1).double()], normalize=None)
    assert cat(normal(4, 5)).dtype == torch.float32
    with pytest.warns(UserWarning, match="members are copies: net 1 equals net 0"):
        CatRepresentation([net(0), net(0)])
    with pytest.warns(UserWarning, match="members are copies: net 2 equals net 0"):
        CatRepresentation([net(0), net(3), net(0)])


def test_bad_members():
    with pytest.raises(ValueError, match="no nets"):
        CatRepresentation([])
    with pytest.raises(TargetError, match="'nine'"):
        CatRepresentation([net()], "nine")
    with pytest.raises(TargetError, match="no linear layer"):
        CatRepresentation([nn.Sequential(nn.ReLU())])
    with pytest.raises(ValueError, match="need one layer or 2, got 3"):
        CatRepresentation([net(0), net(1)], ["0", "0", "0"])
    with pytest.raises(ValueError, match="normalize must be"):
        CatRepresentation([net()], normalize="layer")
    with pytest.raises(ValueError, match="name another layer"):
        represent(make_rnn("elman", 5, 4), normal(3, 2, 5), "")


def test_diversity_of_copies_and_of_different_nets():
    x = normal(200, 5)
    y = (x[:, 0] * x[:, 1] > 0).long()
    with pytest.warns(UserWarning, match="copies"):
        same = CatRepresentation([net(0)] + [net(0)])
    other = CatRepresentation([net(0), net(1)])
    copies, different = diversity_report(same, x), diversity_report(other, x, y)
    assert torch.allclose(copies.cka, torch.ones(2, 2, dtype=copies.cka.dtype), atol=1e-5)
    assert different.cka[0, 1] < 0.95
    assert copies.effective_rank == pytest.approx(copies.member_ranks[0], rel=1e-5)
    assert different.effective_rank > max(different.member_ranks) + 0.5
    assert copies.probe_scores is None
    assert len(different.probe_scores) == 2
    with pytest.raises(ValueError, match="200 rows and 3 labels"):
        diversity_report(other, x, y[:3])


def test_a_fitted_state_fits_a_fresh_one():
    nets, x = [net(0), net(1)], normal(50, 5)
    cat = CatRepresentation(nets).fit(x)
    fresh = CatRepresentation([net(2), net(3)])
    fresh.load_state_dict(cat.state_dict())
    assert torch.equal(fresh.transform(x), cat.transform(x))


def test_a_missing_layer_is_a_key_error_that_lists_what_there_is():
    with pytest.raises(KeyError, match="'9'.*'0', '1'"):
        CatRepresentation([net()], layers="9")


def test_the_probe_of_a_report_sees_every_class_in_whatever_order_the_rows_come():
    x = normal(400, 5)
    y = torch.arange(400) % 2
    x[:, 0] += 6.0 * y
    report = diversity_report(CatRepresentation([nn.Sequential(nn.Linear(5, 2))]), x, y)
    assert report.probe_scores[-1] > 0.95


class Signals(nn.Module):
    """The usual net on one-dimensional signals."""

    def __init__(self):
        super().__init__()
        self.conv, self.pool, self.fc = nn.Conv1d(1, 4, 3), nn.AdaptiveAvgPool1d(1), nn.Linear(4, 3)

    def forward(self, x):
        return self.fc(self.pool(self.conv(x[:, None])).flatten(1))


@pytest.mark.parametrize("layer", ["pool", "poo*", "conv"])
def test_layers_of_one_dimensional_convolutions_are_averaged_over_positions(layer):
    m, x = seeded_build(Signals, stream(0, "init")), normal(7, 9)
    with pytest.warns(UserWarning, match="averaged over its last axes"):
        z = represent(m, x, layer)
    assert torch.allclose(z, m.conv(x[:, None]).mean(2), atol=1e-6)


def batches(x, y):
    order = torch.randperm(len(x), generator=stream(1, "order"))
    return [(x[rows], y[rows]) for rows in order.split(32)]


def test_a_report_takes_the_labels_that_the_batches_bring():
    x = normal(200, 5)
    y = torch.arange(200) % 2
    x[:, 0] += 6.0 * y
    cat = CatRepresentation([net(0), net(1)]).fit(x)
    report = diversity_report(cat, batches(x, y))
    assert len(report.probe_scores) == 2
    assert min(report.probe_scores) > 0.9
    for other in (torch.zeros(200).long(), x[:, 0], x):  # one class, numbers, no labels at all
        assert diversity_report(cat, batches(x, other)).probe_scores is None


@pytest.mark.parametrize("kind", [lambda x, y: (x, y), Split])
def test_rows_with_labels_are_one_batch_and_a_tuple_of_parts_is_several(kind):
    x, y = normal(40, 5), torch.arange(40) % 2
    whole = CatRepresentation([net(0), net(1)]).fit(x)
    pair = CatRepresentation([net(0), net(1)]).fit(kind(x, y))
    assert torch.equal(pair.transform(kind(x, y)), whole.transform(x))
    assert diversity_report(pair, kind(x, y)).probe_scores == diversity_report(whole, x, y).probe_scores
    arrays = kind(x.numpy(), y.numpy())
    assert isinstance(pair.transform(arrays), np.ndarray)
    assert diversity_report(pair, arrays).probe_scores == diversity_report(whole, x, y).probe_scores
    assert torch.allclose(CatRepresentation([net(0), net(1)]).fit(x.split(20)).transform(x.split(20)), whole.transform(x),
                          atol=1e-5)  # fmt: skip


@pytest.mark.parametrize("empty", [normal(0, 5), []])
def test_statistics_of_nothing_and_of_nan_are_refused(empty):
    cat, x = CatRepresentation([net(0), net(1)]), normal(8, 5)
    with pytest.raises(ValueError, match="at least one row"):
        cat.fit(empty)
    x[3, 1] = torch.nan
    with pytest.raises(ValueError, match="feature 0 of row 3 is nan"):
        cat.fit(x)
    assert cat.mean is None
    with pytest.raises(ValueError, match="no batch"):
        cat.fit(normal(8, 5)).transform([])


def test_scikit_learn_clones_it_and_searches_its_parameters():
    x, y = normal(60, 5).numpy(), np.arange(60) % 3
    cat = CatRepresentation([net(0), net(1)], layers="1").fit(x)
    other = clone(cat)
    assert other.mean is None
    assert other.get_params() | {"nets": None} == cat.get_params() | {"nets": None}
    assert other.nets[0] is not cat.nets[0]
    assert torch.equal(other.nets[0][0].weight, cat.nets[0][0].weight)
    assert np.allclose(other.fit(x).transform(x), cat.transform(x))
    search = GridSearchCV(make_pipeline(cat, LogisticRegression()), {"catrepresentation__normalize": ["l2", "batch"]})
    assert search.fit(x, y).best_params_["catrepresentation__normalize"] in ("l2", "batch")
    assert cat.set_params(nets=[net(2)]).fit(x).transform(x).shape == (60, 16)
    with pytest.raises(ValueError, match="no parameter 'width': there are nets, layers"):
        cat.set_params(width=3)
