import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from torch import nn

from etude.data.randomness import stream
from etude.incontext import linear

NAMES = ["ols", "ridge:0.25", "gd:1", "sgd", "knn:3"]


def pairs(rows=3, n=6, d=2, m=4, dtype=torch.float64):
    g = stream(0, "pairs")
    X = torch.randn(rows, n, d, generator=g, dtype=dtype)
    return X, torch.randn(rows, n, generator=g, dtype=dtype), torch.randn(rows, m, d, generator=g, dtype=dtype)


def numpy_gd(X, y, Xq, steps, lr):
    out = np.zeros(Xq.shape[:2])
    for b, (A, t) in enumerate(zip(X.numpy(), y.numpy(), strict=True)):
        w = np.zeros(A.shape[1])
        for _ in range(steps):
            w = w + 2 * lr * A.T @ (t - A @ w)
        out[b] = Xq[b].numpy() @ w
    return out


@pytest.mark.parametrize("steps", [1, 5, 50])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_constructed_transformer_is_gradient_descent(steps, dtype, tolerance):
    X, y, Xq = pairs(dtype=dtype)
    gd = linear.GradientDescentTransformer(dim=2, steps=steps, lr=0.02)
    assert len(gd.layers) == steps and not list(gd.parameters())
    np.testing.assert_allclose(gd(X, y, Xq), numpy_gd(X, y, Xq, steps, 0.02), atol=tolerance)
    if steps > 1:
        assert np.abs(gd(X, y, Xq).numpy() - numpy_gd(X, y, Xq, steps - 1, 0.02)).max() > 100 * tolerance
    torch.testing.assert_close(gd(X[0], y[0], Xq[0]), gd(X, y, Xq)[0])


