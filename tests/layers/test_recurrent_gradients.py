"""Truncation, gradient profile and the online gradient against full back-propagation and closed forms."""

import math
import warnings
from itertools import pairwise

import pytest
import torch
from torch import nn

from etude.data.randomness import stream
from etude.layers import (
    RecurrentLM,
    apply_masks,
    gradient_profile,
    make_rnn,
    norm_preserving_penalty,
    rtrl,
    slope_error,
    tbptt,
)


def x(batch=3, time=12, width=4, seed=0, dtype=torch.float32):
    return torch.randn(batch, time, width, generator=stream(seed, "x"), dtype=dtype)


def grads(model):
    return {k: p.grad.clone() for k, p in model.named_parameters()}


def mean_square(y, steps):
    return y.pow(2).sum()


class TestTruncation:
    @pytest.mark.parametrize("cell", ["elman", "lstm", "gru", "jordan", "outer_product"])
    def test_full_window_is_full_backpropagation(self, cell):
        model = make_rnn(cell, 4, 6, generator=stream(0, cell))
        model(x())[0].pow(2).sum().backward()
        want = grads(model)
        model.zero_grad()
        (only,) = tbptt(model, x(), k1=12, k2=12, loss_fn=mean_square)
        only.loss.backward()
        for name, g in grads(model).items():
            assert torch.allclose(g, want[name], atol=1e-5), name

    def test_k2_of_everything_sums_to_the_full_gradient(self):
        """With k2 >= T each window reaches back to the start, so their gradients add up to the whole."""
        model = make_rnn("gru", 4, 6, generator=stream(1, "g"))
        model(x())[0].pow(2).sum().backward()
        want = grads(model)
        model.zero_grad()
        for window in tbptt(model, x(), k1=3, k2=12, loss_fn=mean_square):
            window.loss.backward()
            assert window.back_to == 0
        for name, g in grads(model).items():
            assert torch.allclose(g, want[name], atol=1e-4), name

    @pytest.mark.parametrize(("k1", "k2"), [(1, 1), (4, 4), (2, 5), (5, 7), (5, 12), (20, 30)])
    def test_windows_tile_time_and_reach_back_k2(self, k1, k2):
        model = make_rnn("elman", 4, 6, generator=stream(2, "e"))
        inputs = x().requires_grad_(True)
        whole = model(inputs)[0]
        windows, pieces = [], []
        for window in tbptt(model, inputs, k1, k2, loss_fn=mean_square):
            (g,) = torch.autograd.grad(window.loss, inputs, retain_graph=True)
            touched = g.abs().sum((0, 2)).nonzero().flatten().tolist()
            assert touched == list(range(max(0, window.stop - k2), window.stop)) or window.stop == 12
            assert touched[0] == window.back_to and touched[-1] == window.stop - 1
            assert window.stop - window.back_to <= k2
            windows.append((window.start, window.stop))
            pieces.append(window.y)
        assert windows[0][0] == 0 and windows[-1][1] == 12
        assert all(a[1] == b[0] for a, b in pairwise(windows))
        assert torch.allclose(torch.cat(pieces, dim=1), whole, atol=1e-6)

    def test_weights_may_change_between_windows(self):
        model = make_rnn("lstm", 4, 6, generator=stream(6, "l"))
        optimizer = torch.optim.SGD(model.parameters(), 1.0)
        losses = []
        for _ in range(10):
            for window in tbptt(model, x(), k1=4, k2=8, loss_fn=lambda y, steps: (y - 0.5).pow(2).mean()):
                optimizer.zero_grad()
                window.loss.backward()
                assert window.clip(1.0) >= 0
                optimizer.step()
                losses.append(float(window.loss.detach()))
        assert sum(losses[-3:]) < 0.9 * sum(losses[:3])

    def test_clip_reports_the_norm_before(self):
        model = make_rnn("elman", 4, 6)
        (window,) = tbptt(model, 50 * x(), k1=12, k2=12, loss_fn=lambda y, steps: 1e3 * y.pow(2).sum())
        window.loss.backward()
        before = math.sqrt(sum(float(p.grad.pow(2).sum()) for p in model.parameters()))
        assert window.clip(1.0) == pytest.approx(before, rel=1e-4) and before > 1
        after = math.sqrt(sum(float(p.grad.pow(2).sum()) for p in model.parameters()))
        assert after == pytest.approx(1.0, rel=1e-3)

    def test_exploded_gradient_is_an_error(self):
        model = make_rnn("elman", 4, 6)
        (window,) = tbptt(model, x(), k1=12, k2=12, loss_fn=mean_square)
        window.loss.backward()
        model.weight_hh_l0.grad[0, 0] = math.nan
        with pytest.raises(ValueError, match="gradient norm"):
            window.clip(1.0)

    @pytest.mark.parametrize(("k1", "k2"), [(4, 3), (0, 3), (-1, 2)])
    def test_bad_windows(self, k1, k2):
        with pytest.raises(ValueError, match="k1"):
            tbptt(make_rnn("elman", 4, 6), x(), k1=k1, k2=k2, loss_fn=mean_square)

    @pytest.mark.parametrize("bad", [math.nan, math.inf])
    def test_diverged_loss_is_named(self, bad):
        with pytest.raises(ValueError, match=r"steps 4\.\.8"):
            for _ in tbptt(make_rnn("elman", 4, 6), x(), 4, 4,
                           loss_fn=lambda y, steps: y.sum() * (bad if steps.start == 4 else 1)):  # fmt: skip
                pass

    def test_without_loss_a_stand_in_and_a_warning(self):
        model = make_rnn("lstm", input_size=4, hidden_size=6, num_layers=2)
        with pytest.warns(UserWarning, match="loss_fn"):
            windows = tbptt(model, x(), k1=4, k2=8)
        for window in windows:
            window.loss.backward()
        assert all(float(p.grad.abs().sum()) > 0 for p in model.parameters())

    def test_language_model_brings_its_loss(self):
        lm = RecurrentLM(make_rnn("gru", 5, 6), vocab_size=7)
        ids = torch.randint(7, (3, 12), generator=stream(0, "ids"))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            windows = list(tbptt(lm, ids, k1=5, k2=5))
        counts = [5, 5, 1]  # the last symbol predicts nothing
        total = sum(w.loss.item() * c for w, c in zip(windows, counts, strict=True)) / 11
        assert total == pytest.approx(lm(ids).loss.item(), abs=1e-5)
        (last,) = list(tbptt(lm, ids[:, :1], k1=1, k2=1))
        assert last.loss.item() == 0.0


