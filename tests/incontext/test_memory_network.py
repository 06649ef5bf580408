"""The memory network with synthetic gradients: identities, leaks, missing labels, sessions, the targets of S."""

import math

import pytest
import torch
from torch import nn

from etude.incontext import FastSlowMemory, Feedback
from etude.incontext.synthetic_gradients import CONTROLLERS, Tape, cosines, synthetic_loss, true_gradients

B, T, D, C = 4, 6, 5, 3


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


def episode(task="classification", rows=B):
    x = torch.randn(rows, T, D, generator=gen(1))
    y = torch.randint(C, (rows, T), generator=gen(2)) if task == "classification" else x[..., 0].sin()
    return x, y


def net(task="classification", seed=0, **options):
    torch.manual_seed(seed)
    out = C if task == "classification" else 1
    return FastSlowMemory(D, out, 8, 6, hidden_size=10, task=task, **options)


def woken(made, scale=0.5):
    """With a feedback that says something."""
    with torch.no_grad():
        for n in made.feedback.nets.values():
            n[-1].weight.copy_(scale * torch.randn(n[-1].weight.shape, generator=gen(7)))
    return made


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_an_untrained_feedback_is_a_no_op(task):
    x, y = episode(task)
    fast, plain = net(task), net(task, feedback=None)
    plain.load_state_dict({k: v for k, v in fast.state_dict().items() if k in plain.state_dict()})
    a, b = fast(x, y), plain(x, y)
    assert torch.allclose(a.predictions, b.predictions, atol=1e-6)
    assert torch.allclose(a.memory, b.memory, atol=1e-6)
    assert float(a.fast_norm.max()) < 1e-5 and float(b.synthetic_loss) == 0
    assert not torch.allclose(woken(fast)(x, y).predictions[:, 1:], b.predictions[:, 1:])


@pytest.mark.parametrize("feedback", ["per_controller", "shared"])
@pytest.mark.parametrize("delay", [1, 2, 3])
def test_no_prediction_sees_its_own_label_or_a_later_one(feedback, delay):
    x, y = episode()
    made = woken(net(feedback=feedback))
    base = made(x, y, label_delay=delay).predictions
    other = y.clone()
    other[:, 2] = (y[:, 2] + 1) % C
    changed = made(x, other, label_delay=delay).predictions
    assert torch.equal(base[:, : 2 + delay], changed[:, : 2 + delay])
    assert not torch.allclose(base[:, 2 + delay], changed[:, 2 + delay])


def test_a_leak_must_be_allowed_and_is_one():
    x, y = episode()
    made = net()
    with pytest.raises(ValueError, match="allow_leak"):
        made(x, y, label_delay=0)
    other = (y + 1) % C
    leaked = [made(x, labels, label_delay=0, allow_leak=True).predictions[:, 0] for labels in (y, other)]
    assert not torch.allclose(*leaked)


def test_the_first_steps_equal_the_formulas():
    x, y = episode()
    made = woken(net(write="content"))
    out = made(x, y)
    M = made.cells.initial.expand(B, -1, -1)
    one_hot = nn.functional.one_hot(y, C).float()

    def controller(name, i, theta):
        layer = made.controllers[name].linear
        return layer(i) + torch.einsum("boi,bi->bo", theta[name], i)

    sizes = {"read": 6, "output": 10, "write": 6}
    theta = {n: torch.zeros(B, s, 10) for n, s in sizes.items()}
    previous = torch.zeros(B, C)
    for t in range(3):
        i_r = torch.relu(made.read_body(torch.cat([x[:, t], previous], -1)))
        q = controller("read", i_r, theta)
        cos = torch.nn.functional.cosine_similarity(q[:, None], M, dim=-1)
        a = (cos / 0.1).softmax(-1)
        r = (a[..., None] * M).sum(1)
        i_o = torch.relu(made.output_body(torch.cat([q, r], -1)))
        o = controller("output", i_o, theta)
        guess = made.head(o)
        assert torch.allclose(out.predictions[:, t], guess, atol=1e-5)
        assert torch.allclose(out.attention[:, t], a, atol=1e-5)
        label = one_hot[:, t]
        i_w = torch.relu(made.write_body(torch.cat([o, label], -1)))
        w = controller("write", i_w, theta)
        g = torch.sigmoid(made.gate(torch.cat([q, r, label], -1)))[:, :1]
        assert torch.allclose(out.gates[:, t], g[:, 0], atol=1e-5)
        M = M * (1 - (a * g)[..., None]) + (a * g)[..., None] * w[:, None]
        c = torch.cat([r, label, guess.softmax(-1) - label], -1)
        for j, (name, h, i) in enumerate((("read", q, i_r), ("output", o, i_o), ("write", w, i_w))):
            ghat = made.feedback.nets[name](torch.cat([h, c], -1))
            m = torch.sigmoid(made.modulators[name](torch.cat([h, c], -1)))
            theta[name] = theta[name] - made.rates[j] * m[..., None] * ghat[:, :, None] * i[:, None, :]
        previous = label
    assert made.rates.tolist() == pytest.approx([0.1] * 3)


