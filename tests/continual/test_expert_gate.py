import pytest
import torch
from torch import nn

from etude.continual import ExpertGate, train_expert
from etude.data.randomness import seeded_build, stream
from etude.data.tasks import Split
from etude.training import TrainConfig

FAST = TrainConfig(epochs=40, batch_size=32, lr=1e-2)


def domain(t: int, n: int = 120, width: int = 12, scale: float = 1.0) -> torch.Tensor:
    """Points near a plane of their own."""
    basis = torch.randn(2, width, generator=stream(t, "basis"))
    return scale * (torch.randn(n, 2, generator=stream(t, "rows", n)) @ basis + 0.1 * torch.randn(
        n, width, generator=stream(t, "noise", n)))  # fmt: skip


class Says(nn.Module):
    """Scores for one class, and a count of the rows it saw."""

    def __init__(self, label: int) -> None:
        super().__init__()
        self.label, self.seen = label, 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen += len(x)
        return nn.functional.one_hot(torch.full((len(x),), self.label), 5).float()


@pytest.fixture(scope="module")
def gate() -> ExpertGate:
    made = ExpertGate(code_dim=3, config=FAST)
    for t in range(3):
        made.add_task(domain(t), Says(t + 1))
    return made


def test_it_finds_the_domain_and_asks_only_its_expert(gate) -> None:
    for t in range(3):
        before = [e.seen for e in gate.experts]
        y, task = gate.predict(domain(t, 60))
        assert (task == t).float().mean() > 0.8  # points near the origin look alike; chance is a third
        assert torch.equal(y, task + 1)
        asked = torch.bincount(task, minlength=3).tolist()
        assert [e.seen - b for e, b in zip(gate.experts, before)] == asked


def test_probabilities_are_the_softmax_of_errors(gate) -> None:
    x = domain(1, 20)
    p, errors = gate.probabilities(x), gate.errors(x)
    assert p.shape == (20, 3)
    torch.testing.assert_close(p.sum(1), torch.ones(20))
    torch.testing.assert_close(p[:, 0] / p[:, 1], ((errors[:, 1] - errors[:, 0]) / 2).exp(), rtol=1e-3, atol=1e-6)
    assert torch.equal(gate.route(x)[:, 0], p.argmax(1)) and torch.equal(p.argmax(1), errors.argmin(1))
    two = gate.predict(x, k=2)
    assert two.y.shape == two.task.shape == (20, 2) and torch.equal(two.y, two.task + 1)


def test_scale_of_the_features_does_not_matter() -> None:
    plain, scaled = ExpertGate(code_dim=3, config=FAST), ExpertGate(code_dim=3, config=FAST)
    factor = 2.0 ** torch.arange(-24.0, 24, 4)
    for t in range(2):
        plain.add_task(domain(t))
        scaled.add_task(domain(t) * factor)
    x = domain(1, 50)
    torch.testing.assert_close(plain.errors(x), scaled.errors(x * factor), rtol=1e-3, atol=1e-3)


def test_constant_features_and_backbones() -> None:
    backbone = seeded_build(lambda: nn.Linear(12, 6), stream(0, "backbone"))
    made = ExpertGate(lambda x: torch.cat([backbone(x), torch.ones(len(x), 1)], 1), code_dim=2, config=FAST)
    made.add_task(domain(0))
    assert torch.isfinite(made.errors(domain(0, 20))).all()
    assert all(p.grad is None for p in backbone.parameters())


def test_relatedness() -> None:
    made = ExpertGate(code_dim=3, config=FAST)
    for x in (domain(0), domain(1), domain(0, 130)):  # the third is the first again
        made.add_task(x)
    val = domain(0, 70)
    rel, errors = made.relatedness(val), made.errors(val).mean(0)
    assert float(rel[2]) == 1.0
    assert float(rel[1]) == pytest.approx(1 - float((errors[1] - errors[2]) / errors[2]), rel=1e-5)
    kin = made.kinship(val)
    assert kin.task == 0 and kin.distill and kin.relatedness > 0.85
    other = made.kinship(domain(1, 70), task=1)
    assert other.relatedness < kin.relatedness
    with pytest.raises(ValueError, match="no task 3: there are 3"):
        made.relatedness(val, task=3)
    with pytest.raises(ValueError, match="no samples"):
        made.kinship(val[:0])


def test_arrays_reach_an_expert_that_is_a_module() -> None:
    made = ExpertGate(code_dim=2, config=FAST)
    net, x = seeded_build(lambda: nn.Linear(12, 3), stream(0, "expert")), domain(0).double()
    made.add_task(x.numpy(), net)
    assert torch.equal(made.predict(x.numpy()).y, net(x.float()).argmax(1))


