"""Recurrent modules: parity with torch, lengths, directions, states, initialisation, refusals."""

import pickle

import pytest
import torch
from torch import nn

from etude.data.randomness import stream
from etude.layers import TimeWindow, make_rnn, spectral_radius
from etude.layers.recurrent import initialize

KINDS = {
    "elman": {},
    "elman relu": {"activation": "relu"},
    "elman linear": {"activation": "linear", "init": 0.5},
    "jordan": {},
    "jordan out": {"output_size": 3, "output_activation": "softmax"},
    "lstm97": {},
    "lstm": {},
    "lstm peephole": {"peephole": True},
    "lstm no forget": {"forget_gate": False, "peephole": True},
    "gru": {},
    "outer_product": {},
    "outer_product heads": {"num_heads": 2},
    "memory": {"slots": 5},
}


def rnn(kind, **options):
    return make_rnn(kind.split()[0], 4, 6, generator=stream(0, kind), **(KINDS[kind] | options))


def x(batch=3, time=7, seed=0):
    return torch.randn(batch, time, 4, generator=stream(seed, "x"))


def width(kind):
    return {"jordan out": 3, "memory": 12}.get(kind, 6)


def parts(state):
    return state if isinstance(state, tuple) else (state,)


class TestInterface:
    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize(("layers", "both"), [(1, False), (2, True)])
    def test_shapes_as_torch(self, kind, layers, both):
        y, state = rnn(kind, num_layers=layers, bidirectional=both)(x())
        directions = 2 if both else 1
        assert y.shape == (3, 7, directions * width(kind))
        for part in parts(state):
            assert part.shape[:2] == (layers * directions, 3)

    @pytest.mark.parametrize("kind", KINDS)
    def test_state_carries_on(self, kind):
        model = rnn(kind, num_layers=2)
        whole, last = model(x())
        first, state = model(x()[:, :3])
        second, end = model(x()[:, 3:], state)
        assert torch.allclose(torch.cat([first, second], dim=1), whole, atol=1e-6)
        for a, b in zip(parts(end), parts(last), strict=True):
            assert torch.allclose(a, b, atol=1e-6)

    @pytest.mark.parametrize("kind", KINDS)
    def test_lengths_unsorted_equal_row_by_row(self, kind):
        model, lengths = rnn(kind, num_layers=2, bidirectional=True), [4, 7, 2]
        points = x()
        for row, n in enumerate(lengths):
            points[row, n:] = 1e3  # padding must touch nothing, the reverse state least of all
        y, state = model(points, None, torch.tensor(lengths))
        for row, n in enumerate(lengths):
            alone, its_state = model(points[row : row + 1, :n])
            assert torch.allclose(y[row, :n], alone[0], atol=1e-5)
            assert bool((y[row, n:] == 0).all())
            for a, b in zip(parts(state), parts(its_state), strict=True):
                assert torch.allclose(a[:, row], b[:, 0], atol=1e-5)

    @pytest.mark.parametrize("kind", KINDS)
    def test_no_step_sees_a_later_one_unless_bidirectional(self, kind):
        changed = x()
        changed[:, 4] += 1.0
        a, b = rnn(kind)(x())[0], rnn(kind)(changed)[0]
        assert torch.allclose(a[:, :4], b[:, :4], atol=1e-6) and not torch.allclose(a[:, 4:], b[:, 4:], atol=1e-3)
        a, b = (rnn(kind, bidirectional=True)(v)[0] for v in (x(), changed))
        assert not torch.allclose(a[:, :4], b[:, :4], atol=1e-3)

    @pytest.mark.parametrize("kind", KINDS)
    def test_every_parameter_gets_a_gradient(self, kind):
        model = rnn(kind, num_layers=2, bidirectional=True)
        (model(x())[0] * torch.arange(1.0, 2 * width(kind) + 1)).sum().backward()
        for name, p in model.named_parameters():
            assert p.grad is not None and bool(torch.isfinite(p.grad).all()), name
            assert float(p.grad.abs().sum()) > 0, name

    @pytest.mark.parametrize("kind", KINDS)
    def test_same_generator_same_weights(self, kind):
        a, b = (rnn(kind, num_layers=2) for _ in range(2))
        for p, q in zip(a.parameters(), b.parameters(), strict=True):
            assert torch.equal(p, q)