def test_constructed_transformer_updates_context_tokens_too():
    X, y, _ = pairs(rows=1)
    gd = linear.GradientDescentTransformer(dim=2, steps=2, lr=0.03)
    z = torch.cat([X, y.unsqueeze(-1)], -1)
    z = gd.layers[0](z, 6)
    w = 2 * 0.03 * (X.mT @ y.unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(z[..., -1], y - (X @ w.unsqueeze(-1)).squeeze(-1))


def test_constructed_transformer_without_steps_or_pairs_predicts_zero():
    X, y, Xq = pairs()
    assert (linear.GradientDescentTransformer(2, 0, 0.1)(X, y, Xq) == 0).all()
    assert (linear.GradientDescentTransformer(2, 3, 0.1)(X[:, :0], y[:, :0], Xq) == 0).all()


@pytest.mark.parametrize("arguments", [(0, 1, 0.1), (2, -1, 0.1), (2, 1, 0.0), (2, 1, math.nan)])
def test_constructed_transformer_refuses(arguments):
    with pytest.raises(ValueError, match="dim|steps|lr"):
        linear.GradientDescentTransformer(*arguments)


def test_constructed_transformer_names_wrong_shapes():
    X, y, Xq = pairs()
    with pytest.raises(ValueError, match=r"expected X \(\.\.\., n, 3\)"):
        linear.GradientDescentTransformer(3, 1, 0.1)(X, y, Xq)
    for queries in (Xq[0], Xq[0, 0], Xq[:1]):  # of one data set, a single one, of fewer data sets
        with pytest.raises(ValueError, match=r"expected X .* Xq \(\.\.\., m, 2\)"):
            linear.GradientDescentTransformer(2, 1, 0.1)(X, y, queries)


def test_gelu_product_is_of_fourth_order():
    a, b = torch.tensor([0.3, -0.2], dtype=torch.float64), torch.tensor([0.25, 0.4], dtype=torch.float64)
    errors = [(linear.gelu_multiply(a / s, b / s) - a * b / s**2).abs() for s in (1, 2)]
    ratio = errors[0] / errors[1]
    assert ((ratio > 13) & (ratio < 19)).all()
    torch.testing.assert_close(linear.gelu_multiply(a, b, shrink=1e-2), a * b, rtol=2e-4, atol=0)
    with pytest.raises(ValueError, match="shrink"):
        linear.gelu_multiply(a, b, shrink=0)


@pytest.mark.parametrize("name", [n for n in NAMES if n != "sgd"] + ["gd:3:0.05"])
def test_a_reference_is_identified_as_itself(name):
    refs = linear.references([n for n in NAMES if n != name] + [name])
    learner = (
        linear.references(["gd:1:0.02621440000000001"])["gd:1:0.02621440000000001"] if name == "gd:1" else refs[name]
    )
    report = linear.identify(learner, refs, dim=3, n_context=range(2, 7), num_tasks=32)
    assert set(report.nearest().values()) == {name}
    assert max(report.spd[name].values()) < 1e-9 and min(report.spd["zero"].values()) > 0.02
    if name != "knn:3":
        assert set(report.nearest(by="ilwd").values()) == {name} and min(report.r2.values()) > 0.999
    else:
        assert max(report.r2.values()) < 0.9  # neighbours are no linear function


def single_numpy(X, y, Xq):
    return Xq @ (np.linalg.pinv(X) @ y)


def single_torch(X, y, Xq):
    assert X.ndim == 2
    return Xq @ torch.linalg.lstsq(X, y.unsqueeze(-1), driver="gelsd").solution[:, 0]


def batched_torch(X, y, Xq):
    assert X.ndim == 3
    return (Xq @ torch.linalg.pinv(X) @ y.unsqueeze(-1)).squeeze(-1)


class Module(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, X, y, Xq):
        assert not self.training
        return self.scale * batched_torch(X, y, Xq)


@pytest.mark.parametrize(
    "learner", [single_numpy, single_torch, batched_torch, Module()], ids=lambda f: type(f).__name__
)
def test_learners_of_every_make(learner):
    report = linear.identify(learner, NAMES, dim=2, n_context=[1, 2, 4], num_tasks=16)
    assert set(report.nearest().values()) == {"ols"} and max(report.spd["ols"].values()) < 1e-5


def test_a_scikit_learn_regressor_is_fitted_anew():
    report = linear.identify(Ridge(0.25, fit_intercept=False), NAMES, dim=2, n_context=[1, 3], num_tasks=8)
    assert set(report.nearest().values()) == {"ridge:0.25"}


def test_a_batched_answer_that_mixes_data_sets_is_not_believed():
    def mixes(X, y, Xq):  # right for one data set, wrong for a batch of them
        return Xq[..., 0] * y.mean()

    report = linear.identify(mixes, ["average"], dim=1, n_context=[3], num_tasks=16)
    one_by_one = linear.identify(
        lambda X, y, Xq: Xq[..., 0] * y.mean(-1, keepdim=True), ["average"], dim=1, n_context=[3], num_tasks=16
    )
    assert report.spd["zero"][3] == pytest.approx(one_by_one.spd["zero"][3], rel=1e-5)


def test_implied_weights_of_a_linear_and_of_a_constant_learner():
    X, y, _ = pairs()
    W, r2 = linear.implied_weights(linear.references(["ols"])["ols"], X, y)
    expected = np.stack([np.linalg.lstsq(a, b, rcond=None)[0] for a, b in zip(X.numpy(), y.numpy(), strict=True)])
    np.testing.assert_allclose(W, expected, atol=1e-9)
    assert r2.shape == (3,) and (r2 > 1 - 1e-9).all()
    W, r2 = linear.implied_weights(linear.references(["zero"])["zero"], X[0], y[0])
    assert W.tolist() == [0, 0] and r2.item() == 1.0
    _, r2 = linear.implied_weights(lambda X, y, Xq: torch.ones_like(Xq[..., 0]), X, y)
    assert (r2 == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("value", [0.1, 1e-3, 7e5])
def test_rounding_of_a_constant_is_no_variance(dtype, value):
    X, y, _ = pairs(rows=64, d=3, dtype=dtype)
    _, r2 = linear.implied_weights(lambda X, y, Xq: torch.full_like(Xq[..., 0], value), X, y)
    assert (r2 == 0).all()
    mean = linear.identify(lambda X, y, Xq: y.mean(-1, keepdim=True).expand(Xq.shape[:-1]), ["ols"], dim=3)
    assert set(mean.r2.values()) == {0.0}


@pytest.mark.parametrize("by", ["X", "y"])
def test_pairs_that_are_not_finite_or_whole_are_refused(by):
    X, y, Xq = pairs()
    (X if by == "X" else y)[1, 2] = math.nan
    for call in (lambda ref: linear.implied_weights(ref, X, y), lambda ref: ref(X, y, Xq)):
        with pytest.raises(ValueError, match=f"{by} holds NaN"):
            call(linear.references(["ols"])["ols"])
    with pytest.raises(ValueError, match="X must be floating point, got torch.int64"):
        linear.implied_weights(linear.references(["ols"])["ols"], torch.ones(4, 2, dtype=torch.long), torch.ones(4))


def test_distances_of_known_learners():
    """GD-1 with rate a against zero: E (2a w'X'X x')^2 / d = 4 a^2 (n (n + d + 1)) for w, x, x' ~ N(0, I)."""
    refs = linear.references(["zero"])
    report = linear.identify(
        linear.references(["gd:1:0.05"])["gd:1:0.05"], refs, dim=2, n_context=[4], num_tasks=20_000
    )
    assert report.spd["zero"][4] == pytest.approx(4 * 0.05**2 * 4 * (4 + 2 + 1), rel=0.05)
    assert report.ilwd["zero"][4] == pytest.approx(2 * 4 * 0.05**2 * 4 * (4 + 2 + 1), rel=0.05)


def test_open_rates_are_tuned_in_the_references_favour():
    learner = linear.references(["gd:1:0.02"])["gd:1:0.02"]
    tuned = linear.identify(learner, ["gd:1"], dim=2, n_context=[4], num_tasks=64)
    fixed = [
        linear.identify(learner, [f"gd:1:{rate!r}"], dim=2, n_context=[4], num_tasks=64).spd[f"gd:1:{rate!r}"][4]
        for rate in (0.004 * 1.6**i for i in range(13))
    ]
    assert tuned.spd["gd:1"][4] == pytest.approx(min(fixed)) and tuned.rates["gd:1"][4] == pytest.approx(0.004 * 1.6**3)


def test_least_squares_without_a_finite_mean_is_left_out_under_noise():
    report = linear.identify(
        "ols" and linear.references(["ols"])["ols"],
        ["ols", "ridge:0.25"],
        dim=3,
        noise=0.5,
        n_context=range(1, 7),
        num_tasks=8,
    )
    left_out = [n for n in report.n_context if math.isnan(report.spd["ols"][n])]
    assert left_out == [2, 3, 4]
    assert all(name != "ols" for n, name in report.nearest().items() if n in left_out)
    assert report.mean_spd("ols") == pytest.approx(0.0, abs=1e-9) and math.isnan(report.mean_spd("ols", [3]))
    rows = report.to_rows()
    assert len(rows) == 3 * 6 and {r["reference"] for r in rows} == {"ols", "ridge:0.25", "zero"}


@pytest.mark.parametrize(
    ("learner", "text"),
    [
        (lambda X, y, Xq: Xq, "one prediction a query"),
        (lambda X, y, Xq: Xq[..., 0] * math.nan, "NaN or infinite"),
        (lambda X, y, Xq: None, "NoneType"),
        (lambda X: X, r"must take \(X, y, Xq\)"),
        (Ridge, "instance, not the class"),
        (3, "got int"),
    ],
)
def test_learners_that_do_not_answer_are_named(learner, text):
    with pytest.raises(ValueError, match=text):
        linear.identify(learner, ["ols"], dim=2)


def test_an_error_of_the_learner_is_passed_on():
    def fails(X, y, Xq):
        raise RuntimeError("no licence")

    with pytest.raises(ValueError, match="no licence"):
        linear.identify(fails, ["ols"], dim=2)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"dim": 0}, "dim"),
        ({"dim": 2, "noise": -0.1}, "noise"),
        ({"dim": 2, "prior_scale": 0.0}, "prior_scale"),
        ({"dim": 4, "num_queries": 7}, "at least 2 d = 8"),
        ({"dim": 2, "n_context": []}, "n_context"),
        ({"dim": 2, "n_context": [0]}, "n_context"),
        ({"dim": 2, "num_tasks": 0}, "num_tasks"),
        ({"dim": 2, "num_tasks": 2.5}, "num_tasks must be a whole number"),
        ({"dim": 2, "num_queries": 8.5}, "num_queries must be a whole number"),
        ({"dim": 2, "noise": math.inf}, "noise .* must be finite"),
        ({"dim": 2, "prior_scale": math.inf}, "prior_scale must be positive and finite"),
    ],
)
def test_bad_settings_are_named(options, text):
    with pytest.raises(ValueError, match=text):
        linear.identify(linear.references(["ols"])["ols"], ["ols"], **options)
    X, y, _ = pairs(d=4)
    with pytest.raises(ValueError, match="at least 2 d"):
        linear.implied_weights(linear.references(["ols"])["ols"], X, y, num_queries=7)
    with pytest.raises(ValueError, match="y fit it"):
        linear.implied_weights(linear.references(["ols"])["ols"], X, y[0])


