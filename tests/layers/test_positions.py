import pytest
import torch

from etude.data.randomness import stream
from etude.layers.positions import (
    AlibiPositions,
    LearnedPositions,
    RotaryPositions,
    SinusoidalPositions,
    alibi_slopes,
    apply_rotary,
    rotary_tables,
    sinusoidal_positions,
)


def test_sinusoids_by_the_formula():
    table = sinusoidal_positions(torch.arange(5), 6)
    assert table[3, 0] == pytest.approx(torch.tensor(3.0).sin().item())
    assert table[3, 3] == pytest.approx(torch.tensor(3.0 / 10000 ** (2 / 6)).cos().item(), abs=1e-6)
    assert sinusoidal_positions(torch.arange(2), 3).shape == (2, 3)


def test_both_rotary_conventions_are_the_same_up_to_a_permutation_of_features():
    x = torch.randn(1, 1, 7, 8, generator=stream(0, "x"))
    halves = apply_rotary(x, *rotary_tables(torch.arange(7), 8))
    order = torch.tensor([0, 4, 1, 5, 2, 6, 3, 7])  # feature pairs (i, i + 4) side by side
    pairs = apply_rotary(x[..., order], *rotary_tables(torch.arange(7), 8, interleaved=True), interleaved=True)
    torch.testing.assert_close(pairs, halves[..., order])
    torch.testing.assert_close(halves.norm(dim=-1), x.norm(dim=-1))
    torch.testing.assert_close(halves[:, :, 0], x[:, :, 0])


def test_interpolated_positions_are_the_trained_ones():
    cos, _ = rotary_tables(torch.arange(8), 4, scale=0.5)
    torch.testing.assert_close(cos[::2], rotary_tables(torch.arange(4), 4)[0])


def test_alibi_slopes_and_distances():
    torch.testing.assert_close(alibi_slopes(8), 2.0 ** -torch.arange(1, 9))
    bias = AlibiPositions(2)(2, 4)
    torch.testing.assert_close(bias[0], -(2.0**-4) * torch.tensor([[2.0, 1, 0, 1], [3, 2, 1, 0]]))


def test_lengths_beyond_the_trained_one():
    with pytest.raises(ValueError, match="max_length=4"):
        LearnedPositions(4, 2)(torch.arange(5), 5)
    q = torch.zeros(1, 1, 6, 4)
    with pytest.warns(UserWarning, match=r"1\.50 times the max_length of 4"):
        RotaryPositions(4, max_length=4)(q, q, None)
    with pytest.warns(UserWarning, match="2.00 times"):
        SinusoidalPositions(4, 2)(torch.arange(8), 8)


def test_rotary_tables_grow():
    rope = RotaryPositions(4)
    x = torch.randn(1, 1, 300, 4, generator=stream(0, "x"))
    turned, _ = rope(x, x, None)
    torch.testing.assert_close(turned, apply_rotary(x, *rotary_tables(torch.arange(300), 4)))


def test_odd_head_is_refused():
    with pytest.raises(ValueError, match="even head size, got 5"):
        rotary_tables(torch.arange(2), 5)
