"""Generated weights: identities of every strategy, condition, encoding and initialisation."""

import copy
import math
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from etude.layers import (
    DataCondition,
    HyperNetwork,
    NoiseCondition,
    RecurrentHyperNetwork,
    ScalarCondition,
    TargetError,
    TaskCondition,
    encode_magnitude,
    magnitude_report,
    mlp,
)
from etude.layers.parameters import flatten

STRATEGIES = ("all", "split", "layerwise", "chunk", "rnn", "attention", "conv")
P = 6 * 5 + 5 + 5 * 3 + 3


def make(strategy="all", condition=None, **options):
    torch.manual_seed(0)
    hidden = (8, 8) if strategy in ("rnn", "attention") else (8, 12)
    options = {"num_heads": 3, "num_chunks": 7, "chunk_dim": 3, "hidden": hidden, **options}
    return HyperNetwork(mlp((6, 5, 3)), condition or TaskCondition(4, 3), strategy=strategy, **options)


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_batched_conditions_equal_one_by_one_and_the_exported_net(strategy, residual):
    hyper, x = make(strategy, residual=residual), torch.randn(5, 6)
    ids = torch.tensor([3, 0, 1, 1, 2])
    rows = hyper(x, task=ids)
    for i, t in enumerate(ids.tolist()):
        assert torch.allclose(rows[i], hyper(x, task=t)[i], atol=1e-6)
        assert torch.allclose(rows[i], hyper.export(task=t)(x)[i], atol=1e-6)
    each = hyper.forward_each(x, shared=True, task=ids)
    assert torch.allclose(each[0], hyper(x, task=3), atol=1e-6)
    flat = hyper.generate_flat(ids)
    assert flat.shape == (5, P)
    assert torch.allclose(flat[2], flatten(hyper.generate(task=1))[0], atol=1e-6)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_parameter_gets_a_gradient_and_weights_depend_on_the_task(strategy):
    hyper = make(strategy, residual=True)
    flat = hyper.generate_flat(torch.arange(4))
    assert (flat[0] - flat[1]).abs().max() > 1e-3
    hyper(torch.randn(8, 6), task=torch.arange(4).repeat(2)).square().sum().backward()
    assert all(p.grad is not None for p in hyper.parameters())


def test_head_sizes_follow_the_survey():
    heads = {s: sum(p.numel() for n, p in make(s).generator.named_parameters() if "head" in n) for s in STRATEGIES}
    ceil = math.ceil
    assert heads["all"] == 12 * P + P
    assert heads["split"] == 3 * (4 * ceil(P / 3) + ceil(P / 3))
    assert heads["layerwise"] == 13 * 30
    assert heads["chunk"] == 13 * ceil(P / 7)
    assert heads["rnn"] == heads["attention"] == 9 * ceil(P / 7)
    assert heads["conv"] == 13 * ceil(P / 7)


@pytest.mark.parametrize("strategy", ["attention", "conv"])
def test_chunks_see_each_other(strategy):
    """Moving the place of one chunk moves the weights of others, which no chunk-wise generator does."""
    hyper = make(strategy)
    before = hyper.generate_flat(task=0)[0]
    with torch.no_grad():
        hyper.generator.places[0] += 1
    moved = (hyper.generate_flat(task=0)[0] - before).abs()
    assert moved[math.ceil(P / 7) : 2 * math.ceil(P / 7)].max() > 1e-4
    with pytest.raises(ValueError, match="between 1 and"):
        make(strategy, num_chunks=P + 1)
    with pytest.raises(ValueError, match="hidden"):
        make(strategy, hidden=())


def test_parameters_of_the_lstm_follow_the_formula():
    te, ce, h, c = 3, 3, 8, 7
    hyper = make("rnn", hidden=(h,))
    m = math.ceil(P / c)
    want = 4 * h * (te + ce + h + 2) + m * (h + 1) + c * ce + 4 * te + h * (te + 1)
    assert hyper.parameter_report().trainable == want


@given(st.floats(0.01, 1.0))
@settings(max_examples=20, deadline=None)
def test_default_is_proportional_to_its_condition_and_the_encoding_has_constant_norm(alpha):
    hyper = make("all", ScalarCondition(["lam"]), encoding=None)
    assert torch.allclose(hyper.generate_flat(lam=alpha), alpha * hyper.generate_flat(lam=1.0), rtol=1e-4, atol=1e-6)
    z = torch.rand(4, 3, generator=torch.Generator().manual_seed(0)) * alpha
    assert torch.allclose(encode_magnitude(z, "cos|sin").square().sum(1), torch.full((4,), 3.0))


