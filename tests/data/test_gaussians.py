import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from etude.data.gaussians import MEANS, STD, gaussian_stream


@given(seed=st.integers(0, 10**6))
def test_the_toy_stream(seed: int) -> None:
    segments = gaussian_stream(seed)
    assert [s.classes for s in segments] == [(0, 4), (1, 5), (2, 6), (3, 7)]
    means = torch.tensor(MEANS)
    for s in segments:
        for part, n in (("train", 100), ("test", 400)):
            data = s.split(part)
            assert data.n == n and data.x.dtype == torch.float32
            nearest = torch.cdist(data.x, means).argmin(1)
            assert (nearest != data.y).float().mean() < 0.02  # a generator must never be degenerate
        spread = (s.test.x - means[s.test.y]).std().item()
        assert spread == pytest.approx(STD, rel=0.15)
    assert not torch.equal(segments[0].train.x, gaussian_stream(seed + 1)[0].train.x)


def test_the_bayes_rule_errs_rarely() -> None:
    data = torch.cat([s.split("test").x for s in gaussian_stream(0, test_per_class=20_000)])
    y = torch.cat([s.split("test").y for s in gaussian_stream(0, test_per_class=20_000)])
    assert (torch.cdist(data, torch.tensor(MEANS)).argmin(1) != y).float().mean() < 1e-3
    with pytest.raises(ValueError, match="at least 1"):
        gaussian_stream(0, per_class=0)
