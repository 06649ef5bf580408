"""Reservoir, GSS, its selections, and MIR."""

import copy
import itertools
import pickle
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from etude.continual import (
    GSSBuffer,
    ReservoirBuffer,
    SelectionBuffer,
    class_counts,
    diverse_subset,
    interference,
    mir_select,
)
from etude.continual.gss import candidate_weights, replacement_probability
from etude.continual.gss_selection import medoids
from etude.data.randomness import seeded_build, stream

ce = nn.CrossEntropyLoss()


def net(width: int = 3, classes: int = 4) -> nn.Sequential:
    build = lambda: nn.Sequential(nn.Linear(width, 8), nn.ReLU(), nn.Linear(8, classes))
    return seeded_build(build, stream(0, "init"))


def rows(n: int, seed: int = 0, classes: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    g = stream(seed, "rows")
    return torch.randn(n, 3, generator=g), torch.randint(0, classes, (n,), generator=g)


# Reservoir


def test_reservoir_gives_pairs_and_warns_when_it_holds_fewer() -> None:
    buffer = ReservoirBuffer(5)
    with pytest.raises(ValueError, match="empty"):
        buffer.sample(2)
    x, y = rows(3)
    assert buffer.observe(x, y).tolist() == [0, 1, 2]
    with pytest.warns(UserWarning, match="fewer"):
        xb, yb = buffer.sample(10)
    assert sorted(map(tuple, xb.tolist())) == sorted(map(tuple, x.tolist())) and len(yb) == 3
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(buffer.sample(3)[0]) == 3


def test_reservoir_is_uniform_over_the_stream() -> None:
    counts = torch.zeros(20)
    for seed in range(600):
        buffer = ReservoirBuffer(5, stream(seed, "buffer"))
        for part in torch.arange(20).split(4):
            buffer.observe(part.float()[:, None], part)
        counts[buffer.rows()[1]] += 1
    assert (counts / 600 - 0.25).abs().max() < 4 * (0.25 * 0.75 / 600) ** 0.5


def test_reservoir_state_goes_on_identically() -> None:
    one, other = ReservoirBuffer(4, stream(1, "a")), ReservoirBuffer(4, stream(2, "b"))
    one.observe(*rows(9))
    one.best_loss[1] = 0.3
    other.load_state_dict(one.state_dict())
    assert torch.equal(one.best_loss, other.best_loss)
    for buffer in (one, other):
        buffer.observe(*rows(9, seed=5))
    assert all(torch.equal(a, b) for a, b in zip(one.rows(), other.rows()))
    assert torch.equal(one.sample(2)[0], other.sample(2)[0])
    assert class_counts(torch.tensor([0, 2, 2]), 4) == [1, 0, 2, 0]


# GSS


def test_gss_gradients_are_the_loop_over_samples() -> None:
    model, (x, y) = net(), rows(6)
    found = GSSBuffer(5, model, ce).gradients(x, y)
    for i in range(6):
        g = torch.autograd.grad(ce(model(x[i : i + 1]), y[i : i + 1]), list(model.parameters()))
        torch.testing.assert_close(found[i], torch.cat([p.flatten() for p in g]), rtol=1e-4, atol=1e-6)
    assert not found.requires_grad


def test_gss_keeps_all_while_there_is_room() -> None:
    buffer = GSSBuffer(8, net(), ce)
    x, y = rows(8)
    assert buffer.observe(x[:3], y[:3]).tolist() == [0, 1, 2]
    assert buffer.scores.tolist() == pytest.approx([0.1] * 3)
    assert buffer.observe(x[3:], y[3:]).tolist() == [3, 4, 5, 6, 7]
    assert torch.equal(buffer.rows()[0], x) and torch.equal(buffer.rows()[1], y)
    assert buffer.scores[3:].abs().max() <= 1


def test_gss_scores_are_the_largest_cosine_with_replay_batches() -> None:
    """One kept sample, so that every replay batch is that sample."""
    model, (x, y) = net(), rows(3)
    buffer = GSSBuffer(8, model, ce)
    buffer.observe(x[:1], y[:1])
    buffer.observe(x[1:], y[1:])
    g = buffer.gradients(x, y)
    wanted = torch.nn.functional.cosine_similarity(g[1:], g[:1])
    torch.testing.assert_close(buffer.scores[1:], wanted, rtol=1e-4, atol=1e-5)


def test_gss_replaces_only_for_a_new_direction() -> None:
    model = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        model.weight.zero_()  # gradient of a sample: (p - e_y) x^T with p = 1/2
    x = torch.tensor([[1.0, 0.0]]).repeat(6, 1)
    y = torch.zeros(6, dtype=torch.long)
    buffer = GSSBuffer(6, model, ce, generator=stream(3, "gss"))
    buffer.observe(x, y)
    assert buffer.observe(x[:4], y[:4]).tolist() == [-1] * 4  # same direction: cosine 1
    changed = sum(int((buffer.observe(x[:4], 1 - y[:4]) >= 0).sum()) for _ in range(5))  # opposite: cosine -1
    assert changed > 0
    assert sum(buffer.rows()[1].tolist()) > 0


def test_gss_rule_in_closed_form() -> None:
    old, new = torch.tensor([1.0, -1.0, 0.0, -1.0]), torch.tensor([0.0, 0.5, 0.0, -1.0])
    p = replacement_probability(old, new)
    assert p.tolist() == pytest.approx([1 / 1.5, 0.0, 0.5, 0.5])
    w = candidate_weights(torch.tensor([0.1, 0.6, 1.1]))
    assert w.tolist() == pytest.approx([0.0, 0.5 / 1.01, 1.0 / 1.01])


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 12), st.integers(0, 1000), st.integers(1, 9))
def test_gss_never_holds_more_than_its_size_and_places_are_true(size: int, seed: int, batch: int) -> None:
    buffer = GSSBuffer(size, net(), ce, num_gradients=3, batch_size=4, generator=stream(seed, "gss"))
    for step in range(4):
        x, y = rows(batch, seed=10 * seed + step)
        places = buffer.observe(x, y)
        assert len(buffer) == min(size, (step + 1) * batch) == len(buffer.rows()[0]) == len(buffer.scores)
        held = buffer.rows()[0]
        for i, place in enumerate(places.tolist()):
            assert place < 0 or torch.equal(held[place], x[i])


