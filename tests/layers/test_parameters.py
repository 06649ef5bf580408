"""Parameters as a vector and forward passes with given weights, against the model's own."""

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from etude.data import seeded_build, stream
from etude.layers import Anchor, flatten, forward_with, unflatten


def _net(seed=0):
    return seeded_build(lambda: nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)), stream(seed, "init"))


def _conv(seed=0):
    return seeded_build(
        lambda: nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(3 * 16, 2)), stream(seed, "init")
    )


class _Odd(nn.Module):
    """Not a Sequential, with a scalar parameter and a layer norm: the general way."""

    def __init__(self):
        super().__init__()
        self.lin, self.norm, self.gain = nn.Linear(3, 4), nn.LayerNorm(4), nn.Parameter(torch.tensor(2.0))

    def forward(self, x):
        return self.gain * self.norm(self.lin(x))


class _Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
        self.b.weight = self.a.weight

    def forward(self, x):
        return self.b(torch.relu(self.a(x)))


def _params(model):
    return {k: v.detach().clone() for k, v in model.named_parameters()}


def _stack(models):
    return {k: torch.stack([dict(m.named_parameters())[k] for m in models]).detach() for k in _params(models[0])}


def test_round_trip_and_order():
    params = _params(_Odd())
    vector, layout = flatten(params)
    assert vector.tolist() == torch.cat([p.reshape(-1) for p in params.values()]).tolist()
    assert layout.size == len(vector) == sum(p.numel() for p in params.values())
    back = unflatten(vector, layout)
    assert list(back) == list(params)
    assert all(torch.equal(back[k], params[k]) for k in params)
    assert torch.equal(vector[layout.slices()["norm.weight"]], params["norm.weight"])


def test_unflatten_gives_views():
    vector, layout = flatten(_params(_net()))
    back = unflatten(vector, layout)
    vector.zero_()
    assert all((p == 0).all() for p in back.values())


def test_leading_axes_and_stacked_are_inverse():
    params = _stack([_net(0), _net(1)])
    vector, layout = flatten(params, stacked=True)
    assert vector.shape == (2, layout.size)
    back = unflatten(vector, layout)
    assert all(torch.equal(back[k], params[k]) for k in params)
    assert unflatten(vector.expand(4, 2, -1), layout)["0.weight"].shape == (4, 2, 5, 3)


def test_tied_weights_stand_once_and_come_back_under_both_names():
    model = _Tied()
    vector, layout = flatten(dict(model.named_parameters(remove_duplicate=False)))
    assert vector.shape == (9,)
    back = unflatten(vector, layout)
    assert back["a.weight"].data_ptr() == back["b.weight"].data_ptr()


def test_gradients_flow_through_the_vector():
    model, x = _net(), torch.ones(4, 3)
    vector, layout = flatten(_params(model))
    vector.requires_grad_()
    forward_with(model, unflatten(vector, layout), x).sum().backward()
    model(x).sum().backward()
    torch.testing.assert_close(vector.grad, flatten({k: p.grad for k, p in model.named_parameters()})[0])


@pytest.mark.parametrize(
    ("vector", "text"),
    [(torch.zeros(3), r"holds 32 numbers, the vector has shape \(3,\)"), (torch.tensor(0.0), "shape")],
)
def test_wrong_length_is_named(vector, text):
    with pytest.raises(ValueError, match=text):
        unflatten(vector, flatten(_params(_net()))[1])


def test_flatten_refuses_nothing_and_mixed_types():
    with pytest.raises(ValueError, match="no tensors"):
        flatten({})
    with pytest.raises(ValueError, match="'b' is torch.float64"):
        flatten({"a": torch.zeros(2), "b": torch.zeros(2, dtype=torch.float64)})
    with pytest.raises(ValueError, match="must count 2 sets"):
        flatten({"a": torch.zeros(2, 1), "b": torch.zeros(3, 1)}, stacked=True)


def test_forward_with_own_weights_changes_nothing():
    model, x = _Odd(), torch.randn(5, 3, generator=stream(0, "x"))
    assert torch.equal(forward_with(model, _params(model), x), model(x))


def test_left_out_names_keep_the_models_values():
    model, other, x = _net(0), _net(1), torch.ones(2, 3)
    got = forward_with(model, {"2.weight": _params(other)["2.weight"]}, x)
    expected = model[:2](x) @ other[2].weight.T + model[2].bias
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize(
    ("build", "shape"), [(_net, (6, 3)), (_conv, (6, 1, 6, 6)), (lambda s: seeded_build(_Odd, stream(s, "i")), (6, 3))]
)
@pytest.mark.parametrize("shared", [True, False])
def test_stacked_equals_one_after_another(build, shape, shared):
    models = [build(s) for s in range(3)]
    x = torch.randn(*(shape if shared else (3, *shape)), generator=stream(0, "x"))
    got = forward_with(models[0], _stack(models), x, stacked=True)
    expected = torch.stack([m(x if shared else x[i]) for i, m in enumerate(models)])
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-6)