class TestParity:
    @pytest.mark.parametrize(("cell", "kind"), [("elman", nn.RNN), ("lstm", nn.LSTM), ("gru", nn.GRU)])
    def test_standard_cells_are_torch_modules(self, cell, kind):
        ours = make_rnn(cell, 4, 6, num_layers=2, bidirectional=True)
        theirs = kind(4, 6, num_layers=2, bidirectional=True, batch_first=True)
        assert isinstance(ours, kind)
        theirs.load_state_dict(ours.state_dict())
        for a, b in zip(ours(x())[0], theirs(x())[0], strict=True):
            assert torch.equal(a, b)

    def test_scanned_lstm_equals_torch_without_peepholes(self):
        ours = make_rnn("lstm", 4, 6, peephole=True, num_layers=2, bidirectional=True)
        for name, p in ours.named_parameters():
            if name.startswith("weight_ch"):
                p.data.zero_()
        theirs = nn.LSTM(4, 6, num_layers=2, bidirectional=True, batch_first=True)
        theirs.load_state_dict({k: v for k, v in ours.state_dict().items() if not k.startswith("weight_ch")})
        (y, state), (z, other) = ours(x()), theirs(x())
        assert torch.allclose(y, z, atol=1e-6)
        assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(state, other, strict=True))

    def test_lstm97_is_an_lstm_whose_forget_gate_is_one(self):
        ours = make_rnn("lstm97", 4, 6)
        theirs = nn.LSTM(4, 6, batch_first=True)
        for name, p in ours.named_parameters():
            i, g, o = p.data.chunk(3)
            forget = torch.full_like(i, 50.0) if name == "bias_ih_l0" else torch.zeros_like(i)
            theirs.get_parameter(name).data.copy_(torch.cat([i, forget, g, o]))
        assert torch.allclose(ours(x())[0], theirs(x())[0], atol=1e-6)
        assert make_rnn("lstm", 4, 6, forget_gate=False).weight_hh_l0.shape == (18, 6)

    def test_jordan_by_hand(self):
        model = rnn("jordan out")
        fed = torch.zeros(3, 3)
        for t in range(7):
            hidden = torch.tanh(x()[:, t] @ model.weight_ih_l0.T + fed @ model.weight_hh_l0.T
                                + model.bias_ih_l0 + model.bias_hh_l0)  # fmt: skip
            fed = (hidden @ model.weight_ho_l0.T + model.bias_ho_l0).softmax(-1)
            assert torch.allclose(model(x())[0][:, t], fed, atol=1e-6)

    def test_peepholes_see_the_cell(self):
        model = rnn("lstm peephole")
        one = x(1, 1)
        h, c = torch.zeros(1, 1, 6), torch.ones(1, 1, 6)
        z = one[:, 0] @ model.weight_ih_l0.T + model.bias_ih_l0 + model.bias_hh_l0
        i, f, g, o = z.chunk(4, -1)
        pi, pf, po = model.weight_ch_l0.chunk(3)
        new = torch.sigmoid(f + pf) * 1 + torch.sigmoid(i + pi) * torch.tanh(g)
        want = torch.sigmoid(o + po * new) * torch.tanh(new)
        assert torch.allclose(model(one, (h, c))[0][:, 0], want, atol=1e-6)

    def test_outer_product_by_hand(self):
        model = rnn("outer_product heads")
        read, memory = torch.zeros(3, 6), torch.zeros(3, 2, 3, 3)
        for t in range(7):
            z = x()[:, t] @ model.weight_ih_l0.T + read @ model.weight_hh_l0.T + model.bias_ih_l0 + model.bias_hh_l0
            q, k, v = (z[:, 6 * j : 6 * j + 6].view(3, 2, 3) for j in range(3))
            f, i, o = (torch.sigmoid(z[:, 18 + 2 * j : 20 + 2 * j]) for j in range(3))
            q, k = q / q.norm(dim=-1, keepdim=True), k / k.norm(dim=-1, keepdim=True)
            memory = f[..., None, None] * memory + i[..., None, None] * torch.einsum("bhi,bhj->bhij", v, k)
            read = (o[..., None] * torch.tanh(torch.einsum("bhij,bhj->bhi", memory, q))).reshape(3, 6)
        assert torch.allclose(model(x())[0][:, -1], read, atol=1e-5)

    def test_memory_by_hand(self):
        model = rnn("memory").double()
        rows, start = x().double(), model.memory.initial.detach()
        for b in range(3):
            h, read, c = (torch.zeros(6, dtype=torch.float64) for _ in range(3))
            memory, usage, looked = start.clone(), torch.zeros(5), torch.zeros(5, dtype=torch.float64)
            for t in range(7):
                z = model.weight_ih_l0 @ rows[b, t] + model.weight_hh_l0 @ torch.cat([h, read])
                i, f, g, o = (z + model.bias_ih_l0 + model.bias_hh_l0).chunk(4)
                c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
                h = torch.sigmoid(o) * torch.tanh(c)
                heads = model.weight_ho_l0 @ h + model.bias_ho_l0
                query, value, (gate, mix) = heads[:6], torch.tanh(heads[6:12]), torch.sigmoid(heads[12:])
                least = torch.zeros(5, dtype=torch.float64)
                least[int(usage.argmin())] = 1.0
                at = mix * looked + (1 - mix) * least
                for j in range(5):
                    memory[j] = (1 - at[j] * gate) * memory[j] + at[j] * gate * value
                cosines = [memory[j] @ query / memory[j].norm() / query.norm() for j in range(5)]
                looked = (torch.stack(cosines) / 0.1).softmax(0)
                read, usage = looked @ memory, 0.95 * usage + looked + at
                memory, usage = memory.detach(), usage.detach()
                assert torch.allclose(model(rows)[0][b, t], torch.cat([h, read]))

    def test_what_is_written_stays_and_is_learned_from(self):
        model = rnn("memory")
        assert torch.equal((model.bias_ih_l0 + model.bias_hh_l0)[6:12], torch.ones(6))
        y, _ = model(x())
        y[:, -1].sum().backward()
        assert all(bool((p.grad != 0).any()) for p in model.parameters())
        _, emptied = model(x()[:, :4])
        emptied = (*emptied[:2], torch.zeros_like(emptied[2]), *emptied[3:])
        assert not torch.allclose(model(x()[:, 4:], emptied)[0], y[:, 4:], atol=1e-4)