def test_gss_rejects_samples_without_a_gradient_and_labels_outside_the_head() -> None:
    buffer = GSSBuffer(8, net(), ce)
    x, y = rows(4)
    x[1] = torch.nan
    assert buffer.observe(x, y).tolist() == [0, -1, 1, 2]
    assert buffer.num_rejected == 1 and torch.isfinite(buffer.rows()[0]).all()
    with pytest.raises(ValueError, match="label 4 lies outside"):
        buffer.observe(x, torch.tensor([0, 4, 1, 1]))
    with pytest.raises(ValueError, match="labels"):
        buffer.observe(x, y[:2])
    with pytest.raises(ValueError, match="empty"):
        GSSBuffer(4, net(), ce).sample(1)
    with pytest.raises(ValueError):
        GSSBuffer(0, net(), ce)
    with pytest.warns(UserWarning, match="fewer"):
        assert len(buffer.sample(10)[0]) == 3


def test_gss_state_goes_on_identically() -> None:
    model = net()
    one = GSSBuffer(6, model, ce, generator=stream(1, "a"))
    other = GSSBuffer(6, model, ce, generator=stream(2, "b"))
    one.observe(*rows(9))
    other.load_state_dict(one.state_dict())
    for buffer in (one, other):
        for step in range(4):
            buffer.observe(*rows(5, seed=step))
    assert torch.equal(one.rows()[0], other.rows()[0]) and torch.equal(one.scores, other.scores)
    with pytest.raises(ValueError, match="at most"):
        GSSBuffer(2, model, ce).load_state_dict(one.state_dict())


def test_gss_with_batch_norm_leaves_its_statistics_alone() -> None:
    model = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 4)).train()
    before = copy.deepcopy(model.state_dict())
    buffer = GSSBuffer(4, model, ce)
    for step in range(3):
        buffer.observe(*rows(5, seed=step))
    assert model.training and all(torch.equal(before[n], t) for n, t in model.state_dict().items())