def test_encoding_is_cosines_then_sines_and_keeps_the_ends_apart():
    want = torch.tensor([[1.0, 0.0, 0.0, 1.0]])
    assert torch.allclose(encode_magnitude(torch.tensor([[0.0, 1.0]]), "cos|sin"), want, atol=1e-6)
    assert torch.equal(encode_magnitude(torch.tensor([[0.25]]), "z|1-z"), torch.tensor([[0.25, 0.75]]))
    assert encode_magnitude(torch.ones(1, 1, dtype=torch.bfloat16), "cos|sin").dtype == torch.float32
    with pytest.raises(ValueError, match="encoding must be"):
        encode_magnitude(torch.zeros(1, 1), "cos")


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_gain_gives_every_tensor_the_size_of_an_ordinary_net(strategy):
    hyper = make(strategy, init="gain")
    made = hyper.generate_flat(torch.arange(4))
    for (name, part), shape in zip(hyper.layout.slices().items(), hyper.layout.shapes, strict=True):
        want = math.sqrt(2 / shape[1]) if len(shape) > 1 else 0.01
        assert made[:, part].square().mean().sqrt().item() == pytest.approx(want, rel=1e-4), name


def test_hyperfan_keeps_the_variance_of_the_targets_activations():
    torch.manual_seed(1)
    target = nn.Sequential(nn.Linear(200, 200), nn.ReLU(), nn.Linear(200, 200))
    hyper = HyperNetwork(target, TaskCondition(2, 16), hidden=(16,), init="hyperfan")
    x = torch.randn(64, 200)
    assert hyper(x, task=0).var().item() == pytest.approx(1.0 + 1.0, abs=1.2)
    with pytest.raises(ValueError, match="gain"):
        make("chunk", init="hyperfan")


def test_scaled_starts_where_gain_does_without_a_factor():
    gain, scaled = make(init="gain"), make(init="scaled")
    ids = torch.arange(4)
    assert torch.allclose(gain.generate_flat(ids), scaled.generate_flat(ids), atol=1e-5)
    assert torch.equal(scaled.gain, torch.ones(4))
    assert (gain.gain != 1).all()
    with pytest.raises(ValueError, match="gain"):
        make("rnn", init="scaled")


def test_residual_starts_like_an_ordinary_net_and_default_change_is_small():
    torch.manual_seed(0)
    hyper = HyperNetwork(mlp((196, 32, 10)), ScalarCondition(["g"]), residual=True)
    z = torch.linspace(0, 1, 21)
    norms = hyper.generate_flat(g=z).norm(dim=1)
    assert norms.std() / norms.mean() < 0.05
    assert hyper.theta0[: 196 * 32].std().item() == pytest.approx(math.sqrt(2 / 196), rel=0.05)
    assert (hyper.generate_flat(g=z) - hyper.theta0).norm(dim=1).max() < 0.3 * hyper.theta0.norm()
    assert all(n != "head.bias" for n, _ in hyper.generator.named_parameters())  # theta_0 is that bias


@pytest.mark.parametrize("strategy", STRATEGIES[1:])
def test_a_change_of_theta0_starts_small_whatever_the_strategy(strategy):
    torch.manual_seed(0)
    net = mlp((196, 32, 10))
    for hyper in (HyperNetwork(net, ScalarCondition("lam"), strategy=strategy),
                  HyperNetwork.from_pretrained(net, ScalarCondition("lam"), strategy=strategy)):  # fmt: skip
        change = hyper.generate_flat(lam=torch.linspace(0, 1, 5)) - hyper.theta0
        assert 0.02 < float(change.norm() / 5**0.5 / hyper.theta0.norm()) < 0.4


def test_norm_gains_are_generated_around_one():
    hyper = HyperNetwork(nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8)), TaskCondition(2, 3), init="gain")
    assert hyper.generate(task=0)["1.weight"].mean().item() == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("options", [{"strategy": "rnn"}, {"strategy": "rnn", "cell": "gru"}, {"strategy": "rnn", "cell": "elman"},
                                     {"strategy": "chunk"}, {"strategy": "all"}, {"strategy": "layerwise"}])  # fmt: skip