class TestProfile:
    def test_linear_cell_is_the_power_of_its_matrix(self):
        model = make_rnn("elman", 4, 6, activation="linear", init=0.9, generator=stream(0, "l")).double()
        profile = gradient_profile(model, x(2, 15, dtype=torch.float64))
        for t in range(15):
            power = torch.linalg.matrix_power(model.weight_hh_l0.detach(), 14 - t)
            assert float(profile.norms[t]) == pytest.approx(float(torch.linalg.matrix_norm(power, ord=2)), rel=1e-6)
        assert profile.lags.tolist() == list(range(14, -1, -1)) and float(profile.norms[-1]) == pytest.approx(1.0)
        assert profile.spectral_radius == pytest.approx(0.9, abs=1e-5)

    @pytest.mark.parametrize(("radius", "word"), [(0.8, "vanishing"), (1.0, "kept"), (1.1, "exploding")])
    def test_slope_is_the_log_radius_for_an_orthogonal_matrix(self, radius, word):
        model = make_rnn("elman", 4, 6, activation="linear", init="orthogonal")
        model.weight_hh_l0.data.mul_(radius)
        profile = gradient_profile(model, x(2, 30))
        assert profile.slope == pytest.approx(math.log(radius), abs=1e-4)
        assert profile.verdict.startswith(word)

    def test_shuffled_lags_have_no_slope(self):
        model = make_rnn("elman", 4, 6, activation="linear", init="orthogonal")
        model.weight_hh_l0.data.mul_(0.8)
        order = torch.randperm(60, generator=stream(0, "lags"))
        assert abs(gradient_profile(model, x(1, 60), lags=order).slope) < 0.6 * -math.log(0.8)

    @pytest.mark.parametrize("cell", ["elman", "lstm", "gru", "lstm97", "jordan", "outer_product"])
    def test_first_norm_is_one_and_matches_a_jacobian(self, cell):
        model = make_rnn(cell, 4, 3, generator=stream(3, cell)).double()
        inputs = x(1, 5, dtype=torch.float64)
        profile = gradient_profile(model, inputs)
        assert float(profile.norms[-1]) == pytest.approx(1.0, abs=1e-6)
        assert math.isfinite(profile.spectral_radius) and profile.spectral_radius > 0
        _, state = model(inputs[:, :2])
        parts = state if isinstance(state, tuple) else (state,)

        def last(*parts):
            end = model(inputs[:, 2:], parts if len(parts) > 1 else parts[0])[1]
            return (end[0] if isinstance(end, tuple) else end)[0, 0]

        jacobian = torch.autograd.functional.jacobian(last, parts)
        joined = torch.cat([j.reshape(3, -1) for j in jacobian], dim=1)
        assert float(profile.norms[1]) == pytest.approx(float(torch.linalg.matrix_norm(joined, ord=2)), rel=1e-6)

    def test_gated_cells_keep_what_a_tanh_cell_loses(self):
        inputs = x(4, 40)
        tanh = gradient_profile(make_rnn("elman", 4, 16, generator=stream(4, "t")), inputs)
        lstm97 = gradient_profile(make_rnn("lstm97", 4, 16, generator=stream(4, "l")), inputs)
        assert float(tanh.norms[0]) < 1e-3 < 0.05 < float(lstm97.norms[0])

    @pytest.mark.parametrize("cell", ["elman", "lstm", "outer_product"])
    def test_stacked_nets_count_the_whole_state(self, cell):
        model = make_rnn(cell, 4, 3, num_layers=2, generator=stream(5, cell)).double()
        inputs = x(2, 6, dtype=torch.float64)
        profile = gradient_profile(model, inputs)
        assert profile.norms.shape == (6,) and float(profile.norms[-1]) == pytest.approx(1.0)
        _, state = model(inputs[:1, :3])
        parts = state if isinstance(state, tuple) else (state,)

        def top(*parts):
            end = model(inputs[:1, 3:], parts if len(parts) > 1 else parts[0])[1]
            return (end[0] if isinstance(end, tuple) else end)[-1, 0]

        jacobian = torch.autograd.functional.jacobian(top, parts)
        joined = torch.cat([j.reshape(3, -1) for j in jacobian], dim=1)
        alone = gradient_profile(model, inputs[:1])
        assert float(alone.norms[2]) == pytest.approx(float(torch.linalg.matrix_norm(joined, ord=2)), rel=1e-6)
        assert math.isfinite(profile.spectral_radius)

    def test_training_mode_and_frozen_weights(self):
        model = make_rnn("lstm", 4, 6).eval()
        want = gradient_profile(model, x(2, 6)).norms
        assert not model.training
        for p in model.parameters():
            p.requires_grad_(False)
        assert torch.allclose(gradient_profile(model, x(2, 6)).norms, want)

    def test_dropout_is_left_out_and_kept_for_later(self):
        model = make_rnn("lstm", 4, 3, num_layers=2, dropout=0.5)
        a, b = (gradient_profile(model, x(2, 5)).norms for _ in range(2))
        assert torch.equal(a, b) and model.dropout == 0.5

    def test_bad_input(self):
        with pytest.raises(ValueError, match="direction"):
            gradient_profile(make_rnn("lstm", 4, 6, bidirectional=True), x())
        with pytest.raises(ValueError, match="two steps"):
            gradient_profile(make_rnn("lstm", 4, 6), x(time=1))