def test_gss_on_fewer_dimensions() -> None:
    model, (x, y) = net(), rows(6)
    last = GSSBuffer(5, model, ce, parameters="last").gradients(x, y)
    whole = GSSBuffer(5, model, ce).gradients(x, y)
    torch.testing.assert_close(last, whole[:, -last.shape[1] :])
    assert GSSBuffer(5, model, ce, project=7).gradients(x, y).shape == (6, 7)
    buffer = GSSBuffer(5, model, ce, project=7)
    for step in range(3):
        buffer.observe(*rows(5, seed=step))
    assert len(buffer) == 5


def test_diverse_subset_ends_where_no_exchange_helps_and_is_often_the_best() -> None:
    hits, better = 0, []
    for seed in range(20):
        g = torch.nn.functional.normalize(torch.randn(8, 3, generator=stream(seed, "g")), dim=1)
        s = g @ g.T
        cost = lambda c, s=s: float(s[list(c)][:, list(c)].sum())
        found = diverse_subset(s, 4)
        assert len(set(found.tolist())) == 4
        for i, j in itertools.product(found.tolist(), set(range(8)) - set(found.tolist())):
            assert cost([j if v == i else v for v in found.tolist()]) >= cost(found.tolist()) - 1e-6
        every = torch.tensor(list(map(cost, itertools.combinations(range(8), 4))))
        hits += cost(found.tolist()) <= float(every.min()) + 1e-5
        better.append(float((every < cost(found.tolist()) - 1e-5).float().mean()))
    assert hits >= 8 and max(better) < 0.15  # of all subsets, hardly any is better
    with pytest.raises(ValueError):
        diverse_subset(torch.eye(3), 4)


def test_medoids_are_rows_in_the_middle_of_their_groups() -> None:
    centres = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    arms = 0.3 * torch.randn(4, 2, generator=stream(0, "p"))
    points = torch.cat([c + torch.cat([torch.zeros(1, 2), arms, -arms]) for c in centres])
    assert medoids(points, 3, stream(0, "k")).tolist() == [0, 9, 18]
    assert sorted(medoids(torch.zeros(4, 2), 3, stream(0, "k")).tolist())[:1] == [0]
    with pytest.raises(ValueError):
        medoids(points, 28, stream(0, "k"))


@pytest.mark.parametrize("selection", ["iqp", "gradient_clusters", "feature_clusters"])
def test_selection_buffers_choose_when_the_latest_are_full(selection) -> None:
    model = net()
    buffer = SelectionBuffer(6, model, ce, selection=selection, recent=6)
    x, y = rows(12)
    buffer.observe(x[:8], y[:8])
    assert len(buffer) == 8
    places = buffer.observe(x[8:], y[8:])
    assert len(buffer) == 6
    for i, place in enumerate(places.tolist()):
        assert place < 0 or torch.equal(buffer.rows()[0][place], x[8 + i])
    if selection == "iqp":
        g = torch.nn.functional.normalize(buffer.gradients(x, y), dim=1)
        assert torch.equal(buffer.rows()[0], x[diverse_subset(g @ g.T, 6)])
    other = SelectionBuffer(6, model, ce, selection=selection, recent=6)
    other.load_state_dict(buffer.state_dict())
    assert torch.equal(other.rows()[0], buffer.rows()[0])
    with pytest.raises(ValueError):
        SelectionBuffer(6, model, ce, selection="other")


# MIR


def test_interference_is_the_loss_after_a_real_step() -> None:
    model, (x, y), (cx, cy) = net(), rows(5), rows(7, seed=1)
    state = copy.deepcopy(model.state_dict())
    before, after = interference(model, x, y, (cx, cy), lr=0.3)
    assert all(torch.equal(state[n], t) for n, t in model.state_dict().items())
    each = nn.CrossEntropyLoss(reduction="none")
    torch.testing.assert_close(before, each(model(cx), cy).detach())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    ce(model(x), y).backward()
    optimizer.step()
    torch.testing.assert_close(after, each(model(cx), cy).detach(), rtol=1e-5, atol=1e-6)


def test_the_most_interfered_samples_come_first() -> None:
    model, (x, y), pool = net(), rows(5), rows(20, seed=1)
    before, after = interference(model, x, y, pool, lr=0.5)
    found = mir_select(model, x, y, pool, 6, lr=0.5)
    order = (after - before).argsort(descending=True)[:6]
    assert torch.equal(found.places, order) and torch.equal(found.x, pool[0][order])
    torch.testing.assert_close(found.scores, (after - before)[order])
    assert all(p.grad is None for p in model.parameters())


