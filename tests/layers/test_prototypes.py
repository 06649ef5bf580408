"""Prototype layer, its two regularisers, class means."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from etude.data.randomness import stream
from etude.layers import PrototypeLayer, class_means, mean_logits, prototype_regularizers


def layer(prototypes) -> PrototypeLayer:
    made = PrototypeLayer(len(prototypes), len(prototypes[0]))
    with torch.no_grad():
        made.prototypes.copy_(torch.tensor(prototypes))
    return made


def test_squared_distances_and_regularisers_by_hand():
    made = layer([[0.0, 0.0], [3.0, 4.0], [0.0, 10.0]])
    z = torch.tensor([[0.0, 1.0], [3.0, 3.0]])
    assert torch.allclose(made(z), torch.tensor([[1.0, 18.0, 81.0], [18.0, 1.0, 58.0]]))
    r = made.regularizers(z)
    assert r.r1.item() == pytest.approx((1 + 1 + 58) / 3)  # a mean over prototypes
    assert r.r2.item() == pytest.approx((1 + 1) / 2)  # a mean over rows
    again = prototype_regularizers(made(z))
    assert (again.r1.item(), again.r2.item()) == pytest.approx((20.0, 1.0))


def test_gradients_reach_the_nearest_only():
    made = layer([[0.0, 0.0], [5.0, 0.0]])
    z = torch.tensor([[1.0, 0.0]], requires_grad=True)
    made.regularizers(z).r2.backward()
    assert made.prototypes.grad.tolist() == [[-2.0, 0.0], [0.0, 0.0]]
    assert z.grad.tolist() == [[2.0, 0.0]]


def test_start_is_uniform_and_is_in_the_state_dict():
    made = PrototypeLayer(200, 5)
    assert 0 <= made.prototypes.min() < made.prototypes.max() < 1
    assert list(made.state_dict()) == ["prototypes"]


@pytest.mark.parametrize("sizes", [(True, 2), (0, 3), (3, 0), (-1, 2), (2.5, 3)])
def test_sizes_below_one(sizes):
    with pytest.raises(ValueError, match="at least 1"):
        PrototypeLayer(*sizes)


def test_wrong_shapes_are_named():
    with pytest.raises(ValueError, match=r"\(rows, 2\), got \(3, 4\)"):
        PrototypeLayer(3, 2)(torch.zeros(3, 4))
    with pytest.raises(ValueError, match=r"got \(0, 3\)"):
        prototype_regularizers(torch.zeros(0, 3))


@given(st.integers(0, 1000))
def test_class_means_equal_a_loop_over_episodes(seed):
    g = stream(seed, "test")
    h = torch.randn(3, 12, 4, generator=g)
    y = torch.stack([torch.randperm(12, generator=g) % 3 for _ in range(3)])
    y[0, (y[0] == 0).nonzero()[0]] = -1
    got = class_means(h, y, 3)
    for e in range(3):
        for c in range(3):
            assert torch.allclose(got[e, c], h[e][y[e] == c].mean(0), atol=1e-6)


def test_class_means_of_many_rows_in_half_precision():
    rows = torch.full((2, 3000, 1), 30.0, dtype=torch.float16)  # their sum lies beyond its range
    assert torch.equal(class_means(rows, torch.zeros(2, 3000), 1), rows[:, :1])


def test_class_means_bad_input():
    h = torch.zeros(2, 4, 3)
    with pytest.raises(ValueError, match=r"class 1 of episode \(1,\) has no row"):
        class_means(h, torch.tensor([[0, 1, 0, 1], [0, 0, 0, 0]]), 2)
    with pytest.raises(ValueError, match="class 2 has no row"):
        class_means(h[0], torch.tensor([0, 1, 0, 1]), 3)
    with pytest.raises(ValueError, match="below num_classes=2, got 5"):
        class_means(h[0], torch.tensor([0, 1, 5, 1]), 2)
    with pytest.raises(ValueError, match="labels"):
        class_means(h, torch.zeros(2, 3), 2)
    with pytest.raises(ValueError, match="at least 1"):
        class_means(h[0], torch.zeros(4), 0)


def test_mean_logits_by_metric():
    q, m = torch.tensor([[1.0, 0.0]]), torch.tensor([[2.0, 0.0], [0.0, 3.0]])
    assert mean_logits(q, m).tolist() == [[-1.0, -10.0]]
    assert mean_logits(q, m, temperature=2.0).tolist() == [[-0.5, -5.0]]
    assert mean_logits(q, m, metric="cosine").tolist() == [[1.0, 0.0]]
    assert mean_logits(q, m, metric="dot").tolist() == [[2.0, 0.0]]
    assert mean_logits(q.expand(4, 1, 2), m.expand(4, 2, 2)).shape == (4, 1, 2)
    with pytest.raises(ValueError, match="unknown metric 'l1'"):
        mean_logits(q, m, metric="l1")
    with pytest.raises(ValueError, match="positive"):
        mean_logits(q, m, temperature=0.0)