def test_widening_and_new_tasks_change_no_old_weight(options):
    hyper = make(**options)
    before, size = hyper.generate_flat(torch.arange(4)), hyper.parameter_report().trainable
    hyper.widen(5)
    assert hyper.add_condition(2) == range(4, 6)
    assert hyper.parameter_report().trainable > size
    assert torch.allclose(hyper.generate_flat(torch.arange(4)), before, atol=1e-6)
    hyper.generate_flat(torch.arange(6)).square().sum().backward()
    assert all(p.grad is not None for p in hyper.parameters())


def test_a_frozen_task_keeps_its_embedding():
    hyper = make()
    hyper.condition.freeze(1)
    hyper.generate_flat(torch.arange(4)).sum().backward()
    assert hyper.condition.rows[1].grad is None
    assert hyper.condition.rows[2].grad is not None
    optimizer = torch.optim.Adam(hyper.parameters(), lr=0.1)
    optimizer.step()
    hyper.condition.freeze(2)
    kept = hyper.condition.rows[2].detach().clone()
    optimizer.zero_grad(set_to_none=False)
    optimizer.step()
    assert torch.equal(hyper.condition.rows[2], kept)  # no momentum moves it


def test_tied_weights_are_generated_once():
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    net[2].weight = net[0].weight
    hyper = HyperNetwork(net, TaskCondition(2, 3), targets=["0.weight"])
    made = hyper.generate(task=0)
    assert hyper.layout.size == 16
    assert made["0.weight"] is made["2.weight"]
    plain = hyper.export(task=0)
    assert plain[0].weight is plain[2].weight
    x = torch.randn(3, 4)
    assert torch.allclose(plain(x), hyper(x, task=0))


def test_unmatched_parameters_stay_trainable_and_are_listed():
    hyper = make(targets="2")
    report = hyper.parameter_report()
    assert report.unmatched == ("0.weight", "0.bias")
    assert (report.generated, report.direct) == (18, 35)
    assert report.ratio == report.trainable / P
    with pytest.raises(TargetError, match="nothing"):
        make(targets="nothing")
    assert not any(n.startswith("target.2") for n in hyper.state_dict())


def test_state_goes_through_a_dictionary():
    hyper, x = make("chunk", init="gain"), torch.randn(2, 6)
    torch.manual_seed(9)
    other = HyperNetwork(
        mlp((6, 5, 3)), TaskCondition(4, 3), strategy="chunk", num_chunks=7, chunk_dim=3, hidden=(8, 12)
    )
    other.load_state_dict(hyper.state_dict())
    assert torch.equal(other(x, task=1), hyper(x, task=1))


def test_batch_norm_statistics_by_task():
    def net():
        return nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))

    with pytest.warns(UserWarning, match="share batch norm"):
        HyperNetwork(net(), TaskCondition(2, 3))
    hyper = HyperNetwork(net(), TaskCondition(2, 3), buffers="per_condition", init="gain")
    hyper(torch.randn(16, 4) + 3, task=0)
    means = hyper.stacks.get_buffer("1__running_mean")
    assert means[0].abs().max() > 0
    assert means[1].abs().max() == 0
    hyper.eval()
    x = torch.randn(2, 4)
    rows = hyper(x, task=torch.tensor([0, 1]))
    assert torch.allclose(rows[0], hyper(x, task=0)[0], atol=1e-6)
    assert torch.allclose(hyper.export(task=0)(x), hyper(x, task=0), atol=1e-6)
    hyper.add_condition(2)
    means, seen = hyper.stacks.get_buffer("1__running_mean"), hyper.stacks.get_buffer("1__num_batches_tracked")
    assert len(means) == 4 and means[0].any() and not means[2:].any()  # a new task starts afresh
    assert seen.tolist() == [1, 0, 0, 0]


def test_noise_and_data_conditions():
    noise = make(condition=NoiseCondition(3, torch.Generator().manual_seed(0)))
    assert noise.generate_flat(noise=20).shape == (20, P)
    z = torch.randn(2, 3)
    assert torch.equal(noise.generate_flat(noise=z), noise.generate_flat(noise=z))
    data = make(condition=DataCondition(nn.Linear(6, 3), 3))
    x = torch.randn(4, 6)
    data(x, data=x).sum().backward()
    assert data.condition.encoder.weight.grad.abs().max() > 0
    noisy = make(condition=DataCondition(nn.Sequential(nn.Linear(6, 3), nn.Dropout(0.5)), 3))
    one, two = (noisy.export(data=x[:1]) for _ in range(2))
    assert torch.equal(one[0].weight, two[0].weight) and noisy.condition.training
    with pytest.raises(ValueError, match="generator"):
        make(condition=NoiseCondition(3)).generate_flat(noise=2)
    with pytest.raises(ValueError, match="noise must be"):
        noise.generate_flat(noise=torch.zeros(2, 4))


