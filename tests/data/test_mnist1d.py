"""MNIST-1D: equal to the published generator draw for draw, and its own properties over seeds."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from etude.data import mnist1d
from etude.data.mnist1d import LENGTH, Draws, render, templates


def test_equal_to_the_package_draw_for_draw():
    package = pytest.importorskip("mnist1d.transform", reason="optional: the package mnist1d is not installed")
    published = pytest.importorskip("mnist1d.data", reason="optional: the package mnist1d is not installed")
    args, known = published.get_dataset_args(), published.get_templates()
    np.testing.assert_allclose(templates(), known["x"], atol=1e-15)
    labels = np.arange(40) % 10
    state = np.random.get_state()  # noqa: NPY002 (the package draws from numpy's global generator)
    expected, drawn = [], []
    try:
        np.random.seed(0)  # noqa: NPY002
        for label in labels:
            before = np.random.get_state()  # noqa: NPY002
            expected.append(package.transform(known["x"][label], known["t"], args)[0])
            np.random.set_state(before)  # noqa: NPY002
            drawn.append(
                (
                    36 + int(np.random.rand() * 25),  # noqa: NPY002
                    1 + 0.4 * (np.random.rand() - 0.5),  # noqa: NPY002
                    np.random.choice(48),  # noqa: NPY002
                    np.random.randn(72),  # noqa: NPY002
                    np.random.randn(72),  # noqa: NPY002
                    0.75 * (np.random.rand() - 0.5),  # noqa: NPY002
                )
            )
    finally:
        np.random.set_state(state)  # noqa: NPY002
    ours = render(labels, Draws(*(np.array(column) for column in zip(*drawn, strict=True))))
    np.testing.assert_allclose(ours, np.stack(expected), atol=1e-13)


@given(seed=st.integers(0, 2**31 - 1), n=st.integers(10, 120))
def test_shapes_balance_and_scale(seed, n):
    task = mnist1d(n, 20, seed)
    assert task.train.x.shape == (n, LENGTH)
    assert task.test.x.shape == (20, LENGTH)
    assert task.train.x.dtype == torch.float32
    assert int(task.train.y.bincount(minlength=10).max() - task.train.y.bincount(minlength=10).min()) <= 1
    assert abs(float(task.train.x.mean())) < 1e-5
    assert float(task.train.x.std(unbiased=False)) == pytest.approx(1, abs=1e-4)
    assert not torch.isin(task.test.x[:, 0], task.train.x[:, 0]).any()


def test_a_part_does_not_depend_on_the_size_of_the_others():
    small, large = mnist1d(50, 10, 3), mnist1d(50, 40, 3, n_val=5)
    assert torch.equal(small.train.x, large.train.x)
    assert small.val is None
    assert large.val.n == 5
    assert mnist1d(50, 0, 3).test is None
    assert not torch.equal(mnist1d(50, 10, 4).train.x, small.train.x)


def test_the_classes_can_be_learned():
    """Nearest class mean in the space of circular spectra is far above chance."""
    task = mnist1d(2000, 500, 0)

    def spectrum(x):
        return torch.fft.rfft(x).abs()

    means = torch.stack([spectrum(task.train.x[task.train.y == c]).mean(0) for c in range(10)])
    found = torch.cdist(spectrum(task.test.x), means).argmin(1)
    assert float((found == task.test.y).float().mean()) > 0.25


def test_bad_sizes_are_named():
    with pytest.raises(ValueError, match="n_train >= 1"):
        mnist1d(0, 10, 0)
    with pytest.raises(ValueError, match="got 10, -1, 0"):
        mnist1d(10, -1, 0)