class TestOnlineGradient:
    @pytest.mark.parametrize("activation", ["tanh", "relu", "linear"])
    def test_equals_full_backpropagation(self, activation):
        model = make_rnn("elman", 4, 5, activation=activation, init=0.9, generator=stream(5, activation)).double()
        inputs = x(3, 8, dtype=torch.float64)

        def loss(h, t):
            return (t + 1) * (h - 0.3).pow(2).mean()

        y, _ = model(inputs)
        sum(loss(y[:, t], t) for t in range(8)).backward()
        online = rtrl(model, inputs, loss)
        assert set(online) == {name for name, _ in model.named_parameters()}
        for name, p in model.named_parameters():
            assert torch.allclose(online[name], p.grad, atol=1e-10), name

    def test_torch_cells_and_a_loss_of_the_state_alone(self):
        model = nn.RNNCell(4, 5).double()
        inputs = x(2, 6, dtype=torch.float64)
        h = torch.zeros(2, 5, dtype=torch.float64)
        total = 0.0
        for t in range(6):
            h = model(inputs[:, t], h)
            total = total + h.pow(2).sum()
        total.backward()
        for name, g in rtrl(model, inputs, lambda h: h.pow(2).sum()).items():
            assert torch.allclose(g, model.get_parameter(name).grad, atol=1e-10), name

    def test_first_state_and_a_loss_at_the_end_only(self):
        model = nn.RNN(4, 5, batch_first=True, bias=False).double()
        inputs, start = x(2, 6, dtype=torch.float64), x(1, 2, 5, seed=3, dtype=torch.float64)
        model(inputs, start)[0][:, -1].sum().backward()
        online = rtrl(model, inputs, lambda h, t: h.sum() if t == 5 else torch.zeros(()), state=start)
        for name, g in online.items():
            assert torch.allclose(g, model.get_parameter(name).grad, atol=1e-10), name

    def test_bad_input(self):
        with pytest.raises(ValueError, match="Elman"):
            rtrl(make_rnn("lstm", 4, 6), x(), lambda h: h.sum())
        with pytest.raises(ValueError, match="one layer"):
            rtrl(make_rnn("elman", 4, 6, num_layers=2), x(), lambda h: h.sum())
        with pytest.raises(ValueError, match="shape"):
            rtrl(make_rnn("elman", 4, 6), x(width=5), lambda h: h.sum())