def test_pretrained_weights_are_the_start():
    net, x = mlp((6, 5, 3)), torch.randn(4, 6)
    before = copy.deepcopy(net.state_dict())
    hyper = HyperNetwork.from_pretrained(net, ScalarCondition(["lam"]), freeze_theta0=True)
    hyper.generator.head.weight.data.zero_()
    assert torch.allclose(hyper(x, lam=0.3), net(x))
    assert not hyper.theta0.requires_grad
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    weights = dict(net.named_parameters())
    with pytest.raises(ValueError, match="missing.*0.bias"):
        hyper.load_theta0({k: v for k, v in weights.items() if k != "0.bias"})
    with pytest.raises(ValueError, match="extra.*more"):
        hyper.load_theta0({**weights, "more": torch.zeros(1)})
    with pytest.raises(ValueError, match="0.bias.*shape"):
        hyper.load_theta0({**weights, "0.bias": torch.zeros(9)})


def test_tasks_of_a_pretrained_net_start_near_it():
    hyper = HyperNetwork.from_pretrained(mlp((60, 40, 10)), TaskCondition(3, 8))
    for part, shape in zip(hyper.layout.slices().values(), hyper.layout.shapes, strict=True):
        change = (hyper.generate_flat(task=[0, 1, 2]) - hyper.theta0)[:, part]
        ordinary = math.sqrt(2 / shape[1]) if len(shape) > 1 else 0.01
        assert change.square().mean().sqrt().item() == pytest.approx(0.1 * ordinary, rel=0.01)


def test_bad_input_is_named():
    hyper, x = make(), torch.randn(5, 6)
    with pytest.raises(IndexError, match="task 7 of 4"):
        hyper(x, task=7)
    with pytest.raises(IndexError, match="task -1 of 4"):
        hyper(x, task=torch.tensor([-1, 0]))
    with pytest.raises(ValueError, match="3 conditions for 5 rows"):
        hyper(x, task=torch.tensor([0, 1, 2]))
    with pytest.raises(TypeError, match="unknown condition 'lam'.*task"):
        hyper(x, lam=1)
    with pytest.raises(TypeError, match="missing condition 'task'"):
        hyper(x)
    with pytest.raises(ValueError, match="num_chunks=99"):
        make("chunk", num_chunks=99)
    with pytest.raises(ValueError, match="strategy"):
        make("else")
    with pytest.raises(ValueError, match="1 is a LSTM"):
        HyperNetwork(nn.Sequential(nn.Linear(2, 2), nn.LSTM(2, 2)), TaskCondition(2, 2))
    for bias in (True, False):
        with pytest.warns(UserWarning, match="nothing is saved"):
            HyperNetwork(nn.Linear(50, 50, bias=bias), TaskCondition(2, 2), strategy="layerwise")
    with pytest.raises(TargetError, match="targets is empty"):
        make(targets=[])
    with pytest.raises(TypeError, match="2 conditions were given"):
        hyper.generate(1, 2)
    for name in ("x", "shared", "weights"):
        with pytest.raises(ValueError, match=f"cannot be called '{name}'"):
            make(condition=ScalarCondition([name]))
    with pytest.raises(ValueError, match="below"):
        ScalarCondition(["a"], 1, 1)