def test_against_the_lowest_loss_so_far() -> None:
    model, (x, y), pool = net(), rows(5), rows(12, seed=1)
    before, after = interference(model, x, y, pool, lr=0.5)
    best = torch.full((12,), torch.inf)
    best[3] = before[3] - 5
    found = mir_select(model, x, y, pool, 12, lr=0.5, criterion="best", best_loss=best)
    wanted = after - torch.minimum(before, best)
    assert found.places[0] == 3
    torch.testing.assert_close(found.scores, wanted[found.places])


def test_a_reservoir_remembers_the_lowest_losses_of_what_it_holds() -> None:
    model, buffer = net(), ReservoirBuffer(8, stream(0, "b"))
    buffer.observe(*rows(8, seed=1))
    x, y = rows(5)
    mir_select(model, x, y, buffer, 3, lr=0.5, candidates=None, criterion="best")
    each = nn.CrossEntropyLoss(reduction="none")(model(buffer.rows()[0]), buffer.rows()[1]).detach()
    torch.testing.assert_close(buffer.best_loss, each)
    for step in range(6):
        places = buffer.observe(*rows(4, seed=step + 5))
        assert torch.isinf(buffer.best_loss[places[places >= 0]]).all()
    found = mir_select(model, x, y, buffer, 3, lr=0.5, candidates=5)
    assert len(found.x) == 3 and torch.equal(buffer.rows(found.places)[0], found.x)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_mir_in_other_types(dtype) -> None:
    model, buffer, (x, y) = net().to(dtype), ReservoirBuffer(9), rows(9)
    buffer.observe(x.to(dtype), y)
    found = mir_select(model, x[:4].to(dtype), y[:4], buffer, 3, lr=0.1)
    assert found.scores.dtype == dtype and torch.isfinite(buffer.best_loss).all()


def test_mir_bad_input() -> None:
    model, (x, y) = net(), rows(5)
    with pytest.raises(ValueError, match="no candidates"):
        mir_select(model, x, y, (x[:0], y[:0]), lr=0.1)
    with pytest.raises(ValueError, match="label 9 lies outside"):
        mir_select(model, x, y, (x, torch.full_like(y, 9)), 2, lr=0.1)
    with pytest.raises(RuntimeError, match="outside torch.inference_mode"), torch.inference_mode():
        mir_select(model, x, y, rows(4), 2, lr=0.1)
    with pytest.raises(ValueError, match="empty"):
        mir_select(model, x, y, ReservoirBuffer(3), lr=0.1)
    with pytest.warns(UserWarning, match="fewer"):
        assert len(mir_select(model, x, y, rows(4), 10, lr=0.1).x) == 4
    with pytest.raises(ValueError, match="lies outside"):
        mir_select(model, x, y + 9, rows(4), 2, lr=0.1)
    for bad in ({"k": 0}, {"lr": 0.0}, {"criterion": "other"}, {"criterion": "best"}):
        with pytest.raises(ValueError):
            mir_select(model, x, y, rows(4), **{"k": 2, "lr": 0.1, **bad})
    with pytest.raises(ValueError, match=r"one number a sample, \(5,\), got \(\)"):
        mir_select(model, x, y, rows(4), 2, lr=0.1, losses=ce)
    gss = GSSBuffer(8, model, ce)
    gss.observe(*rows(8))
    assert len(mir_select(model, x, y, gss, 3, lr=0.1).x) == 3


def test_interference_of_images_labelled_by_pixel_is_the_mean_over_pixels() -> None:
    model = seeded_build(lambda: nn.Conv2d(3, 4, 1), stream(0, "init"))
    x, y = torch.randn(6, 3, 2, 2, generator=stream(0, "rows")), torch.arange(24).view(6, 2, 2) % 4
    found = mir_select(model, x[:3], y[:3], (x, y), 2, lr=0.1)
    assert found.x.shape == (2, 3, 2, 2) and found.scores.shape == (2,)
    before, _ = interference(model, x[:3], y[:3], (x, y), lr=0.1)
    torch.testing.assert_close(before.mean(), ce(model(x), y))


