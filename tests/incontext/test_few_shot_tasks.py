import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from etude.incontext import EpisodeLSTM, EpisodeMAML, OnlinePrototypes
from etude.incontext import few_shot_tasks as tasks
from etude.incontext.episode_labels import encode_labels, item_losses, prediction_error, previous_labels
from etude.layers import forward_with


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


@given(st.integers(0, 50), st.sampled_from(["sine", "triangle"]))
def test_sinusoids_keep_their_ranges(seed, family):
    e = tasks.sinusoid_episodes(20, 30, gen(seed), family=family)
    assert e.x.shape == (20, 30, 1) and e.y.shape == (20, 30)
    assert float(e.x.abs().max()) <= 5 and float(e.y.abs().max()) <= 5


def test_a_sinusoid_is_one():
    e = tasks.sinusoid_episodes(5, 400, gen())
    x, y = e.x[..., 0].double(), e.y.double()
    basis = torch.stack([x.sin(), x.cos()], -1)
    fit = torch.linalg.lstsq(basis, y[..., None]).solution
    assert torch.allclose(basis @ fit, y[..., None], atol=1e-4)


@given(st.integers(0, 30))
def test_zipf_labels_have_their_frequencies_and_rarest(seed):
    y, rarest = tasks.zipf_labels(300, 60, 3, 1.5, gen(seed))
    share = torch.tensor([1, 2**-1.5, 3**-1.5])
    share /= share.sum()
    counts = torch.stack([(y == rarest[:, None]).float().mean()])
    assert float(counts) == pytest.approx(float(share[2]), abs=0.03)
    assert float((y == 0).float().mean()) == pytest.approx(1 / 3, abs=0.06)  # ranks are dealt at random


def test_prototype_episodes_are_separable_and_switch():
    e = tasks.prototype_episodes(50, 12, gen(), switch_at=6)
    near = torch.cdist(e.x, e.x)
    same = e.y[:, :, None] == e.y[:, None]
    half = torch.arange(12) < 6
    both = half[:, None] == half[None]
    off = ~torch.eye(12, dtype=torch.bool)
    assert float(near[(same & both & off).expand_as(near)].mean()) < 2.2
    assert float(near[same & ~both].mean()) > 2.5


def test_image_episodes_draw_their_classes():
    labels = torch.arange(6).repeat_interleave(4)
    images = labels[:, None, None].float().expand(-1, 2, 2)
    e = tasks.image_episodes(images, labels, 3, 20)(gen(), 8)
    for b in range(8):
        pairs = {(int(i), int(k)) for i, k in zip(e.x[b, :, 0, 0], e.y[b], strict=True)}
        assert len(pairs) == len({k for _, k in pairs}) == len({i for i, _ in pairs}) <= 3
    with pytest.raises(ValueError, match="classes"):
        tasks.image_episodes(images, labels, 7, 5)


def test_presentations_and_their_accuracy():
    y = torch.tensor([[0, 1, 0, 0, 1]])
    assert tasks.presentations(y).tolist() == [[1, 1, 2, 3, 2]]
    logits = torch.nn.functional.one_hot(torch.tensor([[0, 0, 0, 1, 0]]), 2).float()
    assert tasks.presentation_accuracy(logits, y, 1) == 0.5
    assert tasks.presentation_accuracy(logits, y, 2) == 0.5
    assert tasks.presentation_accuracy(logits, y, 2, torch.tensor([0])) == 1.0
    assert math.isnan(tasks.presentation_accuracy(logits, y, 9))
    assert tasks.label_counts(y, 2)[0].tolist() == [[0, 0], [1, 0], [1, 1], [2, 1], [3, 1]]


def test_labels_and_losses():
    y, known = encode_labels(torch.tensor([[0, -1, 2]]), 3, "classification")
    assert known.tolist() == [[True, False, True]] and y[0].tolist() == [[1, 0, 0], [0, 0, 0], [0, 0, 1]]
    v, known = encode_labels(torch.tensor([[1.0, math.nan]]), 1, "regression")
    assert known.tolist() == [[True, False]] and v.flatten().tolist() == [1.0, 0.0]
    logits = torch.randn(1, 3, 3, requires_grad=True)
    items = item_losses(logits, y, "classification")
    (grad,) = torch.autograd.grad(items[0, 0], logits)
    assert torch.allclose(grad[0, 0], prediction_error(logits, y, "classification")[0, 0], atol=1e-6)
    assert previous_labels(y, 1)[0].tolist() == [[0, 0, 0], [1, 0, 0], [0, 0, 0]]
    assert previous_labels(y, 0) is y
    with pytest.raises(ValueError, match="labels must be finite"):
        encode_labels(torch.tensor([[1.0, -math.inf]]), 1, "regression")


