"""Streams learned task by task and online."""

import numpy as np
import pytest
import torch
from torch import nn

from etude.continual import (
    MAS,
    GSSBuffer,
    Replay,
    ReservoirBuffer,
    TaskFreeMAS,
    TaskHeads,
    evaluate_stream,
    learn_online,
    learn_tasks,
)
from etude.continual.evaluate import StreamResult
from etude.data import class_stream, permuted_stream
from etude.data.randomness import seeded_build, stream
from etude.data.tasks import Split, Task
from etude.training import TrainConfig


def task(classes: int = 6, rows: int = 60, width: int = 8) -> Task:
    g = stream(0, "task")
    centre = 2.5 * torch.randn(classes, width, generator=g)
    y = torch.arange(classes).repeat_interleave(rows)
    draw = lambda: centre[y] + torch.randn(len(y), width, generator=g)
    return Task("blobs", "table", Split(draw(), y), None, Split(draw(), y), classes)


def net(classes: int = 6, seed: int = 0) -> nn.Sequential:
    return seeded_build(lambda: nn.Sequential(nn.Linear(8, 24), nn.ReLU(), nn.Linear(24, classes)), stream(seed, "i"))


def test_tasks_with_a_head_each_are_evaluated_so_far_and_mas_forgets_less() -> None:
    forgotten = {}
    for lam in (0.0, 1.0):
        trunk = seeded_build(lambda: nn.Sequential(nn.Linear(8, 12), nn.ReLU()), stream(0, "trunk"))
        model = TaskHeads(trunk, 12)
        mas = MAS(model, lam)
        found = learn_tasks(
            model, permuted_stream(task(), 4, seed=0), config=TrainConfig(epochs=8, lr=1e-2), penalty=mas.penalty,
            after=lambda s, mas=mas: mas.update(s.train.x),
        )  # fmt: skip
        assert np.isnan(found.R[np.triu_indices(4, 1)]).all() and not np.isnan(found.R[np.tril_indices(4)]).any()
        assert found.learned > 0.7 and len(model.heads) == 4
        forgotten[lam] = found.forgetting
    assert forgotten[1.0] < forgotten[0.0] - 0.05


def test_same_seed_same_result_and_the_global_generator_is_left_alone() -> None:
    segments = permuted_stream(task(), 2, seed=0)
    states = []
    for _ in range(2):
        torch.manual_seed(5)
        model = TaskHeads(seeded_build(lambda: nn.Linear(8, 6), stream(0, "trunk")), 6)
        learn_tasks(model, segments, config=TrainConfig(epochs=1), seed=3)
        states.append((model.state_dict(), torch.rand(1)))
    assert all(torch.equal(states[0][0][n], t) for n, t in states[1][0].items())
    assert torch.equal(states[0][1], states[1][1])


def test_relabelled_segments_get_heads_of_their_own_size() -> None:
    model = TaskHeads(nn.Linear(8, 6), 6)
    found = learn_tasks(model, class_stream(task(), 2, seed=0, relabel=True), config=TrainConfig(epochs=4, lr=1e-2))
    assert [h.out_features for h in model.heads] == [2, 2, 2] and found.learned > 0.8


def online(replay=None, **options) -> float:
    model = net()
    if callable(replay):
        replay = replay(model)
    segments = class_stream(task(), 2, seed=0, order=range(6))
    config = TrainConfig(optimizer="sgd", lr=0.05)
    return learn_online(model, segments, config=config, iterations=2, replay=replay, **options).average


def test_replay_beats_no_memory_in_every_form() -> None:
    alone = online()
    buffer = lambda: ReservoirBuffer(30, stream(0, "b"))
    forms = {
        "reservoir": Replay(buffer()),
        "together": Replay(buffer(), together=True),
        "mir": Replay(buffer(), choose="interfered"),
        "gss": lambda m: Replay(GSSBuffer(30, m, nn.CrossEntropyLoss(), generator=stream(0, "g"))),
    }
    for name, replay in forms.items():
        assert online(replay) > alone + 0.1, name


def test_every_batch_is_seen_once_and_offered_to_the_memory() -> None:
    buffer, sizes = ReservoirBuffer(1000, stream(0, "b")), []
    online(Replay(buffer), on_batch=lambda number, batch: sizes.append((number, len(batch.x))))
    assert [n for n, _ in sizes] == list(range(36)) and sum(s for _, s in sizes) == 360 == buffer.num_seen