@pytest.mark.parametrize("task", ["classification", "regression"])
@pytest.mark.parametrize("controller", ["mlp", "lstm"])
def test_a_session_says_what_the_episode_says(task, controller):
    x, y = episode(task)
    made = woken(net(task, controller=controller)).eval()
    out = made(x, y)
    session, saved = made.start(B), None
    for t in range(T):
        ahead = session.predict(x[:, t])
        assert torch.equal(session.predict(x[:, t]), ahead)  # asking changes nothing
        assert torch.allclose(session.observe(x[:, t], y[:, t]), ahead)
        assert torch.allclose(ahead, out.predictions[:, t], atol=1e-5)
        if t == 2:
            saved = session.state_dict()
    assert torch.allclose(session.state.memory, out.memory, atol=1e-5)
    again = made.start(B)
    again.load_state_dict(saved)
    assert torch.allclose(again.predict(x[:, 3]), out.predictions[:, 3], atol=1e-5)
    assert all(isinstance(t, torch.Tensor) for t in saved.values())


def test_missing_labels_are_neither_written_nor_learned_from():
    x, y = episode()
    made = woken(net())
    nothing = made(x)
    gone = made(x, torch.full_like(y, -1))
    assert nothing.loss is None and gone.loss is None
    assert torch.equal(nothing.predictions, gone.predictions)
    assert torch.equal(gone.memory, made.cells.initial.expand(B, -1, -1))
    assert float(gone.fast_norm.abs().max()) == 0 and float(gone.gates.abs().max()) == 0
    some = y.clone()
    some[0] = -1
    mixed, full = made(x, some), made(x, y)
    assert torch.allclose(mixed.predictions[0], nothing.predictions[0], atol=1e-6)
    assert torch.allclose(mixed.predictions[1:], full.predictions[1:], atol=1e-6)
    hole = y.clone()
    hole[:, 3] = -1
    late = made(x, hole)
    assert torch.allclose(late.predictions[:, :4], full.predictions[:, :4], atol=1e-6)
    assert float(late.gates[:, 3].abs().max()) == 0 and float(late.gates[:, 4].min()) > 0
    values = torch.full((B, T), math.nan)
    assert net("regression")(x, values).loss is None


def test_hidden_labels_count_in_the_loss_only():
    x, y = episode()
    made = woken(net())
    out = made(x, y, reveal=torch.zeros(B, T, dtype=torch.bool))
    assert torch.equal(out.predictions, made(x).predictions)
    want = nn.functional.cross_entropy(out.predictions.flatten(0, 1), y.flatten())
    assert float(out.loss.detach()) == pytest.approx(float(want.detach()), rel=1e-5)
    queries = torch.ones(B, T, dtype=torch.bool)
    queries[:, 4:] = False
    other = y.clone()
    other[:, 4:] = (y[:, 4:] + 1) % C
    a, b = (made(x, labels, reveal=queries).predictions for labels in (y, other))
    assert torch.equal(a, b)


def test_padding_by_mask_is_an_episode_cut_short():
    x, y = episode()
    made = woken(net())
    mask = torch.ones(B, T, dtype=torch.bool)
    mask[:, 4:] = False
    noisy = x.masked_fill(~mask[..., None], math.nan)
    padded, short = made(noisy, y, mask=mask), made(x[:, :4], y[:, :4])
    assert torch.allclose(padded.predictions[:, :4], short.predictions, atol=1e-6)
    assert torch.allclose(padded.memory, short.memory, atol=1e-6)
    assert float(padded.loss.detach()) == pytest.approx(float(short.loss.detach()), rel=1e-5)


