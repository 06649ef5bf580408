import numpy as np
import pytest
import torch

from etude.continual.frozen import FrozenFeatures, frozen_features, user_features
from etude.data.images import ImageSet
from etude.data.randomness import stream
from etude.data.tables import TableSet
from etude.data.text import TextDataset
from etude.errors import UsageError


def rows(n: int = 200, width: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(n, width, generator=stream(0, "x")) @ torch.randn(width, width, generator=stream(0, "mix")) + 5
    return x, torch.arange(n) % 4


def test_whitening_is_fitted_on_training_rows() -> None:
    x, y = rows()
    task = FrozenFeatures("toy", x, y, 4, scale=4).task(0)
    assert task.train.x.shape == (140, 4) and task.test.x.shape == (60, 4)
    assert torch.allclose(task.train.x.mean(0), torch.zeros(4), atol=1e-4)
    assert torch.allclose(torch.cov(task.train.x.T), torch.eye(4), atol=1e-3)
    assert not torch.allclose(torch.cov(task.test.x.T), torch.eye(4), atol=1e-3)
    assert task.train.y.bincount().tolist() == [35] * 4
    again, other = (FrozenFeatures("toy", x, y, 4, scale=4).task(s) for s in (0, 1))
    assert torch.equal(task.train.x, again.train.x) and not torch.equal(task.train.y, other.train.y)


def test_a_flat_column_does_no_harm() -> None:
    x, y = rows()
    x[:, 2] = 7.0
    for scale in ("standard", 6):
        task = FrozenFeatures("toy", x, y, 4, scale=scale).task(0)
        assert torch.isfinite(task.train.x).all() and torch.isfinite(task.meta["other"]).all()
    assert FrozenFeatures("toy", x, y, 4, scale=6).task(0).train.x.shape[1] == 5


def test_other_data_are_in_the_same_scale() -> None:
    x, y = rows()
    given = FrozenFeatures("toy", x, y, 4, scale=4, other=x[:10]).task(0)
    found = [(given.train.x - row).abs().sum(1).min() < 1e-4 for row in given.meta["other"]]
    assert given.meta["other"].shape == (10, 4) and any(found)
    drawn = FrozenFeatures("toy", x, y, 4, scale=4).task(0).meta["other"]
    assert drawn.shape == (140, 4) and torch.allclose(torch.cov(drawn.T), torch.eye(4), atol=0.5)


def test_official_parts_stay() -> None:
    x, y = rows()
    parts = (torch.arange(150), torch.arange(150, 200))
    task = FrozenFeatures("toy", x, y, 4, official=parts).task(3)
    assert torch.equal(task.train.x, x[:150]) and torch.equal(task.test.y, y[150:])


def test_digits_and_unknown_names() -> None:
    task = frozen_features("digits").task(0)
    assert task.train.x.shape == (1258, 32) and task.num_classes == 10
    with pytest.raises(UsageError, match="no frozen features named 'digit'"):
        frozen_features("digit")


def test_features_of_what_users_bring() -> None:
    y = torch.arange(40) % 4
    images = ImageSet(torch.rand(40, 3, 20, 20, generator=stream(0, "x")), y, tuple("abcd"), "mine")
    assert user_features(images).task(0).train.x.shape[0] == 28
    columns = {"a": np.arange(40.0), "b": np.random.default_rng(0).random(40)}
    table = user_features(TableSet(columns, y, tuple("abcd"), "mine")).task(0)
    assert table.train.n + table.test.n == 40 and torch.isfinite(table.train.x).all()
    words = [f"{'rgbp'[i % 4] * 3} thing number{i % 7}" for i in range(40)]
    texts = user_features(TextDataset(words, y, classes=tuple("abcd"), name="mine")).task(0)
    assert texts.train.x.shape[0] == 28 and torch.allclose(texts.train.x.norm(dim=1), torch.ones(28), atol=1e-5)
    with pytest.raises(ValueError, match="no labels"):
        user_features(TextDataset(words, name="mine"))
