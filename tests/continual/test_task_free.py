import math
import pickle

import pytest
import torch
from torch import nn

from etude.continual import PlateauDetector, TaskFreeMAS, importance
from etude.data.randomness import seeded_build, stream


def net() -> nn.Sequential:
    return seeded_build(lambda: nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 3)), stream(0, "init"))


def test_one_plateau_for_each_settled_stretch() -> None:
    detector = PlateauDetector(window=3, mean_threshold=0.2, std_threshold=0.1)
    losses = [1.0, 0.5, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 2.0, 1.0, 0.5, 0.1, 0.1, 0.1, 0.1]
    found = [detector.observe(v) for v in losses]
    assert [i for i, f in enumerate(found) if f == "plateau"] == [4, 13]
    assert [i for i, f in enumerate(found) if f == "peak"] == [8]


def test_it_arms_again_only_above_mean_plus_deviation_of_the_plateau() -> None:
    detector = PlateauDetector(window=2, mean_threshold=0.2, std_threshold=0.1)
    assert [detector.observe(v) for v in (0.05, 0.15)] == [None, "plateau"]  # mean 0.1, deviation 0.05
    assert detector.observe(0.149) is None  # window mean 0.1495
    assert detector.observe(0.16) == "peak"  # 0.1545 > 0.15
    assert detector.armed


def test_a_noisy_or_high_stretch_is_no_plateau() -> None:
    noisy = PlateauDetector(window=2)
    assert not any(noisy.observe(v) for v in [0.0, 0.35] * 10)
    assert not any(PlateauDetector().observe(0.21) for _ in range(20))
    for bad in ({"window": 1}, {"mean_threshold": 0.0}, {"std_threshold": -1.0}):
        with pytest.raises(ValueError):
            PlateauDetector(**bad)
    with pytest.raises(ValueError, match="diverged"):
        PlateauDetector().observe(math.nan)


def test_hard_samples_are_those_of_largest_loss() -> None:
    model = net()
    tf = TaskFreeMAS(model, hard_size=4, detect=lambda n, loss: False)
    g = stream(0, "x")
    seen = [(torch.randn(5, 2, generator=g), torch.randint(0, 3, (5,), generator=g)) for _ in range(3)]
    for x, y in seen:
        tf.observe(x, y)
    x, y = torch.cat([s[0] for s in seen]), torch.cat([s[1] for s in seen])
    each = nn.functional.cross_entropy(model(x), y, reduction="none")
    assert tf.hard is not None  # the model stood still, so these are the hardest of all
    wanted = sorted(map(tuple, x[each.topk(4).indices].tolist()))
    assert sorted(map(tuple, tf.hard[0].tolist())) == wanted


def test_importance_is_taken_on_hard_samples_at_plateaus_and_averaged() -> None:
    model = net()
    tf = TaskFreeMAS(model, hard_size=3, detect=lambda n, loss: n in (1, 3))
    x, y = torch.randn(6, 2, generator=stream(0, "x")), torch.tensor([0, 1, 2, 0, 1, 2])
    assert [tf.observe(x, y) for _ in range(2)] == [False, True]
    first = importance(model, tf.hard[0])
    assert torch.equal(tf.omega["0.weight"], first["0.weight"])
    with torch.no_grad():
        model[0].weight.mul_(1.5)
    assert float(tf.penalty().detach()) > 0
    tf.observe(x, y), tf.observe(x, y)
    second = importance(model, tf.hard[0])
    torch.testing.assert_close(tf.omega["0.weight"], (first["0.weight"] + second["0.weight"]) / 2)
    assert float(tf.penalty().detach()) == 0 and tf.plateaus == [1, 3] and tf.num_updates == 2


def test_loss_counts_batch_and_hard_samples_alike() -> None:
    model = net()
    tf = TaskFreeMAS(model, hard_size=2, detect=lambda n, loss: False)
    x, y = torch.randn(5, 2, generator=stream(0, "x")), torch.tensor([0, 1, 2, 0, 1])
    ce = nn.functional.cross_entropy
    torch.testing.assert_close(tf.loss(model, (x, y)), ce(model(x), y))
    tf.observe(x, y)
    hx, hy = tf.hard
    torch.testing.assert_close(tf.loss(model, (x, y)), ce(model(x), y) + ce(model(hx), hy))


def test_it_finds_the_change_of_a_stream_by_itself() -> None:
    model = net()
    tf = TaskFreeMAS(model, lam=0.1, hard_size=10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
    g = stream(0, "stream")
    for step in range(160):
        side = -1.0 if step < 80 else 1.0
        x = torch.randn(10, 2, generator=g) * 0.3 + torch.tensor([3 * side, 0.0])
        y = (x[:, 1] > 0).long() if side > 0 else torch.full((10,), 2)
        for _ in range(3):
            optimizer.zero_grad()
            (tf.loss(model, (x, y)) + tf.penalty()).backward()
            optimizer.step()
        tf.observe(x, y)
    assert tf.plateaus and tf.plateaus[0] < 40  # the first half settles soon
    assert any(80 <= p < 84 for p in tf.peaks)


def test_state_goes_on_identically() -> None:
    model, other_model = net(), net()
    one, other = TaskFreeMAS(model, hard_size=3), TaskFreeMAS(other_model, hard_size=3)
    x = torch.randn(6, 2, generator=stream(0, "x"))
    y = model(x).argmax(1)
    for _ in range(4):
        one.observe(x, y)
    other.load_state_dict(one.state_dict())
    for tf in (one, other):
        for _ in range(4):
            tf.observe(x, y)
    again = pickle.loads(pickle.dumps(other))
    assert again.plateaus == one.plateaus
    a, b = one.state_dict(), again.state_dict()
    assert a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


def test_bad_input() -> None:
    tf = TaskFreeMAS(net())
    with pytest.raises(ValueError, match="lies outside"):
        tf.observe(torch.zeros(2, 2), torch.tensor([0, 3]))
    with pytest.raises(ValueError, match="lies outside"):
        tf.loss(tf.model, (torch.zeros(2, 2), torch.tensor([0, -1])))
    with pytest.raises(ValueError, match="no samples"):
        tf.observe(torch.zeros(0, 2), torch.zeros(0, dtype=torch.long))
    mean = TaskFreeMAS(net(), losses=nn.CrossEntropyLoss())
    for call in (mean.observe, lambda x, y: mean.loss(mean.model, (x, y))):
        with pytest.raises(ValueError, match="one number a sample"):
            call(torch.zeros(2, 2), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="hard_size"):
        TaskFreeMAS(net(), hard_size=0)


def test_a_refused_batch_is_not_booked() -> None:
    free, x, y = TaskFreeMAS(net()), torch.randn(4, 2, generator=stream(0, "x")), torch.tensor([0, 1, 2, 0])
    with pytest.raises(ValueError, match="must be tensors, got list"):
        free.observe(x, y.tolist())
    with pytest.raises(ValueError, match="diverged"):
        free.observe(x * math.nan, y)
    assert free.num_batches == 0 and free.hard is None
    free.observe(x, y)
    assert free.num_batches == 1