def test_true_gradients_are_those_of_each_row_by_itself():
    x, y = episode("regression")
    made = woken(net("regression"))

    def gradients(rows):
        target, known = y[rows, :, None], torch.ones(len(x[rows]), T, dtype=torch.bool)
        predictions, _, tape, _ = made._episode(x[rows], target, known, 1, None)
        return true_gradients((predictions - target).square().sum(), tape), tape

    whole, tape = gradients(slice(None))
    alone, _ = gradients(slice(2, 3))
    for name in CONTROLLERS:
        assert len(whole[name]) == T
        for a, b in zip(whole[name], alone[name], strict=True):
            assert torch.allclose(a[2:3], b, atol=1e-4)
    assert float(whole["write"][-1].abs().max()) == 0  # nothing comes after the last write
    assert float(whole["write"][0].abs().max()) > 0
    assert len(tape.known) == T


def test_the_true_gradient_is_that_of_a_nudge():
    x, y = episode("regression", rows=1)
    made = woken(net("regression"))
    layer = made.controllers["output"].linear
    target = y[..., None]
    predictions, _, tape, _ = made._episode(x, target, torch.ones(1, T, dtype=torch.bool), 1, None)
    g = true_gradients((predictions - target).square().sum(), tape)["output"][-1][0]
    calls, eps = [], 1e-3

    def nudge(_m, _i, out):
        calls.append(1)
        return out + eps * direction if len(calls) == T else out

    losses = []
    for sign in (1.0, -1.0):
        direction, calls = sign * torch.eye(10)[3], []
        with layer.register_forward_hook(nudge), torch.no_grad():
            p, *_ = made._episode(x, target, torch.ones(1, T, dtype=torch.bool), 1, None)
        losses.append(float((p - target).square().sum()))
    assert (losses[0] - losses[1]) / (2 * eps) == pytest.approx(float(g[3]), rel=0.05, abs=1e-3)


def test_synthetic_loss_trains_only_the_feedback_and_falls():
    x, y = episode("regression")
    made = net("regression", meta=False)
    made(x, y).synthetic_loss.backward()
    assert {n.split(".")[0] for n, p in made.named_parameters() if p.grad is not None} == {"feedback"}
    optimizer = torch.optim.Adam(made.feedback.parameters(), lr=1e-2)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = made(x, y).synthetic_loss
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.7 * losses[0]
    assert float(net("regression", synthetic=False)(x, y).synthetic_loss) == 0
    with torch.no_grad():
        assert float(made(x, y).synthetic_loss) == 0


@pytest.mark.parametrize("meta", [True, False])
def test_the_loss_reaches_feedback_and_rates_only_with_meta(meta):
    x, y = episode()
    made = woken(net(meta=meta))
    made(x, y).loss.backward()
    reached = [n for n, p in made.named_parameters() if p.grad is not None and float(p.grad.abs().max()) > 0]
    for part in ("feedback", "raw_rates", "modulators"):
        assert any(n.startswith(part) for n in reached) is meta
    assert any(n.startswith("controllers.read") for n in reached)


def test_a_bootstrapped_target_adds_what_the_feedback_expects():
    x, y = episode("regression")
    plain, ahead = woken(net("regression")), woken(net("regression", bootstrap=True))
    made = {}
    for name, n in (("plain", plain), ("ahead", ahead)):
        target = y[..., None]
        predictions, _, tape, _ = n._episode(x, target, torch.ones(B, T, dtype=torch.bool), 1, None)
        made[name] = (n._gradients((predictions - target).square().sum(), tape), tape)
    want = ahead.feedback("write", made["ahead"][1].outputs["write"][-1], made["ahead"][1].contexts[-1])
    assert torch.allclose(made["ahead"][0]["write"][-1], want, atol=1e-5)
    assert float(made["plain"][0]["write"][-1].abs().max()) == 0


def test_cosine_of_a_perfect_feedback_is_one_and_of_its_opposite_minus_one():
    class Oracle(Feedback):
        sign = 1.0

        def forward(self, name, h, c, task_id=0, *, both=None):
            return self.sign * 3 * answers[name]

    answers = {n: torch.randn(2, 5, 4, generator=gen(3)) for n in CONTROLLERS}
    oracle = Oracle({n: 4 for n in CONTROLLERS}, 6, C)
    tape = Tape({n: list(answers[n]) for n in CONTROLLERS}, list(torch.randn(2, 5, 12)), [torch.ones(5) > 0] * 2)
    assert float(cosines(oracle, tape, answers)) == pytest.approx(1.0)
    oracle.sign = -1.0
    assert float(cosines(oracle, tape, answers)) == pytest.approx(-1.0)
    assert float(synthetic_loss(oracle, tape, answers)) > 0