def test_scalars_outside_their_range():
    loose = ScalarCondition(["lam"], 0.01, 1, "log")
    assert torch.allclose(loose(lam=0.1), torch.tensor([[0.5]]))
    with pytest.warns(UserWarning, match="from 2 to 2"):
        loose(lam=2.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loose(lam=2.0)  # once is enough
    with pytest.raises(ValueError, match="leaves the range"):
        ScalarCondition(["lam"], strict=True)(lam=2.0)
    with pytest.raises(ValueError, match="NaN"):
        loose(lam=float("nan"))


def test_generated_l2_is_the_squared_norm_of_the_weights():
    hyper = make()
    assert torch.allclose(hyper.generated_l2(task=0), hyper.generate_flat(task=0).square().sum())


def test_magnitude_of_any_callable_and_of_default_and_mip():
    line = magnitude_report(lambda c: {"w": torch.full((3, 2), c)}, 5)
    assert line.r_squared == pytest.approx(1)
    assert torch.allclose(line.per_tensor["w"], line.grid * math.sqrt(6))
    assert magnitude_report(lambda c: {"w": torch.ones(2)}, [0, 0.5, 1]).cov == 0
    with pytest.raises(ValueError, match="at least 3"):
        magnitude_report(lambda c: {"w": torch.ones(2)}, 2)
    with pytest.raises(ValueError, match="parameters="):
        magnitude_report(lambda c: {"w": torch.ones(2)}, loss=lambda w, c: w["w"].sum())
    assert line.grad_norms is None
    assert line.grad_cov is None
    a = torch.ones(2, requires_grad=True)
    by_hand = magnitude_report(
        lambda c: {"w": c * a}, [1, 2, 3], parameters=[a], loss=lambda w, c: w["w"].square().sum()
    )
    assert torch.allclose(by_hand.grad_norms, 2 * math.sqrt(2) * by_hand.grid**2)  # of c^2 a^2: 2 c^2 a
    square = magnitude_report(lambda c: {"w": c * a}, [1, 2, 3], parameters=[a])
    assert torch.allclose(square.grad_norms, math.sqrt(2) * square.grid**2)
    with pytest.warns(UserWarning, match="proportional"):
        default = make("all", ScalarCondition(["lam"], 2, 5), encoding=None).magnitude_report()
    assert default.r_squared > 0.999
    assert default.cov > 0.5
    mip = make("all", ScalarCondition(["lam"], 2, 5), residual=True).magnitude_report()
    assert mip.r_squared < 0.5
    assert 0 < mip.grad_cov < 0.5 < default.grad_cov
    with pytest.raises(ValueError, match="sweeps one scalar"):
        make().magnitude_report()


def test_recurrent_grows_from_one_task():
    hyper = RecurrentHyperNetwork(mlp((6, 5, 3)), chunk_size=10, hidden=8)
    assert hyper.add_condition() == range(1, 2)
    assert hyper.generate_flat(torch.tensor([0, 1])).shape == (2, P)
    assert len(hyper.generator.places) == math.ceil(P / 10)
    with pytest.raises(ValueError, match="chunk_size=99"):
        RecurrentHyperNetwork(mlp((6, 5, 3)), chunk_size=99)


class WritesItself(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(6, 3)

    def forward(self, x):
        self.inner.weight.mul_(0.5)
        return self.inner(x)


def test_a_target_that_writes_into_its_weights_is_named():
    hyper = HyperNetwork(WritesItself(), TaskCondition(2, 3))
    with pytest.raises(ValueError, match=r"inner changes its weights in place \(inner.weight\)"):
        hyper(torch.randn(4, 6), task=0)
    with pytest.raises(ValueError, match=r"in place"):
        hyper(torch.randn(2, 6), task=torch.tensor([0, 1]))


def test_a_state_of_more_tasks_says_what_to_do():
    large, small = make(condition=TaskCondition(5, 3)), make(condition=TaskCondition(2, 3))
    with pytest.raises(ValueError, match=r"holds 5 tasks, this condition 2: add_condition\(3\)"):
        small.load_state_dict(large.state_dict())
    small.add_condition(3)
    small.load_state_dict(large.state_dict())
    assert torch.equal(small.generate_flat(task=4), large.generate_flat(task=4))


def test_mip_is_the_default_of_scalar_conditions_alone():
    scalar = HyperNetwork(mlp((6, 5, 3)), ScalarCondition(["lam"]))
    assert scalar.theta0 is not None
    assert scalar.bounded
    assert scalar.magnitude_report().cov < 0.1
    for plain in (
        HyperNetwork(mlp((6, 5, 3)), TaskCondition(3, 4)),
        HyperNetwork(mlp((6, 5, 3)), ScalarCondition(["lam"]), encoding=None),
        HyperNetwork(mlp((6, 5, 3)), ScalarCondition(["lam"]), residual=False),
    ):
        assert plain.theta0 is None


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_precisions(dtype):
    net = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2))
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(0)).to(dtype)
    for condition in (ScalarCondition("lam"), NoiseCondition(3, torch.Generator().manual_seed(0))):
        given = {"lam": 0.3} if condition.names == ("lam",) else {"noise": 1}
        assert HyperNetwork(net, condition).to(dtype)(x, **given).dtype == dtype
    before = HyperNetwork(copy.deepcopy(net).to(dtype), ScalarCondition("lam"))
    assert before(x, lam=0.3).dtype == dtype
    if dtype == torch.float64:
        lam = torch.tensor([0.3], dtype=dtype, requires_grad=True)
        assert torch.autograd.gradcheck(lambda c: before.generate_flat(lam=c), lam)