@pytest.mark.parametrize(
    "options", [{"dim": 0}, {"dim": 2, "noise": -1.0}, {"dim": 2, "noise": math.inf}, {"dim": 2, "num_points": 0}]
)
def test_training_refuses_bad_tasks(options):
    with pytest.raises(ValueError, match=r"dim|noise|num_points"):
        linear.train(**options, num_layers=1, hidden_dim=8, steps=1)


def test_prompts_are_the_task():
    p = linear.regression_prompts(4000, 3, 2, noise=0.5, prior_scale=2.0, generator=stream(0, "p"))
    rest = p.y - (p.x * p.w.unsqueeze(1)).sum(-1)
    assert rest.std().item() == pytest.approx(0.5, rel=0.03) and p.w.std().item() == pytest.approx(2.0, rel=0.03)
    fixed = linear.regression_prompts(5, 3, 2, weights=torch.tensor([1.0, -1.0]), generator=stream(0, "p"))
    torch.testing.assert_close(fixed.y, fixed.x[..., 0] - fixed.x[..., 1])


def test_training_learns_and_depends_on_the_seed_alone():
    options = {"num_layers": 1, "hidden_dim": 16, "num_points": 4, "lr": 5e-3, "steps": 60}
    one, two = (linear.train(1, **options, seed=3) for _ in range(2))
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.equal(a, b)
    fixed = linear.train_learners(1, **options, weights=torch.ones(1), seeds=(0,))[0]
    assert fixed.curve[-1]["loss"] < 0.3 * fixed.curve[0]["loss"]
    X = torch.zeros(1, 5, 1)
    assert one.predict(X[:, :4], X[:, :4, 0], X).shape == (1, 5)
    with pytest.raises(ValueError, match="longer than max_points"):
        one(torch.zeros(1, 9, 1), torch.zeros(1, 9))