@pytest.mark.parametrize("kind", ["per_controller", "shared"])
def test_a_feedback_may_serve_several_nets(kind):
    first = net(feedback=kind, num_tasks=2)
    torch.manual_seed(1)
    second = FastSlowMemory(D, 2, 8, 6, hidden_size=10, feedback=first.feedback, task_id=1)  # fewer outputs
    assert second.feedback is first.feedback
    x, y = episode()
    out = second(x, y.clamp_max(1))
    (out.loss + out.synthetic_loss).backward()
    assert any(p.grad is not None for p in first.feedback.parameters())
    for wrong in ({"output_size": C + 1, "width": 6}, {"output_size": 2, "width": 7}):
        with pytest.raises(ValueError, match="fit"):
            FastSlowMemory(D, slots=8, hidden_size=10, feedback=first.feedback, **wrong)


def test_fast_weights_stay_within_their_bound():
    x, y = episode("regression")
    made = woken(net("regression", max_fast_norm=0.3), 50.0)
    norms = made(x, 100 * y).fast_norm
    assert norms.shape == (B, 3) and float(norms.max()) <= 0.3 + 1e-5 and float(norms.max()) > 0.29


def test_the_state_goes_on_where_an_episode_ended():
    x, y = episode("regression")
    made = woken(net("regression"))
    first = made(x[:, :3], y[:, :3])
    session = made.start(B)
    for t in range(3):
        session.observe(x[:, t], y[:, t])
    for state in (first.state, session.state):
        again = made(x[:, 3:4], y[:, 3:4], state=state).predictions[:, 0]
        assert torch.allclose(again, session.predict(x[:, 3]), atol=1e-5)
    old = first.state._replace(previous=None)  # saved before there was such a field: nothing is fed
    session.state = session.state._replace(previous=torch.zeros(B, 1, 1))
    assert torch.allclose(made(x[:, 3:4], state=old).predictions[:, 0], session.predict(x[:, 3]), atol=1e-5)


@pytest.mark.parametrize("controller", ["mlp", "lstm"])
@pytest.mark.parametrize("delay", [0, 1, 2, 4])
@pytest.mark.parametrize("cuts", [(3,), (1, 2, 5)])
def test_an_episode_in_parts_is_the_whole(controller, delay, cuts):
    x, y = episode()
    y[1, 2] = -1
    made = woken(net(controller=controller))
    whole = made(x, y, delay, allow_leak=True)
    state, parts = None, []
    for a, b in zip((0, *cuts), (*cuts, T), strict=True):
        out = made(x[:, a:b], y[:, a:b], delay, allow_leak=True, state=state)
        state = out.state
        parts.append(out.predictions)
    assert torch.allclose(torch.cat(parts, 1), whole.predictions, atol=1e-6)
    assert torch.allclose(state.memory, whole.memory, atol=1e-6)
    assert [tuple(p.label.shape) for p in state.pending] == [(B, C)] * max(0, delay - 1)
    with torch.no_grad():
        start = made(x[:, :3], y[:, :3], 2).state
    out = made(x[:, 3:], y[:, 3:], 2, state=start)  # the first part has no graph
    (out.loss + out.synthetic_loss).backward()


@pytest.mark.parametrize("controller", ["mlp", "lstm"])
@pytest.mark.parametrize("part", [slice(0, 4), slice(2, 6)])
def test_padding_leaves_usage_and_cell_alone(controller, part):
    x, y = episode()
    made = woken(net(controller=controller))
    mask = torch.ones(B, T, dtype=torch.bool)
    mask[1] = False
    mask[1, part] = True
    padded, short = made(x, y, mask=mask), made(x[1:2, part], y[1:2, part])
    assert torch.allclose(padded.predictions[1:2, part], short.predictions, atol=1e-6)
    assert torch.allclose(padded.state.usage[1:2], short.state.usage, atol=1e-5)
    if controller == "lstm":
        assert torch.allclose(padded.state.cell[0][1:2], short.state.cell[0], atol=1e-6)


