import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from etude.layers import code_search
from etude.layers.quantizers import VectorQuantizer, nearest_codes


def gen(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def brute(x: torch.Tensor, codes: torch.Tensor, k: int) -> torch.Tensor:
    """Stable order of exact squared distances in float64."""
    d = (x.double().unsqueeze(-2) - codes.double()).square().sum(-1)
    return d.sort(dim=-1, stable=True).indices[..., :k]


@given(
    seed=st.integers(0, 10**6), groups=st.integers(1, 4), codes=st.sampled_from([1, 3, 70, 300]), k=st.integers(1, 3)
)
def test_nearest_codes_is_brute_force(seed: int, groups: int, codes: int, k: int) -> None:
    g = gen(seed)
    x = torch.randn(2, 5, groups, 3, generator=g).double()
    book = torch.randn(groups, codes, 3, generator=g).double()
    k = min(k, codes)
    indices, distances = nearest_codes(x, book, k=k)
    assert indices.shape == distances.shape == (2, 5, groups, k)
    assert torch.equal(indices, brute(x, book, k))
    chosen = torch.stack([book[i, indices[:, :, i]] for i in range(groups)], dim=2)
    assert torch.allclose(distances, (x.unsqueeze(-2) - chosen).square().sum(-1))


def test_chunks_and_tiles_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    x, book = torch.randn(37, 5, 4, generator=gen(0)), torch.randn(5, 300, 4, generator=gen(1))
    whole = nearest_codes(x, book, k=3)
    for chunk in (1, 7, 100):
        part = nearest_codes(x, book, k=3, chunk=chunk)
        assert torch.equal(whole[0], part[0]) and torch.allclose(whole[1], part[1])
    monkeypatch.setitem(code_search._TILE, "cpu", 2500)
    part = nearest_codes(x, book, k=3)
    assert torch.equal(whole[0], part[0]) and torch.allclose(whole[1], part[1])


@pytest.mark.parametrize("codes", [10, 257, 1024])
def test_ties_go_to_the_lowest_index(codes: int) -> None:
    book = torch.randn(1, codes, 3, generator=gen(2))
    half = -(-codes // 2)
    book[0, half:] = book[0, : codes - half].clone()  # every code stands twice
    x = torch.randn(200, 1, 3, generator=gen(3))
    for similarity in ("euclidean", "cosine"):
        assert int(nearest_codes(x, book, similarity=similarity)[0].max()) < half
        pair = nearest_codes(x, book[:, : 2 * (codes // 2)], k=2, similarity=similarity)[0]
        assert codes % 2 or torch.equal(pair[..., 1], pair[..., 0] + half)
    # equally far by symmetry, and all alike
    assert nearest_codes(torch.zeros(1, 1, 1), torch.tensor([[[1.0], [-1.0], [1.0]]]), k=2)[0].tolist() == [[[0, 1]]]
    assert nearest_codes(torch.zeros(1, 1, 2), torch.ones(1, codes, 2), k=3)[0].tolist() == [[[0, 1, 2]]]


@given(seed=st.integers(0, 10**6), scale=st.sampled_from([0.0, 10.0, 1e4]))
def test_moving_everything_changes_nothing(seed: int, scale: float) -> None:
    # short binary fractions, so that moving them is exact
    x = torch.randint(-32, 32, (20, 2, 3), generator=gen(seed)) / 8
    book = torch.randint(-32, 32, (2, 90, 3), generator=gen(seed + 1)) / 8
    shift = torch.tensor([scale, -scale, 2 * scale])
    assert torch.equal(nearest_codes(x, book, k=2)[0], nearest_codes(x + shift, book + shift, k=2)[0])


def test_cosine_ranks_by_direction_and_survives_zero() -> None:
    book = torch.tensor([[[10.0, 0.0], [0.0, 0.1], [0.0, 0.0]]])
    x = torch.tensor([[[0.1, 0.2]], [[3.0, 1.0]], [[0.0, 0.0]]])
    indices, distances = nearest_codes(x, book, similarity="cosine")
    assert indices[:, 0, 0].tolist() == [1, 0, 0]
    assert distances[0, 0, 0].item() == pytest.approx(1 - 0.2 / 0.05**0.5, abs=1e-6)
    assert distances[2, 0, 0].item() == 1.0


def test_allowed_masks_codes_by_group() -> None:
    x, book = torch.randn(30, 2, 3, generator=gen(4)), torch.randn(2, 400, 3, generator=gen(5))
    allowed = torch.rand(2, 400, generator=gen(6)) < 0.3
    indices, _ = nearest_codes(x, book, k=2, allowed=allowed)
    for g in range(2):
        kept = allowed[g].nonzero()[:, 0]
        assert torch.equal(indices[:, g], kept[brute(x[:, g], book[g, kept], 2)])


def test_bad_input_of_nearest_codes_is_named() -> None:
    x, book = torch.zeros(4, 2, 3), torch.randn(2, 5, 3, generator=gen(0))
    for call, message in [
        (lambda: nearest_codes(x, book, k=6), r"k must lie in 1\.\.5"),
        (lambda: nearest_codes(x[:, :1], book), r"\(\.\.\., 2, 3\)"),
        (lambda: nearest_codes(x, book, similarity="dot"), "unknown similarity 'dot'"),
        (lambda: nearest_codes(x, book, chunk=0), "chunk"),
        (lambda: nearest_codes(x.long(), book), "floating"),
        (lambda: nearest_codes(x, torch.full_like(book, torch.nan)), "codes holds nan"),
        (lambda: nearest_codes(x, book, allowed=torch.zeros(2, 5, dtype=torch.bool)), "group 0 has 0 allowed"),
        (lambda: nearest_codes(x, book, allowed=torch.ones(2, 5)), "boolean"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()
    x[2, 1, 0] = torch.nan
    with pytest.raises(ValueError, match=r"x holds nan at \(2, 1, 0\)"):
        nearest_codes(x, book)


def quantizer(**options) -> VectorQuantizer:
    return VectorQuantizer(6, 3, groups=2, generator=gen(0), **options)


def test_values_are_the_mean_of_k_codes() -> None:
    vq = quantizer(k=3, learn="frozen")
    x = torch.randn(4, 5, 2, 3, generator=gen(1))
    out = vq(x)
    assert out.values.shape == x.shape and out.indices.shape == (4, 5, 2, 3)
    for g in range(2):
        assert torch.allclose(out.values[:, :, g], vq.codes[g][out.indices[:, :, g]].mean(-2))


@pytest.mark.parametrize("mode", ["straight", "base", "aeloss", "vqvae", "fullaeloss"])
@pytest.mark.parametrize("k", [1, 2])
def test_gradients_are_the_formulas(mode: str, k: int) -> None:
    vq = quantizer(k=k, learn="gradient", backward=mode, commitment=0.5)
    x = torch.randn(7, 2, 3, generator=gen(1)).requires_grad_()
    w = torch.randn(7, 2, 3, generator=gen(2))
    out = vq(x)
    (out.values * w).sum().backward()
    y, z = out.values.detach(), x.detach()
    off = 2 * (y - z) / 7
    assert torch.allclose(x.grad, w - 0.5 * off if mode in ("vqvae", "fullaeloss") else w)
    per_code = {"straight": torch.zeros_like(w), "base": w, "aeloss": w + off, "vqvae": off, "fullaeloss": w + off}
    wanted = torch.zeros(2, 6, 3)
    for row in range(7):
        for g in range(2):
            for j in out.indices[row, g].tolist():
                wanted[g, j] += per_code[mode][row, g] / k
    got = torch.zeros(2, 6, 3) if vq.codes.grad is None else vq.codes.grad
    assert torch.allclose(got, wanted, atol=1e-6)
    term = (y - z).square().sum(-1).mean(0).sum()
    assert out.loss.item() == pytest.approx(1.5 * term.item() if mode == "straight" else term.item(), rel=1e-5)
    assert out.loss.requires_grad == (mode in ("straight", "base"))


def test_the_built_in_form_is_base_plus_the_loss() -> None:
    grads = []
    for mode in ("base", "aeloss"):
        vq = quantizer(k=2, learn="gradient", backward=mode)
        x = torch.randn(7, 2, 3, generator=gen(1)).requires_grad_()
        out = vq(x)
        total = out.values.square().sum()
        (total + out.loss if mode == "base" else total).backward()
        grads.append((x.grad, vq.codes.grad))
    assert torch.allclose(grads[0][0], grads[1][0]) and torch.allclose(grads[0][1], grads[1][1], atol=1e-6)


def test_moving_averages_are_the_formula() -> None:
    vq = VectorQuantizer(3, 1, decay=0.9, learn="ema")
    vq.codes.copy_(torch.tensor([[[0.0], [10.0], [100.0]]]))
    vq(torch.tensor([[[1.0]], [[2.0]], [[9.0]]]))
    n = 0.1 * torch.tensor([2.0, 1.0, 0.0])
    smooth = (n + 1e-5) / (0.3 + 3e-5) * 0.3
    wanted = torch.tensor([0.3, 0.9]) / smooth[:2]
    assert torch.allclose(vq.codes[0, :2, 0], wanted) and vq.codes[0, 2, 0] == 100.0  # never chosen: stays
    assert vq.usage.tolist() == [[2, 1, 0]]
    # the second step weighs the first by the decay
    vq(torch.tensor([[[3.0]]]))
    assert vq.ema_sum[0, 0, 0].item() == pytest.approx(0.9 * 0.3 + 0.1 * 3)


def test_moving_averages_use_the_nearest_code_only() -> None:
    one, two = (VectorQuantizer(5, 2, k=k, generator=gen(3)) for k in (1, 2))
    x = torch.randn(20, 1, 2, generator=gen(4))
    one(x), two(x)
    assert torch.equal(one.codes, two.codes) and int(two.usage.sum()) == 40


def test_initialize_finds_separate_clusters() -> None:
    centers = torch.tensor([[-20.0, 0.0], [20.0, 0.0], [0.0, 30.0], [0.0, -30.0]])
    x = (centers.repeat(50, 1) + torch.randn(200, 2, generator=gen(0)))[:, None]
    for learn, method in (("ema", "ema"), ("ema", "kmeans"), ("gradient", "kmeans")):
        vq = VectorQuantizer(4, 2, learn=learn, generator=gen(1))
        vq.initialize(x.split(40), method=method, epochs=1 if method == "kmeans" else 20, generator=gen(2))
        gap = torch.cdist(centers, vq.codes[0].detach()).amin(1)
        assert float(gap.max()) < 1.0, method
        assert int(vq.usage.sum()) == 0


def test_initialize_on_rows_takes_different_rows() -> None:
    x = torch.arange(12.0).reshape(6, 2, 1)
    vq = VectorQuantizer(6, 1, groups=2, learn="gradient")
    vq.initialize([x[:3], x[3:]], generator=gen(0))
    assert sorted(vq.codes[0, :, 0].tolist()) == sorted(x[:, 0, 0].tolist())
    with pytest.raises(ValueError, match="at least one row"):
        vq.initialize([])
    with pytest.raises(ValueError, match='learn="ema"'):
        vq.initialize([x], method="ema")


def test_dead_codes_are_replaced_and_reported() -> None:
    vq = VectorQuantizer(4, 1, learn="gradient", dead_after=2)
    with torch.no_grad():
        vq.codes.copy_(torch.tensor([[[0.0], [1.0], [50.0], [60.0]]]))
    x = torch.tensor([[[0.0]], [[1.0]]])
    vq(x)
    assert not vq.replace_dead(x, gen(0)).any()
    vq(x)
    dead = vq.replace_dead(x, gen(0))
    assert dead.tolist() == [[False, False, True, True]]
    assert sorted(vq.codes[0, 2:, 0].tolist()) == [0.0, 1.0]  # different rows
    assert vq.live_fraction() == 0.5
    with pytest.raises(ValueError, match="dead_after"):
        VectorQuantizer(4, 1).replace_dead(x, gen(0))
    ema = VectorQuantizer(3, 1, dead_after=1)
    ema.codes.copy_(torch.tensor([[[0.0], [1.0], [50.0]]]))
    for _ in range(3):
        ema(x)
        ema.replace_dead(x, gen(0), below=0.01)
    assert float(ema.codes.max()) < 2.0  # and it did not come back


def test_evaluation_moves_nothing() -> None:
    vq = quantizer()
    before = {n: t.clone() for n, t in vq.state_dict().items()}
    vq.eval()(torch.randn(50, 2, 3, generator=gen(1)))
    assert all(torch.equal(before[n], t) for n, t in vq.state_dict().items())
    vq.train()(torch.randn(50, 2, 3, generator=gen(1)))
    assert not torch.equal(before["codes"], vq.codes) and int(vq.usage.sum()) == 100
    frozen = vq.codes.clone()
    vq.freeze()(torch.randn(50, 2, 3, generator=gen(2)))
    assert torch.equal(frozen, vq.codes) and int(vq.usage.sum()) == 200


def test_state_round_trips() -> None:
    a, b = quantizer(), quantizer()
    a(torch.randn(50, 2, 3, generator=gen(1)))
    b.load_state_dict(a.state_dict())
    x = torch.randn(20, 2, 3, generator=gen(2))
    a(x), b(x)
    assert all(torch.equal(t, b.state_dict()[n]) for n, t in a.state_dict().items())


def test_forced_codes_stand_among_the_k() -> None:
    vq = quantizer(k=2, learn="frozen")
    x = torch.randn(2, 4, 2, 3, generator=gen(1))
    plain = vq(x).indices
    with vq.force([5], groups=[1], positions=slice(-1, None)):
        out = vq(x)
        assert torch.equal(out.indices[:, :-1], plain[:, :-1]) and torch.equal(out.indices[:, :, 0], plain[:, :, 0])
        assert (out.indices[:, -1, 1, -1] == 5).all() and (out.indices[:, -1, 1, 0] != 5).all()
        assert torch.allclose(out.values[:, -1, 1], vq.codes[1][out.indices[:, -1, 1]].mean(-2))
        assert torch.allclose(out.distances[:, -1, 1, 1], (x[:, -1, 1] - vq.codes[1, 5]).square().sum(-1))
    assert torch.equal(vq(x).indices, plain)
    # a code that is chosen anyway keeps the other; two forced codes fill both slots
    best = int(plain[0, 0, 0, 0])
    with vq.force([best]):
        assert vq(x).indices[0, 0, 0].tolist() == [int(plain[0, 0, 0, 1]), best]
    with vq.force([3, 4]):
        assert (vq(x).indices == torch.tensor([3, 4])).all()
    with vq.force(torch.tensor([[1], [2]]), positions=0):
        assert vq(x).indices[:, 0, :, -1].tolist() == [[1, 2], [1, 2]]


def test_forcing_beyond_is_an_index_error() -> None:
    vq = quantizer(learn="frozen")
    x = torch.randn(2, 4, 2, 3, generator=gen(1))
    for codes, groups in (([6], None), ([-1], None), ([0], [2])):
        with pytest.raises(IndexError), vq.force(codes, groups=groups):
            pass
    for positions in (4, slice(4, None), slice(100, 101)):
        with pytest.raises(IndexError), vq.force([0], positions=positions):
            vq(x)
    with vq.force([0], positions=slice(-9, 99)):  # starts before and reaches over the end: all of it
        assert bool((vq(x).indices == 0).all())
    with pytest.raises(ValueError, match="k = 1"), vq.force([0, 1]):
        pass
    assert torch.equal(vq(x).indices, vq.eval()(x).indices)  # nothing is left forced


def test_codes_can_be_switched_off() -> None:
    vq = quantizer(learn="frozen")
    x = torch.randn(30, 2, 3, generator=gen(1))
    with vq.without([0, 1], groups=[0]), vq.without([2]):
        indices = vq(x).indices
        assert set(indices[:, 0].unique().tolist()) <= {3, 4, 5} and 2 not in indices[:, 1]
    for codes, groups in (([6], None), ([0], [2]), ([0], [-1])):
        with pytest.raises(IndexError, match="must lie in"), vq.without(codes, groups=groups):
            pass
    with vq.without(range(6)), pytest.raises(ValueError, match="allowed"):
        vq(x)


def test_errors_name_the_quantizer() -> None:
    vq = VectorQuantizer(4, 3, name="h.3.mlp")
    with pytest.raises(ValueError, match=r"h\.3\.mlp: x holds nan"):
        vq(torch.full((1, 1, 3), torch.nan))
    for method in ("ema", "rows", "kmeans"):
        with pytest.raises(ValueError, match=r"h\.3\.mlp: .*(nan|finite)"):
            vq.initialize([torch.full((9, 1, 3), torch.nan)], method=method)
    for options, message in [
        ({"k": 5}, "k must lie"),
        ({"decay": 1.0}, "decay"),
        ({"learn": "magic"}, "unknown learn"),
        ({"backward": "none"}, "unknown backward"),
        ({"dead_after": 0}, "dead_after"),
        ({"commitment": -1.0}, "commitment"),
    ]:
        with pytest.raises(ValueError, match=message):
            VectorQuantizer(4, 3, **options)


def test_nan_in_a_graph_is_named_without_a_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ValueError, match="x holds nan"):
            nearest_codes(torch.full((2, 1, 3), torch.nan, requires_grad=True), torch.ones(1, 4, 3))


@pytest.mark.parametrize("backward", ["straight", "base", "aeloss"])
def test_no_vectors_have_no_loss(backward: str) -> None:
    assert float(quantizer(learn="gradient", backward=backward)(torch.zeros(0, 5, 2, 3)).loss.detach()) == 0


def test_a_zero_vector_under_cosine_gives_no_nan() -> None:
    vq = quantizer(learn="gradient", similarity="cosine", backward="aeloss")
    x = torch.zeros(3, 2, 3, requires_grad=True)
    out = vq(x)
    out.values.sum().backward()
    assert all(torch.isfinite(t).all() for t in (out.values, out.loss, x.grad, vq.codes.grad))


def test_nearest_codes_equals_the_peer() -> None:
    peer = pytest.importorskip("vector_quantize_pytorch", reason="optional: the peer is not installed")
    vq = peer.VectorQuantize(dim=8, codebook_size=64, heads=4, separate_codebook_per_head=True, codebook_dim=2)
    x = torch.randn(50, 1, 8, generator=gen(0))
    with torch.no_grad():
        theirs = vq.eval()(x)[1][:, 0]
        ours, _ = nearest_codes(F.linear(x, vq.project_in.weight, vq.project_in.bias).view(50, 4, 2)
                                if hasattr(vq.project_in, "weight") else x.view(50, 4, 2), vq.codebook)  # fmt: skip
    assert torch.equal(ours[..., 0], theirs)


def test_moving_averages_in_double_precision():
    x = torch.randn(64, 2, 3, dtype=torch.float64)
    quantizer = VectorQuantizer(4, 3, groups=2).double()
    quantizer(x)
    quantizer.initialize([x])
    assert quantizer.codes.dtype == torch.float64