def test_state_goes_to_a_fresh_gate(gate) -> None:
    x = domain(2, 30)
    other = ExpertGate(code_dim=3)
    other.load_state_dict(gate.state_dict(), experts=gate.experts)
    torch.testing.assert_close(other.errors(x), gate.errors(x))
    assert torch.equal(other.predict(x).y, gate.predict(x).y)
    net = nn.Linear(12, 2)
    one = ExpertGate(code_dim=2, config=FAST)
    one.add_task(domain(0), net)
    two = ExpertGate(code_dim=2)
    fresh = nn.Linear(12, 2)
    two.load_state_dict(one.state_dict(), experts=[fresh])
    assert torch.equal(fresh.weight, net.weight)


def test_bad_input(gate) -> None:
    empty = ExpertGate(code_dim=2, config=FAST)
    for call in (empty.predict, empty.errors, empty.route):
        with pytest.raises(ValueError, match="no task"):
            call(domain(0))
    with pytest.raises(ValueError, match="no samples"):
        empty.add_task(domain(0)[:1])
    with pytest.raises(ValueError, match="NaN"):
        empty.add_task(torch.full((5, 3), torch.nan))
    empty.add_task(domain(0))
    with pytest.raises(ValueError, match="width"):
        empty.add_task(torch.randn(20, 5))
    with pytest.raises(ValueError, match="no expert"):
        empty.predict(domain(0, 10))
    with pytest.raises(ValueError, match="no other task"):
        empty.kinship(domain(0, 10))
    with pytest.raises(ValueError, match="k must"):
        gate.route(domain(0, 5), k=4)
    for bad in ({"code_dim": 0}, {"temperature": 0.0}):
        with pytest.raises(ValueError):
            ExpertGate(**bad)


@pytest.mark.parametrize(("value", "width", "words"), [(torch.nan, None, "NaN"), (0.0, 7, "width 7")])
def test_queries_are_checked_as_tasks_are(gate, value, width, words) -> None:
    x = domain(0, 5)
    x = x.index_fill(0, torch.tensor([1]), value) if width is None else torch.zeros(5, width)
    for ask in (gate.errors, gate.probabilities, gate.predict, gate.relatedness):
        with pytest.raises(ValueError, match=words):
            ask(x)


def test_an_expert_learns_and_keeps_old_answers_where_it_is_asked_to() -> None:
    x = domain(0, 200)
    y = (x[:, 0] > 0).long()
    trunk, old = nn.Linear(12, 8), nn.Linear(8, 3)
    moved = {}
    for kept in (False, True):
        net = seeded_build(lambda: nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 2)), stream(0, "init"))
        with torch.no_grad():
            net[0].weight.copy_(trunk.weight)
        earlier = nn.Sequential(nn.Linear(12, 8), nn.ReLU(), old)
        earlier.load_state_dict({**{f"0.{n}": t for n, t in net[0].state_dict().items()},
                                 **{f"2.{n}": t for n, t in old.state_dict().items()}})  # fmt: skip
        start = earlier(x).softmax(1).detach()
        view = nn.Sequential(net[0], nn.ReLU(), old)
        config = TrainConfig(epochs=30, lr=1e-2)
        train_expert(net, Split(x, y), config, old_head=(view, earlier) if kept else None)
        assert (net(x).argmax(1) == y).float().mean() > 0.9
        moved[kept] = float((view(x).softmax(1) - start).abs().mean())
    assert moved[True] < moved[False]
    with pytest.raises(ValueError, match="lies outside"):
        train_expert(net, Split(x, y + 5), config)


def test_a_gate_moves_neither_the_global_generator_nor_its_backbone():
    backbone = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.5)).train()
    gate = ExpertGate(backbone, config=TrainConfig(steps=2))
    state, seen = torch.get_rng_state(), backbone[1].running_mean.clone()
    gate.add_task(torch.randn(12, 4, generator=torch.Generator().manual_seed(0)))
    ExpertGate(backbone).load_state_dict(gate.state_dict())
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(seen, backbone[1].running_mean)
    assert backbone.training


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_arrays_and_another_default_type(dtype) -> None:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        gate, x = ExpertGate(code_dim=3, config=TrainConfig(steps=2)), domain(0).numpy()
        gate.add_task(x, expert=lambda rows: rows[:, 0] > 0)
        other = ExpertGate(code_dim=3)
        other.load_state_dict(gate.state_dict())
        torch.testing.assert_close(other.errors(x), gate.errors(torch.as_tensor(x)))
        assert gate.predict(x).y.tolist() == (x[:, 0] > 0).tolist()
    finally:
        torch.set_default_dtype(before)


def test_data_frames_and_lists_reach_backbone_and_experts() -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(domain(0).numpy(), index=range(7, 127))
    made = ExpertGate(code_dim=3, config=FAST)
    made.add_task(frame, nn.Linear(12, 2))
    assert torch.equal(made.predict(frame).y, made.predict(domain(0)).y)
    words = ExpertGate(lambda texts: torch.tensor([[float(len(t)), t.count("a")] for t in texts]), 1, config=FAST)
    words.add_task(["a", "banana", "tree", "haystack"] * 3, lambda texts: torch.tensor([len(t) for t in texts]))
    assert words.predict(["aa", "tree", "b"]).y.tolist() == [2, 4, 1]