@pytest.mark.parametrize("controller", ["mlp", "lstm"])
@pytest.mark.parametrize("mode", ["autocast", torch.bfloat16, torch.float16])
def test_half_precision_says_about_the_same(controller, mode):
    x, y = episode()
    made = woken(net(controller=controller, max_fast_norm=0.2))
    want = made(x, y)
    dtype = torch.bfloat16 if mode == "autocast" else mode
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=mode == "autocast"):
        if mode != "autocast":
            made, x = made.to(dtype), x.to(dtype)
        out = made(x, y)
        (out.loss + out.synthetic_loss).backward()
        session = made.start(B)
        session.observe(x[:, 0], y[:, 0])
        ahead = session.predict(x[:, 1])
    assert torch.allclose(out.predictions.float(), want.predictions, atol=0.03)
    assert torch.allclose(ahead.float(), want.predictions[:, 1], atol=0.03)
    assert out.predictions.dtype == dtype and float(out.fast_norm.max()) < 0.202
    assert all(p.grad.isfinite().all() for p in made.parameters() if p.grad is not None)


def test_writes_are_what_a_label_replaces_in_each_slot():
    x, y = episode()
    y[0, 1] = -1
    made = woken(net(write="lru"))
    out = made(x, y)
    assert out.writes.shape == (B, T, 8) and float(out.writes[0, 1].abs().max()) == 0
    before, after = made(x[:, :2], y[:, :2]).memory, made(x[:, :3], y[:, :3]).memory
    w = out.writes[:, 2, :, None]
    assert float(w.amax(1).min()) > 0.01
    vector = (after - (1 - w) * before) / w  # the same in every slot, where enough was written to tell
    most = vector.gather(1, w.argmax(1, keepdim=True).expand(-1, -1, 6))
    assert torch.allclose(((vector - most) * w), torch.zeros(()), atol=1e-6)
    assert not torch.allclose(out.writes, out.attention * out.gates[..., None], atol=0.01)


def test_state_dict_and_encoder():
    torch.manual_seed(0)
    images = torch.rand(2, T, 1, 4, 4)
    made = FastSlowMemory(8, C, 8, 6, hidden_size=10, encoder=nn.Sequential(nn.Flatten(), nn.Linear(16, 8)))
    other = FastSlowMemory(8, C, 8, 6, hidden_size=10, encoder=nn.Sequential(nn.Flatten(), nn.Linear(16, 8)))
    other.load_state_dict(made.state_dict())
    assert torch.equal(made(images).predictions, other(images).predictions)
    session = made.start()
    assert session.observe(images[:1, 0], torch.tensor([2])).shape == (1, C)


def test_a_session_leaves_the_encoder_as_it_is():
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.BatchNorm1d(8), nn.Dropout())
    made = FastSlowMemory(8, C, 8, 6, hidden_size=10, encoder=encoder)
    image, before = torch.rand(1, 1, 4, 4, generator=gen()), encoder[2].running_mean.clone()
    session = made.start()
    ahead = session.predict(image)
    assert torch.equal(session.predict(image), ahead)
    assert torch.equal(session.observe(image, torch.tensor([2])), ahead)
    assert torch.equal(encoder[2].running_mean, before) and all(m.training for m in encoder)