def test_stacked_gradients_equal_one_after_another():
    models, x = [_net(s) for s in range(3)], torch.randn(6, 3, generator=stream(0, "x"))
    params = {k: v.requires_grad_() for k, v in _stack(models).items()}
    forward_with(models[0], params, x, stacked=True).square().sum().backward()
    for i, m in enumerate(models):
        m(x).square().sum().backward()
        for name, p in m.named_parameters():
            torch.testing.assert_close(params[name].grad[i], p.grad)


def test_as_many_rows_as_sets_is_still_one_shared_batch():
    models, x = [_net(s) for s in range(3)], torch.ones(3, 3)
    got = forward_with(models[0], _stack(models), x, stacked=True)
    torch.testing.assert_close(got, torch.stack([m(x) for m in models]))


def test_a_sequence_batch_can_be_said_to_be_shared():
    models, x = [_net(s) for s in range(3)], torch.randn(3, 4, 3, generator=stream(0, "x"))
    params = _stack(models)
    torch.testing.assert_close(
        forward_with(models[0], params, x, stacked=True, shared=True), torch.stack([m(x) for m in models])
    )
    torch.testing.assert_close(
        forward_with(models[0], params, x, stacked=True), torch.stack([m(x[i]) for i, m in enumerate(models)])
    )
    with pytest.raises(ValueError, match="2 batches for 3 weight sets"):
        forward_with(models[0], params, x[:2], stacked=True, shared=False)


def test_only_the_last_layer_stacked_gives_every_set_its_output():
    models, x = [_net(s) for s in range(2)], torch.ones(4, 3)
    params = {k: v for k, v in _stack(models).items() if k.startswith("2.")}
    got = forward_with(models[0], params, x, stacked=True)
    expected = torch.stack([m[2](models[0][:2](x)) for m in models])
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_weights_of_fused_recurrent_modules_are_refused_by_name(kind):
    model = nn.Sequential(nn.Linear(2, 2), kind(2, 2))
    with pytest.raises(ValueError, match=f"1 is a {kind.__name__}"):
        forward_with(model, {"1.bias_hh_l0": model[1].bias_hh_l0.detach()}, torch.zeros(1, 1, 2))


class _Reader(nn.Module):
    """Reads a sequence by an LSTM of its own, between layers whose weights may be given."""

    def __init__(self):
        super().__init__()
        self.enter, self.rnn, self.leave = nn.Linear(3, 4), nn.LSTM(4, 5, batch_first=True), nn.Linear(5, 2)

    def forward(self, x):
        out, (h, _) = self.rnn(self.enter(x))
        return self.leave(out[:, -1]), {"state": h[0]}


@pytest.mark.parametrize("shared", [True, False])
def test_an_lstm_that_keeps_its_weights_runs_between_given_ones(shared):
    models = [_Reader() for _ in range(3)]
    for m in models[1:]:
        m.rnn = models[0].rnn
    x = torch.randn((4, 6, 3) if shared else (3, 4, 6, 3))
    params = {n: p for n, p in _stack(models).items() if not n.startswith("rnn.")}
    got, aside = forward_with(models[0], params, x, stacked=True, shared=shared)
    for i, m in enumerate(models):
        y, more = m(x if shared else x[i])
        torch.testing.assert_close(got[i], y)
        torch.testing.assert_close(aside["state"][i], more["state"])


def test_a_module_that_stands_twice_runs_twice_and_keeps_its_weights():
    act, layer = nn.Tanh(), nn.Linear(3, 3)
    model = nn.Sequential(layer, act, nn.Linear(3, 3), act, layer)
    x, before = torch.randn(4, 3), layer.weight
    params = {n: torch.randn(2, *p.shape) for n, p in model.named_parameters()}
    got = forward_with(model, params, x, stacked=True)
    for i in range(2):
        own = {n: p[i] for n, p in params.items()}
        one, other = ((own[f"{at}.weight"], own[f"{at}.bias"]) for at in (0, 2))
        hidden = torch.tanh(nn.functional.linear(torch.tanh(nn.functional.linear(x, *one)), *other))
        wanted = nn.functional.linear(hidden, *one)
        torch.testing.assert_close(got[i], wanted)
        torch.testing.assert_close(forward_with(model, own, x), wanted)
        both = {**own, "4.weight": own["0.weight"], "4.bias": own["0.bias"]}
        torch.testing.assert_close(forward_with(model, both, x), wanted)
    assert layer.weight is before
    assert isinstance(before, nn.Parameter)
    with pytest.raises(ValueError, match=r"'4.weight' is tied"):
        forward_with(model, {"0.weight": torch.zeros(3, 3), "4.weight": torch.ones(3, 3)}, x)