class TestSlopeError:
    def test_linear_cells_follow_their_radius_and_shuffled_lags_do_not(self):
        assert slope_error((0.8, 1.1), 8, 60, stream(0, "s")) < 0.1
        assert slope_error((0.8, 1.1), 8, 60, stream(0, "s"), shuffled=True) > 0.3

    @pytest.mark.parametrize("radii", [(), (1.0,), (0.0, 0.5)])
    def test_radii_without_a_slope(self, radii):
        with pytest.raises(ValueError, match="radii"):
            slope_error(radii, 4, 20, stream(0, "s"))


class TestNormPreservingPenalty:
    def test_zero_for_an_orthogonal_net_whose_units_are_all_on(self):
        model = make_rnn("elman", 4, 6, activation="relu", init="orthogonal")
        model.weight_hh_l0.data.copy_(torch.eye(6))
        model.bias_ih_l0.data.fill_(100.0)  # every unit stays on, so D is the identity
        assert norm_preserving_penalty(model, x(), lambda y: y[:, -1].sum()).item() == pytest.approx(0, abs=1e-8)
        model.weight_hh_l0.data.mul_(0.5)
        assert norm_preserving_penalty(model, x(), lambda y: y[:, -1].sum()).item() == pytest.approx(0.25, abs=1e-6)

    def test_descending_it_stops_the_vanishing(self):
        model = make_rnn("elman", 4, 8, init=0.5, generator=stream(7, "e"))
        inputs = 0.1 * x(4, 15)
        before = gradient_profile(model, inputs).slope
        optimizer = torch.optim.Adam([model.weight_hh_l0], 0.03)
        for _ in range(40):
            optimizer.zero_grad()
            norm_preserving_penalty(model, inputs, lambda y: y[:, -1].sum()).backward()
            optimizer.step()
        after = gradient_profile(model, inputs).slope
        assert before < -0.5 and after > before / 3

    def test_bad_input(self):
        with pytest.raises(ValueError, match="Elman"):
            norm_preserving_penalty(make_rnn("lstm", 4, 6), x(), lambda y: y.sum())
        with pytest.raises(ValueError, match="two steps"):
            norm_preserving_penalty(make_rnn("elman", 4, 6), x(time=1), lambda y: y.sum())