def test_task_free_observes_the_stream() -> None:
    model = net()
    tf = TaskFreeMAS(model, lam=0.01, detect=lambda n, loss: n % 12 == 11)
    segments = class_stream(task(), 2, seed=0, order=range(6))
    learn_online(model, segments, config=TrainConfig(optimizer="sgd", lr=0.05), task_free=tf)
    assert tf.num_batches == 36 and tf.plateaus == [11, 23, 35]
    with pytest.raises(ValueError, match="replay or task_free"):
        learn_online(model, segments, config=TrainConfig(), task_free=tf, replay=Replay(ReservoirBuffer(3)))
    with pytest.raises(ValueError, match="iterations"):
        learn_online(model, segments, config=TrainConfig(), iterations=0)


def test_labels_outside_the_head_and_batch_norm() -> None:
    segments = class_stream(task(), 2, seed=0, order=range(6))
    with pytest.raises(ValueError, match="lies outside"):
        learn_online(net(classes=4), segments, config=TrainConfig())
    with pytest.raises(ValueError, match="lies outside"):
        learn_tasks(net(classes=4), segments, config=TrainConfig(epochs=1))
    normed = nn.Sequential(nn.Linear(8, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 6))
    with pytest.warns(UserWarning, match="GroupNorm"):
        learn_online(normed, segments[:1], config=TrainConfig())


def test_more_measures_of_a_matrix() -> None:
    R = np.array([[0.9, 0.1, 0.0], [0.5, 0.8, 0.2], [0.6, 0.2, 0.7]])
    found = StreamResult(R, R)
    assert found.incremental == pytest.approx((0.9 + 0.65 + 0.5) / 3)
    assert found.last(2) == pytest.approx(0.45) and found.last(3) == found.average
    assert found.fwt([0.0, 0.3, 0.1]) == pytest.approx((0.1 - 0.3 + 0.2 - 0.1) / 2)
    assert found.intransigence([1.0, 1.0, 1.0]) == pytest.approx(0.2)
    assert found.forgetting_by_segment == pytest.approx([0.3, 0.6, 0.0])
    for k in (0, 4):
        with pytest.raises(ValueError):
            found.last(k)
    with pytest.raises(ValueError, match="one accuracy a segment"):
        found.fwt([0.1])
    lower = np.where(np.tril(np.ones((3, 3))) > 0, R, np.nan)
    assert StreamResult(lower, R).forgetting == pytest.approx((0.3 + 0.6) / 2)


def test_predictors_that_are_told_the_task() -> None:
    segments = class_stream(task(), 2, seed=0, order=range(6), relabel=True)
    says = lambda x, t: torch.full((len(x),), t % 2)
    found = evaluate_stream(says, segments, by_task=True)
    assert found.R.shape == (1, 3) and found.R[0] == pytest.approx([0.5] * 3)


@pytest.mark.parametrize(
    ("options", "words"), [({"choose": "Random"}, "'Random'"), ({"size": 0}, "size"), ({"candidates": 0}, "candidates")]
)
def test_replay_that_means_nothing(options, words) -> None:
    with pytest.raises(ValueError, match=words):
        Replay(ReservoirBuffer(3), **options)


def test_interfered_replay_needs_one_rate() -> None:
    segments = class_stream(task(), 2, seed=0, order=range(6))[:1]
    replay = Replay(ReservoirBuffer(30), choose="interfered")
    with pytest.raises(ValueError, match="needs one rate"):
        learn_online(net(), segments, config=TrainConfig(lr={"*": 0.1}), replay=replay)
    learn_online(net(), segments, config=TrainConfig(optimizer="sgd", lr=1), replay=replay)


def test_heads_that_are_there_already_would_be_asked_for_other_segments() -> None:
    model = TaskHeads(seeded_build(lambda: nn.Linear(8, 5), stream(0, "i")), 5)
    segments = permuted_stream(task(), 2, seed=0)
    learn_tasks(model, segments[:1], config=TrainConfig(epochs=1))
    learn_tasks(model, [segments[1]], config=TrainConfig(epochs=1))  # the stream goes on
    with pytest.raises(ValueError, match="has 2 heads, so segment 0 would get another number"):
        learn_tasks(model, segments, config=TrainConfig(epochs=1))


def test_a_memory_of_another_model_is_refused() -> None:
    model, config = net(), TrainConfig(optimizer="sgd", lr=0.05)
    segments = class_stream(task(), 2, seed=0)
    with pytest.raises(ValueError, match="GSSBuffer holds another model"):
        learn_online(model, segments, config=config, replay=Replay(GSSBuffer(5, net(), nn.CrossEntropyLoss())))
    with pytest.raises(ValueError, match="TaskFreeMAS holds another model"):
        learn_online(model, segments, config=config, task_free=TaskFreeMAS(net()))