def test_attention_in_eval_mode_has_gradients_for_every_set():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

        def forward(self, x):
            return self.attention(x, x, x, need_weights=False)[0]

    net, x = Net().eval(), torch.randn(2, 3, 5, 4)
    params = {n: torch.randn(2, *p.shape).requires_grad_() for n, p in net.named_parameters()}
    got = forward_with(net, params, x, stacked=True, shared=False)
    got.square().sum().backward()
    singles = {n: p[0].detach().requires_grad_() for n, p in params.items()}
    forward_with(net, singles, x[0]).square().sum().backward()
    for name, p in singles.items():
        torch.testing.assert_close(params[name].grad[0], p.grad, rtol=1e-4, atol=1e-4)
    assert torch.backends.mha.get_fastpath_enabled()


def test_batches_in_dicts_and_results_of_several_tensors():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, batch):
            return self.layer(batch["x"]) * batch["scale"], [batch["x"].sum(1)]

    net = Net()
    params = {n: torch.randn(4, *p.shape) for n, p in net.named_parameters()}
    batch = {"x": torch.randn(4, 5, 3), "scale": torch.rand(4, 5, 1)}
    got, (sums,) = forward_with(net, params, batch, stacked=True, shared=False)
    for i in range(4):
        own = {n: p[i] for n, p in params.items()}
        torch.testing.assert_close(got[i], forward_with(net, own, {k: v[i] for k, v in batch.items()})[0])
    torch.testing.assert_close(sums, batch["x"].sum(2))
    with pytest.raises(TypeError, match="must be a tensor"):
        forward_with(net, params, {"x": "no"}, stacked=True)


def test_dropout_draws_a_mask_for_every_set_where_asked():
    model = nn.Sequential(nn.Dropout(0.5), nn.Linear(50, 1, bias=False))
    params = {"1.weight": torch.ones(4, 1, 50)}
    got = forward_with(model, params, torch.ones(2, 50), stacked=True, shared=True, randomness="different")
    assert len(got.flatten().unique()) > 4
    for set_a in range(3):
        assert not torch.equal(got[set_a], got[3])


def test_bad_names_and_shapes_are_named():
    model, x = _net(), torch.zeros(1, 3)
    with pytest.raises(ValueError, match=r"no parameter named \['9.weight'\]"):
        forward_with(model, {"9.weight": torch.zeros(1)}, x)
    with pytest.raises(ValueError, match=r"'0.weight' must have shape \(5, 3\), got \(3, 5\)"):
        forward_with(model, {"0.weight": torch.zeros(3, 5)}, x)
    with pytest.raises(ValueError, match=r"must have shape \(C, 5\)"):
        forward_with(model, {"0.bias": torch.zeros(5)}, x, stacked=True)
    with pytest.raises(ValueError, match="'0.weight' has 3 weight sets"):
        forward_with(model, {"0.bias": torch.zeros(2, 5), "0.weight": torch.zeros(3, 5, 3)}, x, stacked=True)
    with pytest.raises(ValueError, match="at least one tensor"):
        forward_with(model, {}, x, stacked=True)


@pytest.mark.parametrize("layer", [nn.Dropout(0.5), nn.BatchNorm1d(5), spectral_norm(nn.Linear(5, 5))])
def test_state_that_sets_cannot_share_is_refused_until_eval(layer):
    model = nn.Sequential(nn.Linear(3, 5), layer)
    params = {"0.weight": torch.zeros(2, 5, 3)}
    if isinstance(layer, nn.Linear):
        assert forward_with(model, params, torch.zeros(4, 3), stacked=True).shape == (2, 4, 5)  # its own weight
        params["1.parametrizations.weight.original"] = torch.ones(2, 5, 5)
    with pytest.raises(ValueError, match=r"model\.eval\(\)"):
        forward_with(model, params, torch.zeros(4, 3), stacked=True)
    assert forward_with(model.eval(), params, torch.zeros(4, 3), stacked=True).shape == (2, 4, 5)


def test_anchor_measures_the_way():
    model = _net()
    anchor = Anchor(model)
    assert float(anchor.distance()) == 0
    with torch.no_grad():
        model[0].bias += 3.0
        model[2].bias += 4.0
    assert float(anchor.distance()) == pytest.approx((5 * 9 + 2 * 16) ** 0.5)
    per = anchor.distance(per_tensor=True)
    assert float(per["0.bias"]) == pytest.approx(45**0.5)
    assert float(per["0.weight"]) == 0
    assert anchor.delta().shape == (32,)
    assert anchor.delta()[15:20].tolist() == [3.0] * 5
    anchor.delta().square().sum().backward()
    torch.testing.assert_close(model[2].bias.grad, torch.full((2,), 8.0))


def test_anchor_counts_tied_weights_once():
    model = _Tied()
    anchor = Anchor(model)
    with torch.no_grad():
        model.a.weight += 1.0
    assert float(anchor.distance()) == pytest.approx(3.0)


def test_anchor_needs_parameters():
    with pytest.raises(ValueError, match="no parameters"):
        Anchor(nn.ReLU())