def test_an_empty_batch_and_pickling() -> None:
    x, y = rows(3)
    for buffer in (ReservoirBuffer(4), SelectionBuffer(4, net(), ce)):
        assert buffer.observe(x[:0], y[:0]).shape == (0,)
        buffer.observe(x, y)
        assert buffer.observe(x[:0], y[:0]).shape == (0,) and len(buffer) == 3
        assert len(pickle.loads(pickle.dumps(buffer))) == 3


@pytest.mark.parametrize("kind", [GSSBuffer, SelectionBuffer])
def test_what_buffers_cannot_take(kind) -> None:
    buffer, (x, y) = kind(5, net(), ce), rows(3)
    with pytest.raises(ValueError, match="label 4 lies outside"):
        buffer.observe(x, y + 4 - y)
    with torch.inference_mode(), pytest.raises(RuntimeError, match="observe takes gradients"):
        buffer.observe(x, y)
    assert len(buffer) == 0


def test_no_step_without_a_trainable_parameter() -> None:
    with pytest.raises(ValueError, match="no trainable parameters"):
        mir_select(net().requires_grad_(False), *rows(3), rows(4, 1), 2, lr=0.1)


@pytest.mark.parametrize("kind", [GSSBuffer, SelectionBuffer, ReservoirBuffer])
def test_offers_that_are_no_tensors_of_one_length_are_named(kind) -> None:
    buffer, (x, y) = ReservoirBuffer(5) if kind is ReservoirBuffer else kind(5, net(), ce), rows(3)
    with pytest.raises(ValueError, match="must be tensors, got list: use torch.as_tensor"):
        buffer.observe(x, y.tolist())
    with pytest.raises(ValueError, match="must be tensors, got ndarray and ndarray"):
        buffer.observe(x.numpy(), y.numpy())
    with pytest.raises(ValueError, match="3 inputs and 2 labels"):
        buffer.observe(x, y[:2])
    assert len(buffer) == 0


@pytest.mark.parametrize("wrong", [{"threshold": float("nan")}, {"project": 0}])
def test_gss_settings_that_compare_nothing_are_refused(wrong) -> None:
    with pytest.raises(ValueError, match="threshold must be a number and project at least 1"):
        GSSBuffer(5, net(), ce, **wrong)


def test_rejected_samples_stay_counted() -> None:
    buffer, (x, y) = GSSBuffer(5, net(), ce), rows(3)
    buffer.observe(x * torch.tensor([1.0, float("nan"), 1.0])[:, None], y)
    fresh = GSSBuffer(5, net(), ce)
    fresh.load_state_dict(buffer.state_dict())
    assert fresh.num_rejected == buffer.num_rejected == 1


@pytest.mark.parametrize("few", [0, -1])
def test_retrieval_from_no_candidates_is_refused(few: int) -> None:
    buffer = ReservoirBuffer(5)
    buffer.observe(*rows(5))
    with pytest.raises(ValueError, match=f"candidates must be at least 1, or None for all, got {few}"):
        mir_select(net(), *rows(3, 1), buffer, 2, lr=0.1, candidates=few)


def test_losses_that_are_no_numbers_choose_nothing() -> None:
    x, y = rows(3)
    with pytest.raises(ValueError, match="positive, finite lr"):
        mir_select(net(), x, y, rows(4, 1), 2, lr=float("inf"))
    with pytest.raises(ValueError, match="losses after the virtual step are NaN"):
        mir_select(net(), x * float("nan"), y, rows(4, 1), 2, lr=0.1)
    with pytest.raises(ValueError, match=r"one loss a candidate, \(4,\), got \(3,\)"):
        mir_select(net(), x, y, rows(4, 1), 2, lr=0.1, criterion="best", best_loss=torch.zeros(3))
    pool = rows(4, 1)
    listed = mir_select(net(), x, y, list(pool), 2, lr=0.1)
    assert torch.equal(listed.places, mir_select(net(), x, y, pool, 2, lr=0.1).places)


def test_numbers_that_make_no_choice_or_histogram_are_refused() -> None:
    with pytest.raises(ValueError, match="similarity holds NaN"):
        diverse_subset(torch.full((4, 4), float("nan")), 2)
    with pytest.raises(ValueError, match=r"labels must lie in 0\.\.2, got 0\.\.5"):
        class_counts(torch.tensor([0, 5]), 3)