class TestInitialisation:
    @pytest.mark.parametrize("init", [None, "orthogonal", "identity", "uniform", 0.9])
    def test_forget_bias_sums_to_one(self, init):
        for options in ({}, {"peephole": True}):
            model = make_rnn("lstm", 4, 6, num_layers=2, bidirectional=True, init=init, **options)
            for suffix in ("l0", "l0_reverse", "l1", "l1_reverse"):
                both = model.get_parameter(f"bias_ih_{suffix}") + model.get_parameter(f"bias_hh_{suffix}")
                assert torch.allclose(both[6:12], torch.ones(6))
                assert not torch.allclose(both[:6], torch.ones(6))

    def test_recurrent_blocks(self):
        for block in make_rnn("gru", 4, 6, init="orthogonal").weight_hh_l0.split(6):
            assert torch.allclose(block @ block.T, torch.eye(6), atol=1e-5)
        assert torch.equal(make_rnn("elman", 4, 6, activation="relu", init="identity").weight_hh_l0, torch.eye(6))
        for block in make_rnn("lstm", 4, 6, init=0.7).weight_hh_l0.split(6):
            assert spectral_radius(block) == pytest.approx(0.7, abs=1e-4)
        assert float(make_rnn("gru", 4, 6, init="uniform").weight_ih_l0.abs().max()) <= 0.08

    def test_spectral_radius_closed_form(self):
        rotation = 1.5 * torch.tensor([[0.0, -1.0], [1.0, 0.0]])
        assert spectral_radius(rotation) == pytest.approx(1.5)
        with pytest.raises(ValueError, match="square"):
            spectral_radius(torch.ones(2, 3))


class TestDropout:
    @pytest.mark.parametrize("kind", ["lstm", "lstm peephole"])
    def test_between_layers_only(self, kind):
        one = rnn(kind, dropout=0.0).train()
        assert torch.equal(one(x())[0], one(x())[0])
        two = rnn(kind, num_layers=2, dropout=0.9).train()
        assert not torch.equal(two(x())[0], two(x())[0])
        assert torch.equal(two.eval()(x())[0], two(x())[0])

    def test_recurrent_path_is_never_cut(self):
        """With dropout near 1 the second layer gets no input, yet its own state still moves by its recurrence."""
        model = make_rnn("lstm", 4, 6, num_layers=2, dropout=0.999, peephole=True, generator=stream(1, "d")).train()
        first = model(x())[1][0][0]
        assert torch.equal(first, model(x())[1][0][0])  # the first layer sees no dropout at all


class TestTimeWindow:
    def test_sees_exactly_its_window(self):
        model = TimeWindow(4, 5, window=3)
        y, state = model(x())
        assert y.shape == (3, 7, 5) and state is None
        seen = [t for t in range(7) if not torch.equal(self._changed(model, t)[:, 5], y[:, 5])]
        assert seen == [3, 4, 5]

    @staticmethod
    def _changed(model, t):
        other = x()
        other[:, t] += 3.0
        return model(other)[0]

    def test_first_steps_see_zeros(self):
        model = TimeWindow(4, 5, window=3)
        padded = torch.cat([torch.zeros(3, 2, 4), x()], dim=1)
        assert torch.allclose(model(padded)[0][:, 2:], model(x())[0], atol=1e-6)

    def test_bad_sizes(self):
        with pytest.raises(ValueError, match="window"):
            TimeWindow(4, 5, window=0)


