"""Black boxes: what goes in, what is refused, what is counted; the simulated physics."""

import copy
import math

import numpy as np
import pytest
import torch

from etude.data.randomness import stream
from etude.training.blackbox import BlackBox, amplitude
from etude.training.physical_boxes import BOXES, PhysicalBox


def test_amplitude_code():
    coded = amplitude(torch.tensor([[3.0, -4.0], [0.0, 0.0]]))
    assert torch.allclose(coded, torch.tensor([[0.6, 0.8], [0.0, 0.0]]) + 1e-6)


def test_no_gradient_passes_and_runs_are_counted():
    box = BlackBox(torch.nn.Linear(2, 3), repeats=2)
    x = torch.rand(4, 2, requires_grad=True)
    y = box(x)
    assert not y.requires_grad
    assert box.runs == 8


def test_callables_get_arrays_and_noise_is_averaged():
    rng = np.random.default_rng(0)
    seen = []

    def device(x):
        seen.append(type(x))
        return x[:, :1] + rng.normal(size=(len(x), 1))

    once = BlackBox(device, encode=None)(torch.zeros(500, 2)).std()
    often = BlackBox(device, encode=None, repeats=25)(torch.zeros(500, 2)).std()
    assert seen[0] is np.ndarray
    assert often < once / 3


@pytest.mark.parametrize(
    ("fn", "words"),
    [
        (lambda x: np.where(np.arange(len(x))[:, None] == 2, np.nan, x), "mirror returned NaN or infinity in row 2"),
        (lambda x: x[:-1], r"mirror got \(4, 3\) and returned \(3, 3\)"),
        (lambda x: x[:, 0], "mirror got"),
        (lambda x: x * 1j, "take abs"),
        (lambda x: None, r"mirror returned NoneType, not numbers: need \(4, p\)"),
        (lambda x: [["a"]] * 4, "mirror returned list, not numbers"),
    ],
)
def test_bad_outputs_name_the_box(fn, words):
    with pytest.raises(ValueError, match=words):
        BlackBox(fn, name="mirror")(torch.rand(4, 3))


@pytest.mark.parametrize("torch_input", [False, True])
def test_a_box_may_work_in_place(torch_input):
    x = torch.rand(4, 3)
    kept = x.clone()
    doubled = BlackBox(lambda h: h.__imul__(2), repeats=3, encode=None, torch_input=torch_input)(x)
    assert torch.equal(x, kept)
    assert torch.allclose(doubled, 2 * kept)


def test_a_box_may_return_one_buffer_again_and_again_but_not_of_another_width():
    buffer, runs = np.zeros((4, 2), dtype=np.float32), iter(range(3))

    def device(x):
        buffer[:] = np.arange(4)[:, None] + next(runs)
        return buffer

    assert BlackBox(device, repeats=3)(torch.rand(4, 3))[:, 0].tolist() == [1, 2, 3, 4]
    widths = iter([1, 2])
    with pytest.raises(ValueError, match=r"mirror gave \[1, 2\] outputs"):
        BlackBox(lambda x: x[:, : next(widths)], name="mirror", repeats=2)(torch.rand(4, 3))


def test_a_dead_box_warns():
    with pytest.warns(UserWarning, match="dead"):
        BlackBox(lambda x: np.ones((len(x), 2)))(torch.rand(4, 3))


def test_bad_settings():
    with pytest.raises(TypeError, match="callable"):
        BlackBox(3)
    with pytest.raises(ValueError, match="repeats"):
        BlackBox(abs, repeats=0)
    with pytest.raises(ValueError, match="repeats must be a whole number of at least 1, got 1.5"):
        BlackBox(abs, repeats=1.5)
    with pytest.raises(ValueError, match="unknown box 'radio'"):
        PhysicalBox("radio", 2, 2, generator=stream(0, "b"))
    with pytest.raises(ValueError, match="at least 1"):
        PhysicalBox("optics", 0, 2, generator=stream(0, "b"))


def test_rows_in_bfloat16_reach_a_numpy_callable_and_come_back():
    h = torch.rand(3, 2, generator=stream(0, "h")).bfloat16()
    y = BlackBox(lambda x: 2 * x, encode=None)(h)
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, 2 * h)


@pytest.mark.parametrize("kind", BOXES)
def test_boxes_are_fixed_finite_and_drift_to_another_sample(kind):
    box = PhysicalBox(kind, 6, 5, generator=stream(3, "b"))
    again = PhysicalBox(kind, 6, 5, generator=stream(3, "b"))
    x = amplitude(torch.randn(20, 6, generator=stream(0, "x")))
    y = box(x)
    assert y.shape == (20, 5)
    assert torch.isfinite(y).all()
    assert torch.equal(y, again(x))
    assert torch.allclose(box.rotated(0)(x), y)
    turned = box.rotated(90)
    assert torch.allclose(turned.scatter, box.other, atol=1e-6)
    assert not torch.allclose(turned(x), y, atol=1e-2)
    assert torch.allclose(turned.rotated(-90)(x), y, atol=1e-4)  # and back


@pytest.mark.parametrize("kind", BOXES)
def test_a_box_in_double_precision_is_the_same_physics(kind):
    box = PhysicalBox(kind, 6, 5, generator=stream(3, "b"))
    x = amplitude(torch.randn(20, 6, generator=stream(0, "x")))
    for fine in (copy.deepcopy(box).double(), copy.deepcopy(box).to(torch.float64), box.rotated(0).double().rotated(0)):
        y = fine(x.double())
        assert y.dtype == torch.float64
        assert torch.allclose(y.float(), box(x), rtol=1e-4, atol=1e-5)
        assert torch.equal(fine.float()(x), box(x))


def test_optics_is_an_intensity_that_scales_with_the_square():
    box = PhysicalBox("optics", 4, 3, generator=stream(0, "b"))
    x = torch.rand(5, 4)
    assert torch.allclose(box(2 * x), 4 * box(x), rtol=1e-5)
    a = box.scatter
    assert torch.allclose(box(x)[0, 0], (a[0] * x[0]).sum().abs() ** 2)


def test_acoustic_is_odd_and_saturates():
    box = PhysicalBox("acoustic", 4, 3, generator=stream(0, "b"))
    x = torch.rand(5, 4)
    assert torch.allclose(box(-x), -box(x), atol=1e-6)
    assert box(1000 * x).abs().max() <= 1


def test_microwave_forgets_whole_turns():
    box = PhysicalBox("microwave", 4, 3, generator=stream(0, "b"))
    x = torch.rand(5, 4)
    turn = 2 / (4**0.5 / 2)
    assert torch.allclose(box(x + turn), box(x), atol=1e-4)
    assert math.isclose(float(box.carrier.abs().square().sum()), 1, rel_tol=1e-5)


def test_oscillators_at_rest_stay_at_rest():
    box = PhysicalBox("duffing", 4, 3, generator=stream(0, "b"))
    assert torch.equal(box(torch.zeros(2, 4)), torch.zeros(2, 3))