def test_defaults_follow_the_strategy():
    net = nn.Sequential(nn.Linear(50, 30), nn.ReLU(), nn.Linear(30, 10))
    for strategy in ("chunk", "split", "layerwise", "rnn", "attention"):
        torch.manual_seed(0)
        weights = HyperNetwork(net, TaskCondition(3, 8), strategy=strategy).generate(task=0)
        assert 0.5 < float(weights["0.weight"].detach().std()) / (2 / 50) ** 0.5 < 2, strategy


@pytest.mark.parametrize(
    ("options", "value", "words"),
    [
        ({"scale": "log", "low": 0.1}, [0.5, -1.0], "has no logarithm"),
        ({}, [0.1, 0.2, float("nan")], "condition 2 is NaN"),
    ],
)
def test_conditions_that_mean_nothing(options, value, words):
    with pytest.raises(ValueError, match=words):
        ScalarCondition("lam", **options)(lam=torch.tensor(value))


def test_chunks_are_counted_over_what_is_generated():
    net = nn.Sequential(nn.Linear(50, 30), nn.ReLU(), nn.Linear(30, 5))
    hyper = RecurrentHyperNetwork(net, 2, chunk_size=10, targets=["2"])
    assert hyper.generate_flat(task=0).shape == (1, 155)


@pytest.mark.parametrize("norm", ["batch", "layer", "weight"])
def test_norms_of_the_generator(norm):
    hyper = make("all", ScalarCondition(["lam"], 2, 5), norm=norm)
    hyper.generated_l2(lam=torch.tensor([2.0, 3.0, 5.0])).backward()
    assert all(p.grad is not None for p in hyper.generator.trunk.parameters())
    gains = [p for n, p in hyper.generator.named_parameters() if n.endswith("original0")]
    assert len(gains) == (2 if norm == "weight" else 0)
    with pytest.raises(ValueError, match="without norm"):
        hyper.widen(2)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("given", [{"task": 1}, {"task": [0, 1, 2, 3, 0]}])
def test_inference_mode_computes_the_same(strategy, given):
    hyper, x = make(strategy).eval(), torch.randn(5, 6)
    want = [hyper(x, **given), hyper.forward_each(x, shared=True, **given), hyper.generate_flat(**given)]
    with torch.inference_mode():
        got = [hyper(x, **given), hyper.forward_each(x, shared=True, **given), hyper.generate_flat(**given)]
        hyper.export(task=1)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(want, got, strict=True))


def test_a_report_inside_inference_mode():
    hyper = make("all", ScalarCondition(["lam"]))
    want = hyper.magnitude_report()
    with torch.inference_mode():
        assert torch.equal(hyper.magnitude_report().grad_norms, want.grad_norms)
        assert make("all", ScalarCondition(["lam"])).magnitude_report().grad_norms is None  # nothing takes a gradient


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_no_rows_give_no_rows(strategy):
    hyper, none = make(strategy), torch.zeros(0, 6)
    out = hyper(none, task=torch.zeros(0, dtype=torch.long))
    assert out.shape == hyper(none, task=1).shape == (0, 3)
    out.sum().backward()
    assert make(strategy, ScalarCondition("lam"))(none, lam=torch.zeros(0)).shape == (0, 3)
    with pytest.raises(ValueError, match="0 conditions for 5 rows"):
        hyper(torch.zeros(5, 6), task=[])