def test_placement_of_a_known_learner():
    penalties = (0.1, 0.25, 1.0)
    names = ["ols", "gd:1", "knn:3", *(f"ridge:{v!r}" for v in penalties)]
    ridge = linear.references(["ridge:0.25"])["ridge:0.25"]
    report = linear.identify(ridge, names, dim=2, num_tasks=64)
    found = linear.placement(report, penalties=penalties, simple=("gd:1", "knn:3"), n_context=range(2, 5))
    assert found["ridge_index"] == 2.0 and found["spd_best_ridge"] < 1e-9
    assert found["spd_best_simple"] == min(found["spd_gd1"], found["spd_knn3"]) > found["spd_ols"] > 0
    assert found["spd_ols"] == pytest.approx(np.mean([report.spd["ols"][n] for n in (2, 3, 4)]))
    assert report.best(names, [3]) == "ridge:0.25" and found["mse"] == report.mse["learner"][4]
    noisy = linear.identify(ridge, names, dim=1, noise=0.5, num_tasks=8)
    assert "spd_ols" not in linear.placement(noisy, penalties=penalties, simple=("gd:1",))


def test_probes_find_what_a_state_holds():
    model = linear.train(2, num_layers=1, hidden_dim=16, num_points=5, steps=3)
    model.train()
    tables = linear.probe_solutions(model, 2, num_prompts=150)
    assert all(module.training for module in model.modules())  # whoever looks leaves it as it was
    assert set(tables) == {"moment", "weights"}
    for table in tables.values():
        assert [row["layer"] for row in table] == ["layer0", "layer1"]
        assert table["layer0"]["error"] > 0.8  # the query's token knows nothing of the pairs


