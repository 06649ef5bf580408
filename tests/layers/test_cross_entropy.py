"""Cross-entropy over the targets that count; focal loss."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from etude.data import stream
from etude.layers import focal, masked_cross_entropy


def sample(seed: int = 0, shape: tuple[int, ...] = (4, 6), classes: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    generator = stream(seed, "sample")
    logits = torch.randn(*shape, classes, generator=generator, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(classes, shape, generator=generator)
    keep = torch.rand(shape, generator=generator) < 0.6
    keep.view(-1)[0] = True
    return logits, torch.where(keep, targets, -100), keep


@given(seed=st.integers(0, 500), smoothing=st.sampled_from([0.0, 0.1, 0.5]))
def test_tokens_is_torchs_mean(seed: int, smoothing: float) -> None:
    logits, targets, _ = sample(seed)
    mine = masked_cross_entropy(logits, targets, label_smoothing=smoothing)
    theirs = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), label_smoothing=smoothing)
    torch.testing.assert_close(mine, theirs)
    (a,) = torch.autograd.grad(mine, logits)
    (b,) = torch.autograd.grad(theirs, logits)
    torch.testing.assert_close(a, b)


def test_sequences_weigh_the_same() -> None:
    logits, targets, keep = sample()
    targets[2], keep[2] = -100, False
    means = [F.cross_entropy(logits[i][keep[i]], targets[i][keep[i]]) for i in (0, 1, 3)]
    torch.testing.assert_close(masked_cross_entropy(logits, targets, reduction="sequence"), torch.stack(means).mean())


@pytest.mark.parametrize("reduction", ["tokens", "sequence"])
def test_nothing_counts(reduction: str) -> None:
    logits = torch.randn(2, 3, 4, requires_grad=True)
    loss = masked_cross_entropy(logits, torch.full((2, 3), -100), reduction=reduction)
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert torch.equal(logits.grad, torch.zeros(2, 3, 4))


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_masked_classes_and_dead_rows_give_no_nan(smoothing: float) -> None:
    """Pointer logits: some classes are -inf, and a row that does not count has no class at all."""
    scores = torch.randn(3, 4, requires_grad=True)
    mask = torch.tensor([[True, True, False, True], [True, False, False, False], [False] * 4])
    logits = scores.masked_fill(~mask, -torch.inf)
    targets = torch.tensor([1, 0, -100])
    loss = masked_cross_entropy(logits, targets, label_smoothing=smoothing)
    loss.backward()
    log_probs = torch.log_softmax(scores[0, mask[0]], 0)
    want = (1 - smoothing) * -log_probs[1] + smoothing * -log_probs.mean()
    assert float(loss.detach()) == pytest.approx(float(want.detach()) / 2, abs=1e-6)
    assert torch.isfinite(scores.grad).all()
    assert torch.equal(scores.grad[1:], torch.zeros(2, 4))


def test_under_vmap_and_gradcheck() -> None:
    logits, targets, _ = sample()
    both = torch.vmap(masked_cross_entropy)(logits, targets)
    torch.testing.assert_close(both, torch.stack([masked_cross_entropy(a, b) for a, b in zip(logits, targets)]))
    assert torch.autograd.gradcheck(lambda z: masked_cross_entropy(z, targets, label_smoothing=0.1), (logits,))
    y = targets.clamp(min=0)
    assert torch.autograd.gradcheck(lambda z: focal(z, y, 1.5), (logits,))


@given(seed=st.integers(0, 500), gamma=st.floats(0, 5))
def test_focal_by_its_formula(seed: int, gamma: float) -> None:
    logits, targets, _ = sample(seed, (12,))
    y = targets.clamp(min=0)
    p = torch.softmax(logits, -1)[torch.arange(12), y]
    torch.testing.assert_close(focal(logits, y, gamma), (-((1 - p) ** gamma) * p.log()).mean())
    weight = torch.arange(5) + 0.5
    want = (-((1 - p) ** gamma) * p.log() * weight[y]).mean()
    torch.testing.assert_close(focal(logits, y, gamma, weight=weight.double()), want)


def test_focal_without_focus_is_cross_entropy_and_certainty_is_no_nan() -> None:
    logits, targets, _ = sample(1, (12,))
    y = targets.clamp(min=0)
    torch.testing.assert_close(focal(logits, y, 0.0), F.cross_entropy(logits, y))
    sure = torch.tensor([[100.0, 0.0], [-100.0, 100.0]], requires_grad=True)
    for gamma in (0.5, 2.0):
        (gradient,) = torch.autograd.grad(focal(sure, torch.tensor([0, 0]), gamma), sure)
        assert torch.isfinite(gradient).all()


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (lambda: masked_cross_entropy(torch.zeros(2, 3), torch.zeros(3, dtype=torch.long)), r"need targets \(2,\)"),
        (lambda: masked_cross_entropy(torch.zeros(2, 3), torch.zeros(2)), "integers"),
        (lambda: masked_cross_entropy(torch.zeros(2, 3), torch.zeros(2).long(), label_smoothing=1.0), "smoothing"),
        (lambda: masked_cross_entropy(torch.zeros(2, 3), torch.zeros(2).long(), reduction="mean"), "unknown reduction"),
        (lambda: masked_cross_entropy(torch.zeros(3), torch.tensor(1), reduction="sequence"), "time axis"),
        (lambda: focal(torch.zeros(2, 3), torch.zeros(2).long(), -1.0), "gamma"),
        (lambda: focal(torch.zeros(2, 3), torch.zeros(3).long()), "need labels"),
        (lambda: focal(torch.zeros(0, 3), torch.zeros(0).long()), "no rows"),
        (lambda: focal(torch.zeros(2, 3), torch.zeros(2).long(), weight=torch.ones(2)), "one entry a class"),
    ],
)
def test_bad_input(call: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        call()