class TestRefusals:
    @pytest.mark.parametrize(
        ("cell", "options", "match"),
        [
            ("rnn", {}, "cell must be one of"),
            ("lstm", {"bidirectional": True, "causal": True}, "causal"),
            ("gru", {"peephole": True}, "peephole"),
            ("elman", {"forget_gate": False}, "forget_gate"),
            ("gru", {"activation": "relu"}, "activation"),
            ("elman", {"activation": "gelu"}, "activation"),
            ("elman", {"output_size": 3}, "output_size"),
            ("jordan", {"output_activation": "relu"}, "output_activation"),
            ("outer_product", {"num_heads": 4}, "num_heads"),
            ("gru", {"num_heads": 3}, "num_heads"),
            ("gru", {"slots": 3}, "slots"),
            ("memory", {"slots": 0}, "slots"),
            ("jordan", {"output_size": 0}, "output_size"),
            ("lstm", {"num_layers": 0}, "num_layers"),
            ("lstm", {"init": "xavier"}, "init"),
            ("elman", {"init": -1.0}, "spectral radius"),
            ("jordan", {"dropout": 1.5}, "dropout"),
        ],
    )
    def test_options(self, cell, options, match):
        with pytest.raises(ValueError, match=match):
            make_rnn(cell, 4, 6, **options)

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("lengths", [[0, 3, 7], [3, 8, 7], [3, 7], [2.9, 3.0, 7.0]])
    def test_lengths(self, kind, lengths):
        with pytest.raises(ValueError, match="length"):
            rnn(kind)(x(), None, torch.tensor(lengths))

    @pytest.mark.parametrize("kind", KINDS)
    def test_state_of_another_batch_is_refused_as_torch_does(self, kind):
        model = rnn(kind)
        _, state = model(x(2))
        with pytest.raises(RuntimeError, match="Expected hidden"):
            model(x(3), state)

    def test_input_width(self):
        with pytest.raises(ValueError, match="4"):
            rnn("jordan")(torch.randn(3, 7, 5))
        with pytest.raises(ValueError, match=r"time >= 1.*\(3, 0, 4\)"):
            rnn("jordan")(torch.randn(3, 0, 4))


@pytest.mark.parametrize("init", [None, "orthogonal", "uniform", 0.9])
def test_forget_biases_of_torchs_own_lstm_sum_to_one(init):
    lstm = initialize(nn.LSTM(3, 4, num_layers=2, bidirectional=True), init)
    for end in ("l0", "l1", "l0_reverse", "l1_reverse"):
        total = getattr(lstm, f"bias_ih_{end}") + getattr(lstm, f"bias_hh_{end}")
        assert torch.equal(total[4:8], torch.ones(4))


@pytest.mark.parametrize("kind", KINDS)
def test_every_cell_can_be_pickled(kind):
    model = rnn(kind)
    assert torch.equal(pickle.loads(pickle.dumps(model))(x())[0], model(x())[0])


@pytest.mark.parametrize("cell", ["elman", "lstm", "gru"])
@pytest.mark.parametrize("rows", [3, 6])
def test_a_state_of_another_batch_is_refused_with_lengths_too(cell, rows):
    rnn = make_rnn(cell, 3, 5)
    state = torch.zeros(1, rows, 5)
    with pytest.raises(RuntimeError, match=r"Expected hidden\[0\] size"):
        rnn(torch.zeros(4, 4, 3), (state, state) if cell == "lstm" else state, [1, 2, 3, 4])


@pytest.mark.parametrize(
    ("cell", "options"),
    [("elman", {"activation": "linear"}), ("jordan", {}), ("lstm97", {}), ("lstm", {"peephole": True}),
     ("outer_product", {}), ("memory", {}), ("lstm", {"peephole": True, "bidirectional": True, "num_layers": 2})],
)  # fmt: skip
def test_nan_in_the_padding_reaches_nothing(cell, options):
    rnn = make_rnn(cell, 3, 4, generator=stream(0, "init"), **options)
    x = torch.randn(2, 5, 3, generator=stream(0, "x"))
    spoiled = x.clone()
    spoiled[0, 2:] = torch.nan
    y, _ = rnn(spoiled, None, [2, 5])
    assert torch.equal(y, rnn(x, None, [2, 5])[0])
    y.sum().backward()
    assert all(p.grad.isfinite().all() for p in rnn.parameters())


@pytest.mark.parametrize("init", [float("nan"), float("inf"), -1.0])
def test_a_spectral_radius_is_a_finite_number(init):
    with pytest.raises(ValueError, match="finite"):
        make_rnn("lstm", 3, 4, init=init)


@pytest.mark.parametrize(
    ("cell", "options"),
    [("outer_product", {}), ("outer_product", {"num_heads": 3}), ("jordan", {"output_size": 2}), ("memory", {})],
)
def test_cells_without_square_blocks_have_no_spectral_radius(cell, options):
    with pytest.raises(ValueError, match="no square block"):
        make_rnn(cell, 3, 6, init=0.9, **options)
    make_rnn(cell, 3, 6, init="orthogonal", **options)