@pytest.mark.parametrize(("read", "hidden_size"), [("attention", None), ("last", 8)])
def test_trained_read_outs_of_the_layers(read, hidden_size):
    model = linear.train(2, num_layers=1, hidden_dim=16, num_points=5, steps=3)
    tables = linear.probe_solutions(
        model, 2, num_prompts=150, read=read, hidden_size=hidden_size, steps=60, generator=stream(0, "probe")
    )
    assert set(tables) == {"moment", "weights"}
    for table in tables.values():
        assert [row["layer"] for row in table] == ["layer0", "layer1"]
        assert len(table["layer1"]["weights"]) == (9 if read == "attention" else 1)
    with pytest.raises(ValueError, match="read must be"):
        linear.probe_solutions(model, 2, read="first")


def writing(X, y, Xq):
    X.mul_(0)
    return (Xq * 0).sum(-1)


def test_a_learner_that_writes_into_its_arguments_changes_nothing():
    options = {"refs": ["ols"], "dim": 2, "num_tasks": 8, "n_context": [4]}
    clean = linear.identify(lambda X, y, Xq: (Xq * 0).sum(-1), **options)
    assert linear.identify(writing, **options).spd == clean.spd


def test_construction_error_sees_a_missing_step():
    X, y, _ = pairs()
    assert linear.construction_error(X, y, [1, 3]) < 1e-10
    assert linear.construction_error(X, y, [1, 3], missing=1) > 1e-3


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: linear.GradientDescentTransformer(1, 1, 0.1)(*(torch.ones(2, 1).long(), torch.ones(2).long(),
                                                                torch.ones(2, 1).long())), "X must be floating point"),
        (lambda: linear.GradientDescentTransformer(1, 2.5, 0.1), "steps must be a whole number"),
        (lambda: linear.references([1]), "no reference 1"),
        (lambda: linear.identify(writing, ["ols"], dim=2, n_context=5), r"n_context must be a list .* use \[5\]"),
        (lambda: linear.identify(writing, ["ols"], dim=2, n_context=[1.5]), "n_context must be numbers of pairs"),
        (lambda: linear.identify(writing, ["ols"], dim=2.5), "dim must be a whole number"),
        (lambda: linear.train_learners(2, num_layers=1, hidden_dim=8, weights=torch.ones(1), steps=1),
         r"weights must have shape \(2,\), got \(1,\)"),
        (lambda: linear.probe_solutions(None, 2, hidden_size=0), "hidden_size of at least 1"),
        (lambda: linear.probe_solutions(None, 2, num_prompts=3), "at least 10 prompts"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_named(call, text):
    with pytest.raises(ValueError, match=text):
        call()


def test_numbers_of_pairs_may_be_an_array():
    for counts in (np.arange(1, 3), torch.arange(1, 3)):
        found = linear.identify(linear.references(["ols"])["ols"], ["ols"], dim=2, n_context=counts, num_tasks=4)
        assert found.n_context == (1, 2) and {type(n) for n in found.r2} == {int}


def test_linearity_is_a_share_of_all_variance():
    """The mean of one R^2 a data set is thrown off by one on which the learner is almost constant."""
    knn, seen = linear.references(["knn:3"])["knn:3"], []

    class Watched(nn.Module):
        def forward(self, X, y, Xq):
            seen.append((Xq.double().numpy(), knn(X, y, Xq).double().numpy()))
            return knn(X, y, Xq)

    found = linear.identify(Watched(), ["ols"], dim=2, n_context=[4, 8], num_tasks=32)
    for n, (Xq, out) in zip((4, 8), seen, strict=True):
        left = [o - q @ np.linalg.lstsq(q, o, rcond=None)[0] for q, o in zip(Xq, out, strict=True)]
        explained = 1 - np.square(left).sum() / np.square(out - out.mean(1, keepdims=True)).sum()
        assert found.r2[n] == pytest.approx(explained, rel=1e-4)


def test_probes_need_pairs():
    model = linear.SequenceModel(2, num_layers=1, hidden_dim=8, num_heads=1)
    with pytest.raises(ValueError, match="n_context must be at least 1, got 0"):
        linear.probe_solutions(model, 2, n_context=0, num_prompts=20)