def test_bad_input():
    x, y = episode()
    made = net()
    with pytest.raises(ValueError, match="classes must lie"):
        made(x, y + C)
    with pytest.raises(ValueError, match="classes must lie"):
        made(x, y - 5)
    with pytest.raises(ValueError, match="whole numbers"):
        made(x, y.float())
    with pytest.raises(ValueError, match="episodes must be"):
        made(x[..., :2], y)
    for name in ("y", "mask", "reveal"):
        with pytest.raises(ValueError, match=name):
            made(x, **{name: y[:, :2] if name == "y" else torch.ones(B, 2, dtype=torch.bool)})
        if name != "y":
            with pytest.raises(ValueError, match=f"{name} must be Boolean"):
                made(x, y, **{name: torch.ones(B, T)})
    with pytest.raises(ValueError, match="at least one item"):
        made(x[:, :0], y[:, :0])
    with pytest.raises(ValueError, match="state has a memory"):
        made(x, y, state=made.begin(2))
    with pytest.raises(ValueError, match="label_delay=2"):
        made(x, y, state=made(x, y, label_delay=2).state)
    with pytest.raises(ValueError, match="memory must be"):
        made.start(1).load_state_dict(made.start(3).state_dict())
    with pytest.raises(ValueError, match="floats"):
        net("regression")(x, y)
    with pytest.raises(ValueError, match="label_delay"):
        made(x, y, label_delay=-1)
    with pytest.warns(UserWarning, match="slots"):
        FastSlowMemory(D, 9, 4, 6, hidden_size=10)
    for wrong in (
        {"task": "ranking"}, {"feedback": "all"}, {"write": "first"}, {"controller": "gru"}, {"rate": 0.0},
        {"rate": math.inf}, {"task_id": 3}, {"task_id": 2, "num_tasks": 2},
    ):  # fmt: skip
        with pytest.raises(ValueError):
            net(**wrong)
    assert net(rate=1000.0).rates.tolist() == pytest.approx([1000.0] * 3)
    with pytest.raises(ValueError, match="at least 1"):
        FastSlowMemory(0, C, 8, 6)
    with pytest.raises(ValueError, match="rows"):
        made.start(2).observe(x[:, 0], y[:, 0])
    with pytest.raises(ValueError, match="batch_size"):
        made.start(0)
    with pytest.raises(KeyError):
        made.start(B).load_state_dict(net(feedback=None).start(B).state_dict())


@pytest.mark.parametrize(
    ("other", "error", "text"),
    [
        (lambda: net(feedback=None), KeyError, "another kind"),
        (lambda: FastSlowMemory(D, C, 8, 6, hidden_size=12), ValueError, "fast_read_.* must be"),
    ],
)
def test_a_state_of_another_net_is_refused(other, error, text):
    saved = net().start(B).state_dict()
    with pytest.raises(error, match=text):
        other().start(B).load_state_dict(saved)


def test_labels_of_a_session_are_one_a_row_and_finite():
    x, y = episode("regression")
    session = net("regression").start(B)
    with pytest.raises(ValueError, match=f"{B} rows, got {B - 1} labels"):
        session.observe(x[:, 0], y[:-1, 0])
    for one in (1.0, torch.tensor(1.0)):
        with pytest.raises(ValueError, match=f"{B} rows, got .*1.*: give a tensor with a label for each"):
            session.observe(x[:, 0], one)
    with pytest.raises(ValueError, match=rf"{B} rows, got items of shape \({D},\)"):
        session.predict(x[0, 0])
    with pytest.raises(ValueError, match="labels must be finite"):
        session.observe(x[:, 0], y[:, 0] / 0)


@pytest.mark.parametrize("kind", [torch.int8, torch.int16, torch.int32, torch.uint8])
def test_classes_of_any_integer_type(kind):
    net = FastSlowMemory(4, 3, slots=6, width=5, hidden_size=7)
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 5, 4, generator=g), torch.randint(3, (2, 5), generator=g)
    assert torch.equal(net(x, y.to(kind)).loss, net(x, y).loss)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_an_item_that_is_not_finite_is_named_and_spoils_no_memory(bad):
    net = FastSlowMemory(4, 3, slots=6, width=5, hidden_size=7)
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 5, 4, generator=g), torch.randint(3, (2, 5), generator=g)
    spoiled = x.clone()
    spoiled[1, 3, 2] = bad
    with pytest.raises(ValueError, match="row 1, item 3 holds a NaN or infinite"):
        net(spoiled, y)
    real = torch.ones(2, 5, dtype=torch.bool)
    real[1, 3] = False
    assert bool(net(spoiled, y, mask=real).predictions.isfinite().all())
    session = net.start(2)
    before = session.state_dict()
    with pytest.raises(ValueError, match="row 1, item 0"):
        session.observe(spoiled[:, 3], y[:, 3])
    assert all(torch.equal(before[k], v) for k, v in session.state_dict().items())


@pytest.mark.parametrize("delay", [-1, 1.5])
def test_delays_that_are_none_are_not_called_a_leak(delay):
    net = FastSlowMemory(4, 3, slots=6, width=5, hidden_size=7)
    with pytest.raises(ValueError, match="label_delay must be a whole number of items"):
        net(torch.zeros(1, 2, 4), torch.zeros(1, 2, dtype=torch.int64), label_delay=delay)