def test_maml_equals_gradient_descent_by_hand_on_every_prefix():
    torch.manual_seed(0)
    net = EpisodeMAML(1, 1, 2, hidden_size=8, inner_lr=0.05).eval()
    e = tasks.sinusoid_episodes(3, 5, gen())
    found = net(e.x, e.y).predictions
    for b in range(3):
        for t in range(5):
            params = {n: p.detach().clone().requires_grad_(True) for n, p in net.start.named_parameters()}
            for _ in range(2 if t else 0):
                loss = (forward_with(net.start, params, e.x[b, :t]) - e.y[b, :t, None]).square().mean()
                grads = torch.autograd.grad(loss, list(params.values()))
                params = {
                    n: (p - 0.05 * g).detach().requires_grad_(True)
                    for (n, p), g in zip(params.items(), grads, strict=True)
                }
            assert torch.allclose(forward_with(net.start, params, e.x[b, t : t + 1])[0], found[b, t], atol=1e-5)


def test_maml_learns_through_its_inner_steps():
    torch.manual_seed(0)
    second, first = (EpisodeMAML(1, 1, 1, hidden_size=8, first_order=f) for f in (False, True))
    first.load_state_dict(second.state_dict())
    e = tasks.sinusoid_episodes(4, 6, gen())
    grads = []
    for net in (second, first):
        torch.manual_seed(1)
        net(e.x, e.y).loss.backward()
        grads.append(net.start[0].weight.grad)
    assert second.log_lr.grad is not None and not torch.allclose(*grads)
    for wrong in ({"steps": 0}, {"inner_lr": 0.0}):
        with pytest.raises(ValueError):
            EpisodeMAML(1, 1, **wrong)


def test_maml_draws_its_prefixes_from_the_callers_generator():
    torch.manual_seed(0)
    net, e, state = EpisodeMAML(1, 1, 1, hidden_size=8), tasks.sinusoid_episodes(4, 6, gen()), torch.get_rng_state()
    losses = [float(net(e.x, e.y, torch.Generator().manual_seed(s)).loss.detach()) for s in (3, 3, 4)]
    assert torch.equal(torch.get_rng_state(), state)
    assert losses[0] == losses[1] != losses[2]


@pytest.mark.parametrize("make", [lambda: EpisodeLSTM(16, 3, 8), lambda: EpisodeMAML(16, 3, task="classification").eval(),
                                  lambda: OnlinePrototypes(3)])  # fmt: skip
def test_no_baseline_sees_its_own_label(make):
    torch.manual_seed(0)
    net = make()
    e = tasks.prototype_episodes(6, 8, gen())
    other = e.y.clone()
    other[:, 4] = (e.y[:, 4] + 1) % 3
    a, b = net(e.x, e.y).predictions, net(e.x, other).predictions
    assert torch.allclose(a[:, :5], b[:, :5], atol=1e-6)
    assert not torch.allclose(a[:, 5:], b[:, 5:])


def test_online_prototypes_are_nearest_means():
    e = tasks.prototype_episodes(10, 12, gen(3))
    found = OnlinePrototypes(3)(e.x, e.y).predictions.argmax(-1)
    for b in range(10):
        for t in range(1, 12):
            seen = {int(c): e.x[b, :t][e.y[b, :t] == c].mean(0) for c in e.y[b, :t].unique()}
            best = min(seen, key=lambda c: float((seen[c] - e.x[b, t]).norm()))
            assert int(found[b, t]) == best
    assert tasks.presentation_accuracy(OnlinePrototypes(3)(e.x, e.y).predictions, e.y, 2) > 0.8


def test_a_class_that_was_never_seen_is_not_in_the_loss():
    e = tasks.prototype_episodes(6, 8, gen())
    loss = OnlinePrototypes(3)(e.x, e.y).loss
    assert 0 < float(loss) < 50
    assert float(OnlinePrototypes(3)(e.x[:, :1], e.y[:, :1]).loss) == 0


def test_maml_adapts_whatever_torch_was_told():
    torch.manual_seed(0)
    net, e = EpisodeMAML(1, 1, 2, hidden_size=8).eval(), tasks.sinusoid_episodes(3, 5, gen())
    with torch.inference_mode():
        found = net(e.x.clone(), e.y.clone()).predictions
    assert torch.equal(found, net(e.x, e.y).predictions)


def test_bad_input():
    for call in (
        lambda: EpisodeMAML(1, 1)(torch.zeros(0, 3, 1), torch.zeros(0, 3)),
        lambda: tasks.sinusoid_episodes(0, 3, gen()),
        lambda: tasks.sinusoid_episodes(1, 3, gen(), family="square"),
        lambda: tasks.zipf_labels(2, 3, 1, 1.0, gen()),
        lambda: tasks.zipf_labels(2, 3, 3, -1.0, gen()),
    ):
        with pytest.raises(ValueError):
            call()
