"""Recoding against autograd through the step, torch.nn without steps, the bound on the signal, and bad input."""

import copy
import itertools
import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from etude.layers import AnchoredEnsemble, Recoder, recoding
from etude.layers.recoding_signals import MeanDecoder, Surprisal

B, T, D, H, V = 3, 6, 5, 7, 11


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


def data(dtype=torch.float64):
    x = torch.randn(B, T, D, generator=gen(1), dtype=dtype)
    return x, torch.randint(V, (B, T), generator=gen(2))


def net(kind="lstm", num_layers=2, **options):
    torch.manual_seed(3)
    classes = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}
    rnn = classes[kind](D, H, num_layers, batch_first=True)
    return Recoder(rnn, nn.Linear(H, V), **options).double()


def one_step(rnn, kind, x_t, states):
    """States of all layers after a step, written with the fused cells of torch, keeping the graph."""
    new, below = [], x_t
    for layer, parts in enumerate(states):
        w = [getattr(rnn, f"{n}_l{layer}") for n in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
        if kind == "lstm":
            out = torch.lstm_cell(below, parts, *w)
        else:
            out = ({"gru": torch.gru_cell, "rnn": torch.rnn_tanh_cell}[kind](below, parts[0], *w),)
        new.append(tuple(out))
        below = out[0]
    return new


def loop(lm, kind, x, y, signal, alpha, top_only=False):
    """The method as its formula says, with autograd."""
    parts = 2 if kind == "lstm" else 1
    states = [tuple(x.new_zeros(B, H) for _ in range(parts)) for _ in range(lm.rnn.num_layers)]
    outputs, before = [], []
    for t in range(x.shape[1]):
        leaves = [tuple(p.detach().requires_grad_(True) for p in s) for s in states]
        new = one_step(lm.rnn, kind, x[:, t], leaves)
        logits = lm.decoder(new[-1][0])
        delta = signal(logits, None, y[:, t])
        flat = [p for s in new for p in s]
        grads = torch.autograd.grad(delta.sum(), flat, retain_graph=True, allow_unused=True)
        moved = [(p - alpha * (0 if g is None else g)).detach() for p, g in zip(flat, grads, strict=True)]
        if top_only:
            moved = [p.detach() for p in flat[:-parts]] + moved[-parts:]
        states = [tuple(moved[i : i + parts]) for i in range(0, len(moved), parts)]
        outputs.append(logits.detach())
        before.append(delta.detach())
    return torch.stack(outputs, 1), states, torch.stack(before, 1)


@pytest.mark.parametrize("kind", ["lstm", "gru", "rnn"])
@pytest.mark.parametrize("score", ["nll", "official"])
@pytest.mark.parametrize("layers", ["all", "top"])
def test_closed_form_equals_autograd_through_the_step(kind, score, layers):
    x, y = data()
    lm = net(kind, step_size=0.7, score=score, layers=layers)
    logits, state = lm(x, targets=y)
    want, states, before = loop(
        lm, kind, x, y, lambda o, s, t: recoding.surprisal(o, s, t, score=score), 0.7, layers == "top"
    )
    assert torch.allclose(logits, want, atol=1e-10)
    h = state[0] if kind == "lstm" else state
    assert torch.allclose(h, torch.stack([s[0] for s in states]), atol=1e-10)
    if kind == "lstm":
        assert torch.allclose(state[1], torch.stack([s[1] for s in states]), atol=1e-10)
    assert torch.allclose(lm.last_stats.delta_before, before, atol=1e-10)


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_a_callable_with_the_same_formula_gives_the_same_states(kind):
    x, y = data()
    closed, free = net(kind, step_size=0.5), net(kind, step_size=0.5)
    free = Recoder(free.rnn, free.decoder, lambda o, s, t: -o.log_softmax(-1)[torch.arange(B), t], step_size=0.5)
    (a, state_a), (b, state_b) = closed(x, targets=y), free(x, targets=y)
    assert torch.allclose(a, b, atol=1e-10)
    for p, q in zip(state_a, state_b, strict=True):
        assert torch.allclose(p, q, atol=1e-10)
    assert torch.allclose(closed.last_stats.delta_after, free.last_stats.delta_after, atol=1e-10)


def test_a_callable_may_read_every_layer_of_the_state():
    x, _ = data()
    lm = net(step_size=0.25)
    lm = Recoder(lm.rnn, lm.decoder, lambda o, s, t: s[1].square().sum((0, 2)) / 2, step_size=0.25)
    seen = lm(x[:, :1])[1]
    plain = lm.rnn(x[:, :1])[1]
    assert torch.allclose(seen[1][1], 0.75 * plain[1][1], atol=1e-12)  # the top cell: d/dc c^2 / 2 = c


def test_entropy_gradient_is_that_of_autograd_and_its_output_is_decoded_again():
    x, y = data()
    lm = net(signal=recoding.predictive_entropy(0.0, 1), step_size=0.9)

    def entropy(o: Tensor, s: object, t: Tensor | None) -> Tensor:
        return -(o.softmax(-1) * o.log_softmax(-1)).sum(-1)

    logits, state = lm(x)
    _, states, _ = loop(lm, "lstm", x, y, entropy, 0.9)
    assert torch.allclose(state[0], torch.stack([s[0] for s in states]), atol=1e-9)
    assert torch.allclose(logits[:, -1], lm.decoder(state[0][-1]), atol=1e-12)
    assert torch.allclose(lm.last_stats.delta_after[:, -1], entropy(logits[:, -1], None, None), atol=1e-12)


@pytest.mark.parametrize("which", ["mc", "ensemble", "both"])
def test_gradient_of_a_mean_prediction_is_that_of_autograd(which):
    torch.manual_seed(0)
    decoders = [nn.Linear(H, V).double() for _ in range(3)]
    signal = recoding.predictive_entropy(0.3, 4) if which != "ensemble" else recoding.ensemble_entropy(decoders)
    decoder = MeanDecoder(decoders) if which == "both" else decoders[0]
    hidden = torch.randn(B, H, dtype=torch.float64)
    with torch.no_grad():
        pulled = signal.pull(hidden, decoder, decoder(hidden), None, gen(4))
    leaf = hidden.clone().requires_grad_(True)
    value = signal.measure(leaf, decoder, pulled.kept)
    (grad,) = torch.autograd.grad(value.sum(), leaf)
    assert torch.allclose(pulled.delta, value, atol=1e-12)
    assert torch.allclose(pulled.grad, grad, atol=1e-12)


def test_a_decoder_of_several_layers_is_differentiated():
    x, y = data()
    lm = net(step_size=0.4)
    torch.manual_seed(5)
    lm.decoder = nn.Sequential(nn.Linear(H, 9), nn.Tanh(), nn.Linear(9, V)).double()
    logits, _ = lm(x, targets=y)
    want, _, _ = loop(lm, "lstm", x, y, recoding.surprisal, 0.4)
    assert torch.allclose(logits, want, atol=1e-10)


@pytest.mark.parametrize("kind", ["lstm", "gru", "rnn"])
def test_no_step_is_torch_itself(kind):
    x, y = data()
    lm = net(kind, step_size=1.0)
    lm.step_size = 0.0
    logits, _ = lm(x, targets=y)
    assert torch.equal(logits, lm.decoder(lm.rnn(x)[0]))
    assert lm.last_stats is None
    lm.step_size = 1e-13
    assert torch.allclose(lm(x, targets=y)[0], logits, atol=1e-10)  # our own loop, too


@pytest.mark.parametrize(("cell", "full"), [(nn.LSTMCell, nn.LSTM), (nn.GRUCell, nn.GRU), (nn.RNNCell, nn.RNN)])
def test_cells_equal_their_nets_with_and_without_a_step(cell, full):
    torch.manual_seed(0)
    x, y = data()
    decoder, single = nn.Linear(H, V).double(), cell(D, H).double()
    whole = full(D, H, batch_first=True).double()
    whole.load_state_dict({f"{k}_l0": v for k, v in single.state_dict().items()})
    for size in (0.0, 0.3):
        (a, s), (b, r) = (Recoder(m, decoder, step_size=size)(x, targets=y) for m in (single, whole))
        assert torch.allclose(a, b, atol=1e-12)
        for p, q in zip(s if isinstance(s, tuple) else (s,), r if isinstance(r, tuple) else (r,), strict=True):
            assert p.shape == (B, H) and torch.allclose(p, q[0], atol=1e-12)


def test_time_first_nets_and_nets_without_bias_read_batch_first():
    torch.manual_seed(0)
    x, y = data()
    lm = net(num_layers=1)
    other = nn.LSTM(D, H, bias=False).double()
    lm.rnn.load_state_dict(other.state_dict() | {k: torch.zeros(4 * H) for k in ("bias_ih_l0", "bias_hh_l0")})
    for size in (0.0, 0.5):
        lm.step_size = size
        twin = Recoder(other, lm.decoder, step_size=size)
        assert torch.allclose(lm(x, targets=y)[0], twin(x, targets=y)[0], atol=1e-12)


def test_windows_with_carried_state_equal_one_run_and_are_cut_from_their_history():
    x, y = data()
    lm = net(step_size=0.5)
    whole, _ = lm(x, targets=y)
    first, state = lm(x[:, :2], targets=y[:, :2])
    assert not any(s.requires_grad for s in state)
    second, _ = lm(x[:, 2:], state, targets=y[:, 2:])
    assert torch.allclose(torch.cat([first, second], 1), whole, atol=1e-12)
    first.sum().backward()
    second.sum().backward()
    assert all(s.requires_grad for s in lm(x, targets=y, detach_state=False)[1])


def test_works_without_gradients_and_refuses_inference_mode():
    x, y = data()
    lm = net(step_size=0.5)
    free = Recoder(lm.rnn, lm.decoder, lambda o, s, t: o.square().sum(-1), step_size=0.01)
    with torch.no_grad():
        moved = lm(x, targets=y)[1][0]
        assert not torch.equal(moved, lm.rnn(x)[1][0])
        assert bool((free(x)[0] != 0).all())
    with torch.inference_mode():
        with pytest.raises(RuntimeError, match="no_grad"):
            lm(x, targets=y)
        lm.step_size = 0.0
        lm(x, targets=y)


@pytest.mark.parametrize("signal", ["surprisal", "predictive_entropy", "ensemble_entropy"])
def test_small_steps_lower_the_signal_at_every_step(signal):
    x, y = data(torch.float32)
    torch.manual_seed(0)
    decoder = AnchoredEnsemble(H, V, 4) if signal == "ensemble_entropy" else nn.Linear(H, V)
    lm = Recoder(nn.LSTM(D, H, 2, batch_first=True), decoder, signal, step_size=0.05).double()
    lm(x.double(), targets=y, generator=gen())
    stats = lm.last_stats
    assert bool((stats.delta_after < stats.delta_before).all())
    assert stats.grad_norm.shape == (2, B, T) and bool((stats.grad_norm > 0).all())
    assert torch.allclose(stats.step_size, torch.full((2, 2), 0.05, dtype=torch.float64), atol=1e-12)
    fall = stats.delta_before - stats.delta_after
    top = stats.grad_norm[1].square()
    assert bool(
        (fall <= 0.05 * top * 1.1).all()
    )  # first order: alpha ||G||^2 of the only states that the decoder reads


def test_the_signal_falls_by_the_square_of_its_gradient_at_the_top():
    x, y = data()
    for kind, exact in (("gru", True), ("lstm", False)):
        lm = net(kind, 1, step_size=1e-4)
        lm(x, targets=y)
        stats = lm.last_stats
        share = (stats.delta_before - stats.delta_after) / (1e-4 * stats.grad_norm[0].square())
        if exact:  # h is the whole state
            assert torch.allclose(share, torch.ones_like(share), atol=1e-3)
        else:  # the norm counts what moves c, too, which this step's signal does not see
            assert bool(((share > 0) & (share < 1)).all())


def test_the_official_score_pushes_unlikely_tokens_down_and_nll_pushes_all_up():
    logits = torch.tensor([[0.0, 3.0, 0.0], [2.0, 0.0, 0.0]], dtype=torch.float64)
    y = torch.tensor([0, 0])  # p < 1/e in the first row, p > 1/e in the second
    moved = {}
    for score in ("nll", "official"):
        pulled = Surprisal(score).pull(logits, nn.Identity(), logits, y, None)
        moved[score] = (logits - 0.1 * pulled.grad).softmax(-1)[:, 0] - logits.softmax(-1)[:, 0]
    assert bool((moved["nll"] > 0).all())
    assert moved["official"][0] < 0 < moved["official"][1]


def test_scores_at_their_ends():
    def at(p: float, score: str) -> float:
        logits = torch.tensor([[p, 1 - p]], dtype=torch.float64).log()
        return float(recoding.surprisal(logits, None, torch.tensor([0]), score=score))

    assert at(0.0, "official") == pytest.approx(0, abs=1e-12) and at(1.0, "official") == 0
    assert at(1 / math.e, "official") == pytest.approx(math.exp(1 / math.e) - 1)
    assert at(0.5, "official") == pytest.approx(2**0.5 - 1)
    assert at(0.25, "nll") == pytest.approx(math.log(4))
    assert at(0.0, "nll") == math.inf
    logits = torch.tensor([[1.0, 2.0]])
    assert recoding.surprisal(logits, None, None) == recoding.surprisal(logits, None, torch.tensor([1]))


def test_gold_keeps_the_output_of_the_step_and_changes_later_ones():
    x, y = data()
    lm = net(step_size=1.0)
    other = y.clone()
    other[:, 2] = (y[:, 2] + 1) % V
    a, b = lm(x, targets=y)[0], lm(x, targets=other)[0]
    assert torch.equal(a[:, :3], b[:, :3])  # no output has seen its own target
    assert not torch.allclose(a[:, 3], b[:, 3])


def test_argmax_ignores_the_targets():
    x, y = data()
    lm = net(step_size=1.0, target="argmax")
    assert torch.equal(lm(x, targets=y)[0], lm(x)[0])
    best = lm(x)[0].argmax(-1)
    assert torch.allclose(net(step_size=1.0)(x, targets=best)[0], lm(x)[0], atol=1e-12)


def test_padding_is_not_recoded_and_rows_do_not_mix():
    x, y = data()
    lm = net(step_size=1.0)
    padded = y.clone()
    padded[1] = -100
    logits, _ = lm(x, targets=padded)
    plain = lm.decoder(lm.rnn(x)[0])
    assert torch.allclose(logits[1], plain[1], atol=1e-12)
    alone, _ = lm(x[:1], targets=y[:1])
    assert torch.allclose(logits[:1], alone, atol=1e-12)
    assert bool((lm.last_stats.delta_before == lm.last_stats.delta_before).all())


def test_chosen_steps_only():
    x, y = data()
    lm = net(step_size=1.0)
    chosen = torch.tensor([False, True, False, False, True, False])
    logits, _ = lm(x, targets=y, recode=chosen)
    stats = lm.last_stats
    assert stats.delta_before.isnan().any(0).tolist() == (~chosen).tolist()
    assert stats.grad_norm.isnan().all((0, 1)).tolist() == (~chosen).tolist()
    assert torch.allclose(logits[:, :2], lm.decoder(lm.rnn(x)[0])[:, :2], atol=1e-12)
    state = lm(x[:, :2], targets=y[:, :2], recode=chosen[:2])[1]
    assert torch.allclose(logits[:, 2:5], lm.decoder(lm.rnn(x[:, 2:5], state)[0]), atol=1e-12)
    lm(x, targets=y, recode=torch.zeros(T, dtype=torch.bool))
    assert lm.last_stats is None


def test_a_random_direction_has_the_same_length_and_does_not_help():
    x, y = data()
    x, y = x.repeat(40, 1, 1), torch.randint(V, (40 * B, T), generator=gen(9))
    lm = net(step_size=0.3)
    lm(x[:, :1], targets=y[:, :1])
    length = lm.last_stats.grad_norm
    lm.direction = "random"
    lm(x[:, :1], targets=y[:, :1], generator=gen(0))
    stats = lm.last_stats
    assert torch.allclose(stats.grad_norm, length, atol=1e-10)
    assert 0.3 < (stats.delta_after < stats.delta_before).double().mean() < 0.7


@pytest.mark.parametrize("step", ["learned", "mlp"])
def test_learned_steps_start_at_the_step_size_train_and_are_saved(step):
    x, y = data()
    lm, fixed = net(step=step, step_size=0.5), net(step_size=0.5)
    logits, _ = lm(x, targets=y)
    assert torch.allclose(logits, fixed(x, targets=y)[0], atol=1e-6)
    F.cross_entropy(logits.flatten(0, 1), y.flatten()).backward()
    own = [p for n, p in lm.named_parameters() if n.startswith("steps.")]
    assert own and any(float(p.grad.abs().sum()) > 0 for p in own)
    with torch.no_grad():
        for p in own:
            p.add_(0.3)
    again = net(step=step, step_size=0.5)
    again.load_state_dict(lm.state_dict())
    assert torch.equal(again(x, targets=y)[0], lm(x, targets=y)[0])
    lm.step_size = 0.0
    assert torch.equal(lm(x, targets=y)[0], lm.decoder(lm.rnn(x)[0]))


def test_the_gradient_is_a_constant_in_training():
    """First order: the derivative of what follows goes through s - alpha G as if G were a number."""
    x, y = data()
    lm = net(num_layers=1, step_size=0.8)
    lm(x[:, :2], targets=y[:, :2])[0][:, 1].sum().backward()
    got = lm.rnn.weight_ih_l0.grad.clone()
    lm.zero_grad()
    h0 = x.new_zeros(B, H)
    first = one_step(lm.rnn, "lstm", x[:, 0], [(h0, h0)])
    delta = recoding.surprisal(lm.decoder(first[0][0]), None, y[:, 0])
    g = torch.autograd.grad(delta.sum(), first[0], retain_graph=True)
    moved = [tuple(s - 0.8 * d for s, d in zip(first[0], g, strict=True))]
    lm.decoder(one_step(lm.rnn, "lstm", x[:, 1], moved)[0][0]).sum().backward()
    assert torch.allclose(got, lm.rnn.weight_ih_l0.grad, atol=1e-10)


def test_dropout_acts_in_training_only_and_is_reproducible():
    x, _ = data()
    lm = net(step_size=0.2, dropout=0.5, signal=recoding.predictive_entropy(0.0))
    lm.rnn.dropout = 0.3
    a, b, c = (lm(x, generator=gen(s))[0] for s in (1, 1, 2))
    assert torch.equal(a, b) and not torch.equal(a, c)
    stats = lm.last_stats
    assert bool((stats.delta_after <= stats.delta_before + 1e-12).all())  # the same masks before and after
    lm.eval()
    assert torch.equal(lm(x, generator=gen(1))[0], lm(x, generator=gen(2))[0])


@pytest.mark.parametrize("step_size", [0.0, 0.2])
def test_dropout_between_layers_is_the_wrapped_nets_own(step_size):
    x, _ = data()
    lm = net(step_size=step_size, signal=recoding.predictive_entropy(0.0))
    lm.rnn.dropout = 0.5  # after the recoder was made

    def differs():
        return not torch.equal(lm(x, generator=gen(1))[0], lm(x, generator=gen(2))[0])

    assert differs()
    lm.rnn.eval()  # frozen inside a net that goes on training
    assert not differs()
    lm.eval()
    lm.rnn.train()
    assert differs()


def test_anchors_pull_their_decoders():
    ensemble = AnchoredEnsemble(4, 3, 5, data_noise=0.2, prior_scale=0.5, generator=gen())
    want = sum(
        (p - ensemble.get_buffer(f"anchor_{k}_{n}")).square().sum()
        for k, d in enumerate(ensemble.decoders)
        for n, p in d.named_parameters()
    )
    assert float(ensemble.penalty(10).detach()) == pytest.approx(float(0.4 / 10 * want.detach()), rel=1e-5)
    drawn = torch.cat([b.flatten() for n, b in AnchoredEnsemble(300, 50, 2, prior_scale=0.25).named_buffers()])
    assert float(drawn.var()) == pytest.approx(0.25, rel=0.05)
    h = torch.randn(2, 4)
    assert torch.allclose(ensemble(h), torch.stack([d(h) for d in ensemble.decoders]).mean(0))


def test_the_ensemble_brings_its_own_decoder():
    torch.manual_seed(0)
    heads = [nn.Linear(H, V) for _ in range(3)]
    lm = Recoder(nn.GRU(D, H, batch_first=True), signal=recoding.ensemble_entropy(heads), step_size=0.1)
    logits, state = lm(torch.randn(B, T, D))
    assert torch.allclose(logits[:, -1], torch.stack([h(state[0]) for h in heads]).mean(0), atol=1e-6)
    assert len(list(lm.parameters())) == 4 + 6


def test_saturation_is_reported():
    x, _ = data()
    lm = net(signal=recoding.predictive_entropy(0.0), step_size=0.01)
    lm(x)
    assert float(lm.last_stats.saturation.max()) == 0.0
    lm.step_size = 1e4
    lm(x)
    assert float(lm.last_stats.saturation.min()) > 0.5


def test_a_sure_prediction_has_an_entropy_in_half_precision_too():
    lm = net(signal=recoding.predictive_entropy(0.0))
    with torch.no_grad():
        lm.decoder.weight.mul_(100)  # probabilities that half precision rounds to 0
    x, _ = data()
    lm.half()(x.half())
    assert bool(lm.last_stats.delta_before.isfinite().all()) and bool((lm.last_stats.grad_norm > 0).any())


def test_nan_gradients_do_not_reach_the_state():
    x, _ = data()
    lm = net()
    lm = Recoder(lm.rnn, lm.decoder, lambda o, s, t: (o * 0).sum(-1).sqrt(), step_size=1.0)
    assert bool(lm(x)[0].isfinite().all())


def test_embeds_ids_and_copies():
    torch.manual_seed(0)
    ids = torch.randint(V, (B, T))
    lm = Recoder(nn.LSTM(D, H, batch_first=True), nn.Linear(H, V), embedding=nn.Embedding(V, D), step_size=0.5)
    twin = copy.deepcopy(lm)
    assert torch.equal(lm(ids, targets=ids)[0], twin(ids, targets=ids)[0])
    with torch.no_grad():
        twin.rnn.weight_hh_l0.zero_()
    assert not torch.equal(lm(ids, targets=ids)[0], twin(ids, targets=ids)[0])


def test_bad_input():
    x, y = data()
    lm = net()
    for size in (-0.1, math.nan, math.inf):
        with pytest.raises(ValueError, match="step_size"):
            lm.step_size = size
        with pytest.raises(ValueError, match="step_size"):
            net(step_size=size)
    with pytest.raises(ValueError, match="needs targets"):
        net(target="gold")(x)
    with pytest.raises(ValueError, match="leaks"):
        net(target="gold", redecode=True)
    with pytest.raises(ValueError, match="leaks"):
        net(redecode=True)(x, targets=y)
    net(redecode=True)(x)  # the net's own guess is no leak
    for name, value in itertools.chain(
        [("signal", "loudness"), ("signal", 3), ("step", "free"), ("score", "brier"), ("target", "silver")],
        [("layers", "bottom"), ("direction", "up"), ("dropout", 1.0), ("signal", "ensemble_entropy")],
    ):
        with pytest.raises(ValueError):
            net(**{name: value})
    for wrong in (y[:, :2], y.double(), y[:1]):
        with pytest.raises(ValueError, match="targets"):
            lm(x, targets=wrong)
    with pytest.raises(ValueError, match="batch, time, input"):
        lm(x[0], targets=y)
    with pytest.raises(ValueError, match="state"):
        lm(x, torch.zeros(2, B, H), y)
    with pytest.raises(ValueError, match="directions"):
        Recoder(nn.LSTM(D, H, bidirectional=True), nn.Linear(2 * H, V))
    with pytest.raises(ValueError, match="nn.LSTM"):
        Recoder(nn.Linear(D, H), nn.Linear(H, V))
    with pytest.raises(ValueError, match="decoder"):
        Recoder(nn.LSTM(D, H))
    with pytest.raises(ValueError, match="at least 2"):
        recoding.ensemble_entropy([nn.Linear(H, V)])
    for rate, samples in ((1.0, 2), (-0.1, 2), (0.2, 0)):
        with pytest.raises(ValueError):
            recoding.predictive_entropy(rate, samples)
    with pytest.raises(ValueError):
        AnchoredEnsemble(H, V, 1)


@pytest.mark.parametrize("wrong", [-1, -99, V])
def test_a_target_is_a_token_or_padding(wrong):
    x, y = data()
    y[1, 4], y[2, 0] = wrong, -100
    with pytest.raises(ValueError, match=rf"targets\[1, 4\] is {wrong}, not in 0\.\.{V - 1}.*-100"):
        net()(x, targets=y)


@pytest.mark.parametrize("steps", [1, T - 1, T + 1])
def test_a_mask_of_steps_has_their_number(steps):
    x, y = data()
    with pytest.raises(ValueError, match=rf"recode must have shape \({T},\)"):
        net()(x, targets=y, recode=torch.ones(steps, dtype=torch.bool))


def test_a_batch_of_no_rows_has_no_rows_of_everything():
    x, y = data()
    lm = net()
    logits, (h, _) = lm(x[:0], targets=y[:0])
    assert logits.shape == (0, T, V) and h.shape == (2, 0, H) and lm.last_stats.delta_after.shape == (0, T)


@pytest.mark.parametrize(
    "signal",
    [
        lambda o, s, t: o.sum(),
        lambda o, s, t: o.sum(-1, keepdim=True),
        lambda o, s, t: 3.0,
        lambda o, s, t: o.argmax(-1).double(),
        lambda o, s, t: o.detach().sum(-1),
    ],
)
def test_signals_of_a_wrong_kind_say_what_is_expected(signal):
    x, _ = data()
    lm = net()
    with pytest.raises(ValueError, match=r"\(B,\)"):
        Recoder(lm.rnn, lm.decoder, signal)(x)


@pytest.mark.parametrize("kind", ["lstm", "gru"])
@pytest.mark.parametrize("signal", ["surprisal", "predictive_entropy"])
def test_works_under_autocast(kind, signal):
    x, y = data(torch.float32)
    lm = net(kind, signal=signal).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        lm(x, targets=y)
    assert lm.last_stats.delta_after.isfinite().all()


def test_a_net_without_steps_drops_out_by_its_generator_between_layers_too():
    x, _ = data(torch.float32)
    lm = Recoder(nn.LSTM(D, H, 2, batch_first=True, dropout=0.5), nn.Linear(H, V), step_size=0.0)
    state = torch.get_rng_state()
    one, two = (lm(x, generator=gen(5))[0] for _ in range(2))
    assert torch.equal(one, two) and torch.equal(state, torch.get_rng_state())


def test_an_anchored_ensemble_is_its_generators():
    state = torch.get_rng_state()
    one, two = (AnchoredEnsemble(4, 5, 3, generator=torch.Generator().manual_seed(7)) for _ in range(2))
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))
