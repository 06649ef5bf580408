"""Image transforms: against SciPy, identities, strengths of each sample, borders, bad input."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter, map_coordinates

from etude.data import affine, crop_flip, cutmix, elastic, erase, mixup, stream, symmetries, transforms

SEEDS = st.integers(0, 2**31 - 1)


def images(n=4, c=2, h=12, w=10):
    return torch.rand(n, c, h, w, generator=stream(0, "images"))


@pytest.mark.parametrize(("height", "width", "sigma"), [(28, 28, 4.0), (12, 17, 2.0), (40, 9, 1.3)])
def test_elastic_is_the_per_image_recipe_of_scipy(height, width, sigma):
    x, alpha = images(3, 2, height, width), 15.0
    ours = elastic(x, alpha=alpha, sigma=sigma, generator=stream(1, "warp"))
    noise = transforms._noise((height, 6 * width), stream(1, "warp")).double().numpy() / 128
    noise = noise.reshape(height, 3, 2, width).transpose(1, 2, 0, 3)
    assert abs(noise).max() < 1
    r, c = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    for i in range(3):
        right, down = (alpha * gaussian_filter(f, sigma, mode="constant") for f in noise[i])
        for channel in range(2):
            expected = map_coordinates(
                x[i, channel].double().numpy(), [r + down, c + right], order=1, mode="grid-constant"
            )
            np.testing.assert_allclose(ours[i, channel].numpy(), expected, atol=1e-3)


def test_a_batch_larger_than_a_piece_is_whole(monkeypatch):
    x = images(11, 1, 7, 9)
    monkeypatch.setattr(transforms, "CHUNK", 300)
    moved = elastic(x, alpha=torch.tensor([0.0] * 10 + [30.0]), sigma=2.0, generator=stream(0, "warp"))
    torch.testing.assert_close(moved[:10], x[:10], atol=1e-5, rtol=0)
    assert (moved[10] - x[10]).abs().max() > 0.05
    assert elastic(x[:0]).shape == (0, 1, 7, 9)


@pytest.mark.parametrize("piece", [1, 3])
def test_how_many_images_are_sampled_at_a_time_does_not_show(monkeypatch, piece):
    x = images(7, 2, 9, 11)

    def moved():
        return [
            elastic(x, alpha=(5.0, 30.0), fill=0.3, generator=stream(0, "warp")),
            affine(x, degrees=(-20.0, 20.0), shift=((-2.0, 2.0), 1.0), generator=stream(0, "warp")),
        ]

    whole = moved()
    monkeypatch.setattr(transforms, "PIECE", piece)
    assert all(torch.equal(a, b) for a, b in zip(whole, moved(), strict=True))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_images_of_half_precision_are_moved_as_exactly_as_others(dtype):
    x = images(3, 1, 28, 28).to(dtype)
    torch.testing.assert_close(elastic(x, alpha=0.0), x)
    torch.testing.assert_close(affine(x), x)
    moved = elastic(x, generator=stream(0, "warp"))
    assert moved.dtype == dtype
    torch.testing.assert_close(moved, elastic(x.float(), generator=stream(0, "warp")).to(dtype))


def test_the_noise_of_a_field_is_uniform():
    noise = transforms._noise((200_000,), stream(0, "noise")).double() / 128
    assert float(noise.mean()) == pytest.approx(0, abs=0.005)
    assert float(noise.var()) == pytest.approx(1 / 3, abs=0.003)
    assert float(noise.quantile(0.9)) == pytest.approx(0.8, abs=0.01)
    assert float(torch.corrcoef(torch.stack([noise[:-1], noise[1:]]))[0, 1]) == pytest.approx(0, abs=0.01)


def test_strength_zero_changes_nothing_and_each_sample_has_its_own():
    x = images(3, 1, 28, 28)
    moved = elastic(x, alpha=torch.tensor([0.0, 20.0, 0.0]), generator=stream(0, "warp"))
    torch.testing.assert_close(moved[0::2], x[0::2], atol=1e-5, rtol=0)
    assert (moved[1] - x[1]).abs().max() > 0.05
    torch.testing.assert_close(affine(x), x, atol=1e-5, rtol=0)
    assert torch.equal(crop_flip(x, padding=0, flip=0.0), x)
    assert torch.equal(erase(x, area=0.0), x)
    turned = affine(x, degrees=torch.tensor([0.0, 45.0, 0.0]))
    torch.testing.assert_close(turned[0], x[0], atol=1e-5, rtol=0)
    assert (turned[1] - x[1]).abs().max() > 0.05


@given(seed=SEEDS)
def test_the_generator_alone_decides(seed):
    x, y = images(), torch.tensor([0, 1, 2, 0])
    before = torch.get_rng_state()
    for change in (
        lambda g: elastic(x, generator=g),
        lambda g: affine(x, degrees=(-20, 20), scale=(0.8, 1.2), shift=((-2, 2), (-2, 2)), generator=g),
        lambda g: erase(x, generator=g, fill=None),
        lambda g: crop_flip(x, generator=g),
        lambda g: torch.cat([t.flatten() for t in mixup(x, y, 3, generator=g)]),
        lambda g: torch.cat([t.flatten() for t in cutmix(x, y, 3, generator=g)]),
    ):
        one, two = change(stream(seed, "t")), change(stream(seed, "t"))
        assert torch.equal(one, two)
        assert torch.isfinite(one).all()
        assert one.min() >= -1e-6
        assert one.max() <= 1 + 1e-6
    assert torch.equal(before, torch.get_rng_state())


def test_a_quarter_turn_and_a_shift_move_pixels_exactly():
    x = images(2, 3, 9, 9)
    torch.testing.assert_close(affine(x, degrees=90.0), torch.rot90(x, 1, (-2, -1)), atol=1e-5, rtol=0)
    shifted = affine(x, shift=(2.0, -1.0), fill=0.5)
    torch.testing.assert_close(shifted[:, :, 2:, :-1], x[:, :, :-2, 1:], atol=1e-5, rtol=0)
    torch.testing.assert_close(shifted[:, :, :2], torch.full((2, 3, 2, 9), 0.5), atol=1e-5, rtol=0)


def test_affine_is_the_inverse_map_of_scipy():
    x = images(1, 1, 11, 14)
    ours = affine(x, degrees=25.0, scale=1.3, shift=(1.5, -2.0))[0, 0].numpy()
    angle, centre = np.deg2rad(25.0), np.array([5.0, 6.5])
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]]) / 1.3
    r, c = np.meshgrid(np.arange(11), np.arange(14), indexing="ij")
    places = np.einsum("ij,jhw->ihw", turn, np.stack([r, c]) - (centre + [1.5, -2.0])[:, None, None])
    places += centre[:, None, None]
    expected = map_coordinates(x[0, 0].double().numpy(), places, order=1, mode="grid-constant")
    np.testing.assert_allclose(ours, expected, atol=1e-4)


def test_scale_magnifies_and_fill_stands_outside():
    x = torch.zeros(1, 1, 21, 21)
    x[:, :, 8:13, 8:13] = 1
    assert affine(x, scale=2.0).sum() == pytest.approx(100, rel=0.1)
    assert affine(x, scale=0.5, fill=0.25)[0, 0, 0, 0] == pytest.approx(0.25)


@given(seed=SEEDS, area=st.floats(0.05, 0.3))
def test_erase_blanks_one_rectangle_of_the_asked_area(seed, area):
    x = torch.ones(16, 1, 40, 40)
    out = erase(x, area=area, aspect=(0.5, 2.0), generator=stream(seed, "erase"))
    for picture in out[:, 0]:
        blank = picture == 0
        rows, columns = blank.any(1).nonzero(), blank.any(0).nonzero()
        box = blank[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        assert box.all()
        assert float(blank.float().mean()) == pytest.approx(area, rel=0.25)


def test_erase_hits_a_share_of_the_images_and_can_fill_with_noise():
    x = torch.full((400, 1, 8, 8), 2.0)
    hit = (erase(x, p=0.3, area=0.2, generator=stream(0, "e")) != x).flatten(1).any(1)
    assert float(hit.float().mean()) == pytest.approx(0.3, abs=0.07)
    noise = erase(x, area=0.5, fill=None, generator=stream(0, "e"))
    assert ((noise == 2) | ((noise >= 0) & (noise < 1))).all()
    assert noise[noise < 1].std() > 0.2


def test_crop_flip_yields_a_window_of_the_padded_image_or_its_mirror():
    x = images(64, 2, 6, 5)
    out = crop_flip(x, padding=2, flip=0.5, generator=stream(0, "c"), fill=9.0)
    padded = torch.nn.functional.pad(x, (2, 2, 2, 2), value=9.0)
    mirrored = 0
    for picture, whole in zip(out, padded, strict=True):
        windows = [whole[:, r : r + 6, c : c + 5] for r in range(5) for c in range(5)]
        plain = any(torch.equal(picture, w) for w in windows)
        turned = any(torch.equal(picture, w.flip(-1)) for w in windows)
        assert plain or turned
        mirrored += turned
    assert 20 < mirrored < 44


def test_symmetries_are_the_eight_of_the_square_and_can_be_undone():
    x = images(8, 1, 5, 5)[:1].expand(8, -1, -1, -1)
    out = symmetries(x, torch.arange(8))
    assert len({tuple(o.flatten().tolist()) for o in out}) == 8
    assert torch.equal(out[0], x[0])
    assert torch.equal(out[2], x[0].flip(-1).flip(-2))
    assert torch.equal(out[4], x[0].flip(-1))


def test_mixtures_keep_the_shares_of_pixels_and_classes_together():
    x = torch.zeros(300, 1, 8, 8)
    x[150:] = 1
    y = (torch.arange(300) >= 150).long()
    for mix in (mixup, cutmix):
        mixed, shares = mix(x, y, 2, alpha=1.0, generator=stream(0, "m"))
        torch.testing.assert_close(shares.sum(1), torch.ones(300))
        torch.testing.assert_close(mixed.mean((1, 2, 3)), shares[:, 1], atol=1e-5, rtol=0)
        assert float(shares[:, 1].std()) > 0.2


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: elastic(torch.rand(3, 8, 8)), r"\(N, C, H, W\).*shape \(3, 8, 8\)"),
        (lambda: elastic(torch.zeros(1, 1, 8, 8, dtype=torch.uint8)), "torch.uint8"),
        (lambda: elastic(images(), sigma=0.0), "sigma must be positive and finite, got 0"),
        (lambda: elastic(images(), alpha=torch.ones(3)), r"alpha must hold one strength for each of 4 images"),
        (lambda: elastic(images(), alpha=(3.0, 1.0)), r"alpha must be ordered \(low, high\), got \(3.0, 1.0\)"),
        (lambda: affine(images(), scale=0.0), "scale must be positive, got 0"),
        (lambda: erase(images(), area=1.5), "area is a share between 0 and 1, got 1.5"),
        (lambda: erase(images(), aspect=(2.0, 1.0)), "aspect must be positive and ordered"),
        (lambda: crop_flip(images(), padding=-1), "padding must be a whole number of at least 0, got -1"),
        (lambda: symmetries(images(), torch.zeros(4).long()), r"square images, got \(12, 10\)"),
        (lambda: symmetries(images(h=10), torch.tensor([0, 1, 2, 8])), "values 0 to 7"),
        (lambda: mixup(images(), torch.zeros(4).long(), 2, alpha=0.0), "alpha must be positive and finite, got 0"),
        (lambda: elastic(images(), alpha=float("nan")), "alpha must be finite, got nan"),
        (lambda: affine(images(), shift=(0.0, float("inf"))), "shift must be finite, got inf"),
        (lambda: erase(images(), p=2.0), "p is a chance between 0 and 1, got 2"),
        (lambda: crop_flip(images(), flip=7.0), "flip is a chance between 0 and 1, got 7"),
        (lambda: mixup(images(), torch.tensor([0, 1, 2, 5]), 3), r"labels must lie in 0..2, got 0 to 5"),
        (lambda: cutmix(images(), torch.tensor([0, -1, 2, 1]), 3), r"labels must lie in 0..2, got -1 to 2"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
