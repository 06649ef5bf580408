"""CKA, RSA and effective rank: closed forms, invariances, both ways of computing, both estimators."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from etude.data.randomness import seeded_build, stream
from etude.layers import TargetError, mlp
from etude.training import cka, cka_matrix, effective_rank, rsa
from etude.training.similarity import centred_gram, hsic, layer_features, unit_grams


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=stream(seed, "x"), dtype=torch.float64)


def published_biased(X, Y):
    """Kornblith et al., eq. 1 and 3, with H written out."""
    n = len(X)
    H = torch.eye(n, dtype=X.dtype) - 1 / n
    K, L = H @ X @ X.T @ H, H @ Y @ Y.T @ H
    return (K * L).sum() / ((K * K).sum() * (L * L).sum()).sqrt()


def published_unbiased(X, Y):
    """Song et al., eq. 5, written out."""

    def h(K, L):
        n = len(K)
        K, L = K - torch.diag(K.diag()), L - torch.diag(L.diag())
        one = torch.ones(n, dtype=K.dtype)
        trace = torch.trace(K @ L)
        return (trace + (one @ K @ one) * (one @ L @ one) / ((n - 1) * (n - 2)) - 2 / (n - 2) * (one @ K @ L @ one)) / (
            n * (n - 3)
        )

    K, L = X @ X.T, Y @ Y.T
    return h(K, L) / (h(K, K) * h(L, L)).sqrt()


@pytest.mark.parametrize("n, p, q", [(12, 40, 25), (60, 5, 7), (30, 3, 40)])
def test_equal_to_the_published_definitions(n, p, q):
    X, Y = normal(n, p) + 3, normal(n, q, seed=1)
    Y[:, 0] += X[:, 0]
    assert torch.isclose(cka(X, Y), published_biased(X, Y), atol=1e-12)
    assert torch.isclose(cka(X, Y, debiased=True), published_unbiased(X, Y), atol=1e-12)
    single = cka(X.float(), Y.float())
    assert torch.isclose(single.double(), published_biased(X, Y), atol=1e-5)


@given(st.integers(0, 10_000), st.booleans(), st.floats(0.1, 50))
@settings(max_examples=25, deadline=None)
def test_blind_to_rotation_offset_and_size(seed, debiased, factor):
    X, Y = normal(20, 6, seed=seed), normal(20, 4, seed=seed + 1)
    Q = torch.linalg.qr(normal(6, 6, seed=seed + 2))[0]
    before = cka(X, Y, debiased=debiased)
    assert torch.isclose(cka(factor * X @ Q + 7, Y, debiased=debiased), before, atol=1e-8)
    assert torch.isclose(cka(Y, X, debiased=debiased), before, atol=1e-12)
    assert torch.isclose(cka(X, X, debiased=debiased), torch.tensor(1.0, dtype=X.dtype), atol=1e-10)


def test_not_blind_to_other_linear_maps():
    X = normal(50, 4)
    assert cka(X, X * torch.tensor([1.0, 1.0, 1.0, 30.0])) < 0.9


def test_both_ways_of_computing_agree():
    X, Y = normal(40, 3), normal(40, 4, seed=1)
    for debiased in (False, True):
        by_rows = (centred_gram(X, debiased=debiased) * centred_gram(Y, debiased=debiased)).sum()
        assert torch.isclose(cka(X, Y, debiased=debiased), by_rows, atol=1e-12)
        wide = hsic(torch.cat([X, torch.zeros(40, 60, dtype=X.dtype)], 1), Y, debiased=debiased)
        assert torch.isclose(hsic(X, Y, debiased=debiased), wide)


def test_random_features_look_alike_to_the_biased_form_only():
    biased = [float(cka(normal(16, 2000, seed=s), normal(16, 2000, seed=s + 50))) for s in range(6)]
    unbiased = [float(cka(normal(16, 2000, seed=s), normal(16, 2000, seed=s + 50), debiased=True)) for s in range(6)]
    assert np.mean(biased) > 0.85
    assert abs(np.mean(unbiased)) < 0.1


def test_gradient_is_right():
    X = normal(6, 3).requires_grad_()
    Y = normal(6, 9, seed=1)
    for debiased in (False, True):
        assert torch.autograd.gradcheck(lambda x, d=debiased: cka(x, Y, debiased=d), (X,))
    assert torch.autograd.gradcheck(lambda x: rsa(x, Y), (X,))


def test_constant_activations_are_zero_with_a_warning():
    with pytest.warns(UserWarning, match="constant activations"):
        assert cka(torch.full((8, 3), 5.1), normal(8, 3)) == 0
    with pytest.warns(UserWarning, match="constant"):
        assert cka(torch.full((8, 300), 5.1), normal(8, 300)) == 0


@pytest.mark.parametrize("bad, message", [
    ((normal(3, 5), normal(3, 5)), "at least 4 rows, got 3"),
    ((normal(5, 5), normal(6, 5)), "the same rows, got 5 and 6"),
    ((normal(5), normal(5)), "got shape"),
    ((normal(5, 0), normal(5, 1)), "got shape"),
])  # fmt: skip
def test_bad_activations_are_named(bad, message):
    with pytest.raises(ValueError, match=message):
        cka(*bad)


def test_matrix_is_cka_of_every_pair():
    a = {"one": normal(20, 3), "two": normal(20, 4, 5, seed=1)}
    b = {"x": normal(20, 70, seed=2), "y": a["one"] * 2, "z": normal(20, 2, seed=3)}
    for debiased in (False, True):
        m = cka_matrix(a, b, debiased=debiased)
        assert (m.rows, m.columns) == (("one", "two"), ("x", "y", "z"))
        for i, X in enumerate(a.values()):
            for j, Y in enumerate(b.values()):
                assert torch.isclose(m.values[i, j], cka(X, Y, debiased=debiased), atol=1e-10)
    assert torch.allclose(cka_matrix(a).values.diag(), torch.ones(2, dtype=torch.float64))


def test_matrix_of_models_over_batches():
    nets = [seeded_build(lambda: mlp((6, 20, 20, 3), norm="batch"), stream(s, "init")) for s in (0, 1)]
    nets[0].train()
    x = torch.randn(64, 6, generator=stream(0, "x"))
    whole = cka_matrix(*nets, [x], debiased=True)
    assert whole.rows == ("0", "3", "6")
    features = [next(layer_features(n, [x])) for n in nets]
    assert torch.allclose(whole.values, cka_matrix(*features, debiased=True).values, atol=1e-5)
    parts = cka_matrix(*nets, [(part, None) for part in x.split(16)], debiased=True)
    assert torch.allclose(parts.values, whole.values, atol=0.15)
    assert nets[0].training
    assert float(nets[0][1].num_batches_tracked) == 0
    assert not nets[0][0]._forward_hooks


def test_the_unbiased_average_over_batches_does_not_depend_on_their_size():
    a, b = nn.Sequential(nn.Linear(8, 30)), nn.Sequential(nn.Linear(8, 30))
    for net, s in ((a, 0), (b, 1)):
        with torch.no_grad():
            net[0].weight.copy_(normal(30, 8, seed=s))
    x = torch.randn(4096, 8, generator=stream(1, "x"))
    small, large = (cka_matrix(a, b, x.split(size), debiased=True).values.item() for size in (8, 512))
    biased_small, biased_large = (cka_matrix(a, b, x.split(size)).values.item() for size in (8, 512))
    assert abs(small - large) < 0.03
    assert biased_small - biased_large > 0.1


def test_bad_matrices_are_refused():
    with pytest.raises(ValueError, match="need batches"):
        cka_matrix(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="no batches to compare"):
        cka_matrix(mlp((2, 2, 2)), None, [])
    with pytest.raises(ValueError, match="'b' has 5 rows, the first has 6"):
        cka_matrix({"a": normal(6, 2), "b": normal(5, 2)})
    with pytest.raises(ValueError, match="not one of each"):
        cka_matrix({"a": normal(6, 2)}, nn.Linear(2, 2))
    with pytest.raises(TargetError, match="name some"):
        cka_matrix(nn.Sequential(nn.ReLU()), None, [normal(6, 2)])


def test_effective_rank_closed_forms():
    eye = torch.eye(7)
    assert torch.isclose(effective_rank(eye), torch.tensor(7.0, dtype=torch.float64))
    assert torch.isclose(effective_rank(torch.ones(9, 4)), torch.tensor(1.0, dtype=torch.float64))
    two = torch.diag(torch.tensor([3.0, 1.0]))
    p = np.array([0.75, 0.25])
    assert float(effective_rank(two)) == pytest.approx(np.exp(-(p * np.log(p)).sum()))
    X = normal(30, 5)
    assert 1 < float(effective_rank(X)) <= 5
    assert torch.isclose(effective_rank(X), effective_rank(-4 * X @ torch.linalg.qr(normal(5, 5, seed=3))[0]))
    copies = torch.cat([X, X, X], 1)
    assert torch.isclose(effective_rank(copies), effective_rank(X), rtol=1e-6)
    assert float(effective_rank(X + 100, centred=True)) == pytest.approx(float(effective_rank(X, centred=True)))
    for bad in (torch.zeros(3, 3), torch.ones(5)):
        with pytest.raises(ValueError):
            effective_rank(bad)
    with pytest.raises(ValueError, match="no effective rank"):
        effective_rank(torch.full((6, 2), 0.1), centred=True)


def test_rsa_is_the_correlation_of_cosine_similarities():
    X, Y = normal(9, 4), normal(9, 6, seed=1)
    upper = np.triu_indices(9, 1)

    def similarities(Z):
        Z = Z.numpy()
        unit = Z / np.linalg.norm(Z, axis=1, keepdims=True)
        return (unit @ unit.T)[upper]

    assert float(rsa(X, Y)) == pytest.approx(np.corrcoef(similarities(X), similarities(Y))[0, 1])
    assert float(rsa(X, X * 3)) == pytest.approx(1)


@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1e10, 1e30])
@pytest.mark.parametrize("width", [6, 60])
@pytest.mark.parametrize("debiased", [False, True])
def test_cka_is_blind_to_size_in_single_precision(scale, width, debiased):
    g = torch.Generator().manual_seed(0)
    X, Y = torch.randn(30, 6, generator=g), torch.randn(30, width, generator=g)
    want = cka(X.double(), Y.double(), debiased=debiased).float()
    torch.testing.assert_close(cka(scale * X, Y, debiased=debiased), want, rtol=1e-4, atol=1e-5)
    grams = unit_grams([scale * X], debiased=debiased)[0] * unit_grams([Y], debiased=debiased)[0]
    torch.testing.assert_close(grams.sum(), want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("scale", [1e-25, 1e15])
def test_a_matrix_of_cka_is_blind_to_size(scale, recwarn):
    x = normal(40, 5).float()
    want = cka_matrix({"a": x}, {"b": x[:, :2]}).values
    torch.testing.assert_close(cka_matrix({"a": scale * x}, {"b": x[:, :2]}).values, want, rtol=1e-4, atol=1e-5)
    model, batches = made_linear(1.0), x.split(20)
    plain = cka_matrix(model, made_linear(1.0, 1), batches).values
    scaled = cka_matrix(made_linear(scale), made_linear(1.0, 1), batches).values
    torch.testing.assert_close(scaled, plain, rtol=1e-4, atol=1e-5)
    assert not recwarn


def made_linear(scale, seed=0):
    model = seeded_build(lambda: nn.Linear(5, 4, bias=False), stream(seed, "init"))
    with torch.no_grad():
        model.weight.mul_(scale)
    return nn.Sequential(model)


@pytest.mark.parametrize("factor", [1e-30, 1e20])
def test_rsa_is_blind_to_size(factor):
    X, Y = torch.randn(8, 5, generator=stream(0, "x")), torch.randn(8, 3, generator=stream(1, "x"))
    assert float(rsa(factor * X, Y)) == pytest.approx(float(rsa(X, Y)), abs=1e-5)


@pytest.mark.parametrize("debiased", [False, True])
@pytest.mark.parametrize("width", [3, 40])
def test_mixed_precision_does_not_reach_the_gram_matrices(width, debiased):
    X, Y = normal(20, width).float() + 2, normal(20, 5, seed=1).float()
    net = nn.Sequential(nn.Flatten())

    def values():
        single = [cka(X, Y, debiased=debiased), rsa(X, Y), hsic(X, Y, debiased=debiased)]
        matrices = (cka_matrix({"a": X}, {"b": Y}, debiased=debiased), cka_matrix(net, net, [X], layers="0"))
        return [*single, *(m.values.squeeze() for m in matrices)]

    with torch.autocast("cpu", torch.bfloat16):
        found = values()
    assert all(torch.equal(a, b) for a, b in zip(found, values(), strict=True))