def test_a_batch_norm_in_the_generator_needs_two_conditions_and_is_not_moved_by_a_look():
    hyper, x = make("all", ScalarCondition(["lam"]), norm="batch"), torch.randn(4, 6)
    hyper.generate_flat(lam=torch.tensor([0.1, 0.5, 0.9]))
    before = copy.deepcopy(hyper.state_dict())
    for call in (lambda: hyper(x, lam=0.3), lambda: hyper.generate(lam=0.3), lambda: hyper.generate_flat(lam=[])):
        with pytest.raises(ValueError, match=r"norm=\"batch\" cannot train on [01] conditions.*hyper.eval"):
            call()
    plain, report = hyper.export(lam=0.3), hyper.magnitude_report()
    assert all(m.training for m in hyper.modules())
    assert all(torch.equal(v, before[n]) for n, v in hyper.state_dict().items())
    hyper.eval()
    assert torch.allclose(plain(x), hyper(x, lam=0.3), atol=1e-6)
    assert torch.equal(report.norms, hyper.magnitude_report().norms)


def test_a_report_of_half_precision_does_not_overflow():
    many = torch.ones(100_000, dtype=torch.half, requires_grad=True)
    report = magnitude_report(lambda c: {"a": many * c}, [0.5, 0.75, 1], parameters=[many])
    assert torch.allclose(report.norms, report.grid * math.sqrt(100_000), rtol=1e-3)
    assert torch.allclose(report.grad_norms, report.grid**2 * math.sqrt(100_000), rtol=1e-3)
    assert report.r_squared == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"norm": "zz"}, "batch, layer, weight or None"),
        ({"norm": "zz", "strategy": "rnn"}, "batch, layer, weight or None"),
        ({"norm": "batch", "strategy": "chunk"}, "mixes the places of strategy='chunk'"),
        *(({"norm": "layer", "strategy": s}, f"no place in strategy='{s}'") for s in ("rnn", "attention", "conv")),
    ],
)
def test_norms_that_do_not_go(options, words):
    with pytest.raises(ValueError, match=words):
        make(**options)


def test_targets_and_starts_that_mean_nothing():
    for make_lazy in (lambda t: HyperNetwork(t, TaskCondition(2, 3)), RecurrentHyperNetwork):
        with pytest.raises(ValueError, match="'1.weight' has no shape yet: run the target"):
            make_lazy(nn.Sequential(nn.ReLU(), nn.LazyLinear(3)))
    with pytest.raises(ValueError, match="mixes types.*0.bias is torch.float32.*1.bias is torch.float64"):
        HyperNetwork(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3).double()), TaskCondition(2, 3))
    net = mlp((6, 5, 3))
    with pytest.raises(ValueError, match="residual=False"):
        HyperNetwork.from_pretrained(net, ScalarCondition("lam"), residual=False)
    with torch.no_grad():
        net[0].bias[1] = float("nan")
    with pytest.raises(ValueError, match=r"'0.bias' holds NaN"):
        HyperNetwork.from_pretrained(net, ScalarCondition("lam"), residual=None)


@pytest.mark.parametrize(("unit", "parts", "widest"), [("tensor", 4, 30), ("layer", 2, 35), ("channel", 8, 7)])
def test_layerwise_generates_tensors_layers_or_channels(unit, parts, widest):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the first layer is most of this target
        hyper = make("layerwise", unit=unit)
    head, places = hyper.generator.head, hyper.generator.places
    assert (head.out_features, len(places)) == (widest, parts)
    before = {n: t.detach() for n, t in hyper.generate(task=1).items()}
    with torch.no_grad():
        places[-1] += 1.0  # the last tensor, the last layer, the last output of the last layer
    moved = {n: (t.detach() != before[n]) for n, t in hyper.generate(task=1).items()}
    assert not bool(moved["0.weight"].any() | moved["0.bias"].any())
    assert bool(moved["2.bias"][-1])
    assert bool(moved["2.weight"][-1].all()) == (unit != "tensor")
    assert bool(moved["2.weight"][:-1].any()) == (unit == "layer")
    rows = hyper(torch.ones(2, 6), task=torch.tensor([0, 1]))
    assert torch.allclose(rows[1], hyper.export(task=1)(torch.ones(1, 6))[0], atol=1e-6)


def test_units_have_their_strategies():
    with pytest.raises(ValueError, match=r"unit of strategy=\"layerwise\".*got 'chunk'"):
        make("layerwise", unit="chunk")
    with pytest.raises(ValueError, match=r"unit of strategy=\"rnn\".*got 'channel'"):
        make("rnn", unit="channel")
    with pytest.raises(ValueError, match="unit='layer' has no place in strategy='all'"):
        make("all", unit="layer")