def test_profiles_far_beyond_the_range_of_floats():
    x = torch.randn(1, 200, 2, generator=stream(0, "x"))
    grows = gradient_profile(make_rnn("elman", 2, 3, init=3.0, activation="linear", generator=stream(0, "i")), x)
    assert grows.slope == pytest.approx(math.log(3), rel=1e-3)
    assert grows.verdict.startswith("exploding")
    x = torch.zeros(1, 400, 2)
    shrinks = gradient_profile(make_rnn("elman", 2, 3, init=0.5, activation="linear", generator=stream(0, "i")), x)
    assert shrinks.slope == pytest.approx(math.log(0.5), rel=1e-3)
    assert shrinks.verdict.startswith("vanishing: the gradient shrinks by a factor 0.500")


def test_profiles_in_double_precision_keep_their_range():
    rnn = make_rnn("elman", 2, 3, init=3.0, activation="linear", generator=stream(0, "i")).double()
    profile = gradient_profile(rnn, torch.zeros(1, 200, 2, dtype=torch.float64))
    power = torch.linalg.matrix_power(rnn.weight_hh_l0.detach(), 199)
    torch.testing.assert_close(profile.norms[0], torch.linalg.matrix_norm(power, ord=2), rtol=1e-9, atol=0)


def test_truncation_needs_one_direction():
    with pytest.raises(ValueError, match="one direction"):
        next(iter(tbptt(make_rnn("lstm", 2, 3, bidirectional=True), torch.zeros(1, 6, 2), 2, 4)))


@pytest.mark.parametrize(
    "call",
    [
        lambda rnn: tbptt(rnn, x(), 4, 4, loss_fn=mean_square),
        lambda rnn: gradient_profile(rnn, x()),
        lambda rnn: norm_preserving_penalty(rnn, x(), torch.sum),
    ],
)
def test_time_first_modules_are_refused(call):
    with pytest.raises(ValueError, match="batch_first=True"):
        call(nn.RNN(4, 6))


@pytest.mark.parametrize("call", [gradient_profile, lambda rnn, x: rtrl(rnn, x, torch.sum)])
def test_inference_mode_is_refused_and_no_grad_is_not(call):
    model = make_rnn("elman", 4, 6)
    with torch.inference_mode(), pytest.raises(RuntimeError, match="no_grad"):
        call(model, x())
    with torch.no_grad():
        call(model, x())


def test_a_pruned_net_has_profiles_and_penalties_of_its_masked_weights():
    pruned, plain = (make_rnn("elman", 4, 6, generator=stream(0, "p")) for _ in range(2))
    apply_masks(pruned, {"weight_hh_l0": torch.eye(6)})
    with torch.no_grad():
        plain.weight_hh_l0 *= torch.eye(6)
    assert gradient_profile(pruned, x()).spectral_radius == gradient_profile(plain, x()).spectral_radius
    a, b = (norm_preserving_penalty(rnn, x(), torch.sum) for rnn in (pruned, plain))
    torch.testing.assert_close(a, b)
    with pytest.raises(ValueError, match="make_permanent"):
        rtrl(pruned, x(), torch.sum)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda rnn: tbptt(rnn, x(), 2.5, 4, loss_fn=mean_square), "whole numbers"),
        (lambda rnn: next(tbptt(rnn, x(), 4, 4, loss_fn=lambda y, steps: y.sum(-1))), "one number"),
        (lambda rnn: gradient_profile(rnn, x(batch=0)), "a row and two steps"),
        (lambda rnn: gradient_profile(rnn, x() * math.nan), "NaN"),
    ],
)
def test_bad_input_says_what_is_wrong(call, text):
    with pytest.raises(ValueError, match=text):
        call(make_rnn("elman", 4, 6))


@pytest.mark.parametrize("loss", [torch.sum, torch.Tensor.sum, torch.mean])
def test_the_online_gradient_takes_losses_without_a_signature(loss):
    model = make_rnn("elman", 4, 6, generator=stream(0, "r"))
    want = rtrl(model, x(), lambda h: loss(h))
    assert all(torch.equal(g, want[name]) for name, g in rtrl(model, x(), loss).items())
