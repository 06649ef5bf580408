import warnings

import pytest
import torch
from torch import nn

from etude.continual import EWC, L2, MAS, SynapticIntelligence, importance
from etude.data.randomness import stream
from etude.training import TrainConfig, train


def pair() -> tuple[nn.Linear, torch.Tensor]:
    model = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, 2.0]]))
    return model, torch.tensor([[1.0, 0.5]])


def test_penalty_is_zero_before_the_first_update_and_at_the_anchor() -> None:
    model, x = pair()
    mas = MAS(model, lam=3.0)
    assert float(mas.penalty()) == 0 and mas.omega == {}
    mas.update(x)
    assert float(mas.penalty()) == 0 and mas.num_updates == 1


def test_penalty_and_gradient_in_closed_form() -> None:
    model, x = pair()
    mas = MAS(model, lam=3.0)
    mas.update(x)  # F = 2: Omega = 2 F |x| = (4, 2)
    torch.testing.assert_close(mas.omega["weight"], torch.tensor([[4.0, 2.0]]))
    with torch.no_grad():
        model.weight += torch.tensor([[0.5, -1.0]])
    penalty = mas.penalty()
    assert float(penalty.detach()) == pytest.approx(3 * (4 * 0.25 + 2 * 1.0))
    (g,) = torch.autograd.grad(penalty, model.weight)
    torch.testing.assert_close(g, 2 * 3 * torch.tensor([[4.0, 2.0]]) * torch.tensor([[0.5, -1.0]]))


def test_tasks_add_up_or_are_averaged() -> None:
    model, x = pair()
    total, mean = MAS(model), MAS(model, combine="mean")
    for k in range(3):
        for one in (total, mean):
            one.update((k + 1) * x)  # Omega grows with the square of x
    first = importance(model, x)["weight"]
    torch.testing.assert_close(total.omega["weight"], (1 + 4 + 9) * first)
    torch.testing.assert_close(mean.omega["weight"], (1 + 4 + 9) / 3 * first)


def test_batch_mode_is_the_batch_sums_absolute_value() -> None:
    model, x = pair()
    data = torch.cat([x, torch.tensor([[1.0, -0.5]])])
    found = MAS(model, per_sample=False).update(data)
    torch.testing.assert_close(found["weight"], importance(model, data, per_sample=False)["weight"])


def test_parameters_added_later_are_not_penalised() -> None:
    model = nn.ModuleDict({"a": nn.Linear(2, 2)})
    mas = MAS(model, forward=lambda m, x: torch.cat([h(x) for h in m.values()], 1))
    mas.update(torch.ones(1, 2))
    model["b"] = nn.Linear(2, 3)
    with torch.no_grad():
        model["b"].weight += 100
    assert float(mas.penalty().detach()) == 0
    mas.update(torch.ones(1, 2))  # from now on it is known
    with torch.no_grad():
        model["b"].weight += 1
    assert float(mas.penalty().detach()) > 0


def test_a_step_that_would_diverge_is_warned_of() -> None:
    model, x = pair()
    with pytest.warns(UserWarning, match="diverge"):
        MAS(model, lam=1.0, lr=0.5).update(x)  # 2 * 0.5 * 1 * 4 >= 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        MAS(model, lam=1.0, lr=0.2).update(x)  # 2 * 0.2 * 4 = 1.6
    for lam in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError):
            MAS(model, lam=lam)
    with pytest.raises(ValueError, match="combine"):
        MAS(model, combine="max")  # type: ignore[arg-type]


def test_no_samples_leave_the_state_as_it_was() -> None:
    model, x = pair()
    mas = MAS(model)
    mas.update(x)
    with pytest.raises(ValueError, match="no samples"):
        mas.update([])
    assert mas.num_updates == 1


@pytest.mark.parametrize("kind", [MAS, EWC, L2, SynapticIntelligence])
def test_state_goes_to_a_fresh_object(kind) -> None:
    model = nn.Linear(2, 3)
    one = kind(model, 2.0)
    one.update(torch.randn(4, 2, generator=stream(0, "x")))
    with torch.no_grad():
        model.weight += 0.3
    other = kind(model, 2.0)
    other.load_state_dict(one.state_dict())
    assert all(isinstance(t, torch.Tensor) for t in one.state_dict().values())
    assert float(other.penalty()) == float(one.penalty()) > 0 or kind is SynapticIntelligence
    assert other.num_updates == one.num_updates == 1
    one.update(torch.ones(2, 2))
    other.update(torch.ones(2, 2))
    assert all(torch.equal(one.omega[n], other.omega[n]) for n in one.omega)


def test_ewc_and_l2() -> None:
    model, x = nn.Linear(2, 3), torch.randn(5, 2, generator=stream(0, "x"))
    ewc, l2 = EWC(model), L2(model)
    assert torch.equal(ewc.update(x)["weight"], importance(model, x, "fisher")["weight"])
    y = torch.tensor([0, 1, 2, 0, 1])
    wanted = importance(model, (x, y), "empirical_fisher")["weight"]
    assert torch.equal(EWC(model, empirical=True).update((x, y))["weight"], wanted)
    for strength in (l2, L2(model, combine="mean")):
        for _ in range(3):
            strength.update()
        assert all((t == 1).all() for t in strength.omega.values())


def test_si_shares_out_the_fall_of_the_loss() -> None:
    """Gradient flow: sum of omega is the loss's fall; on a quadratic each coordinate's part is its own fall."""
    model = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, 2.0]]))
    scale = torch.tensor([[3.0, 0.5]])
    si = SynapticIntelligence(model, xi=0.1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    for _ in range(2000):
        optimizer.zero_grad()
        (0.5 * scale * model.weight.square()).sum().backward()
        optimizer.step()
        si.step()
    left, start = model.weight.detach(), torch.tensor([[1.0, 2.0]])
    fall = 0.5 * scale * (start.square() - left.square())
    found = si.update()
    torch.testing.assert_close(found["weight"], fall / ((start - left).square() + 0.1), rtol=0.01, atol=0)


def test_si_leaves_its_own_penalty_out_of_the_sums() -> None:
    model = nn.Linear(1, 1, bias=False)
    si = SynapticIntelligence(model, lam=5.0)
    si.consolidate({"weight": torch.ones(1, 1)})
    with torch.no_grad():
        model.weight += 1
    si.begin_task()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    for _ in range(5):  # no task loss at all: only the penalty pulls back
        optimizer.zero_grad()
        si.penalty().backward()
        optimizer.step()
        si.step()
    assert float(si.update()["weight"].abs().max()) < 1e-6


def test_as_penalty_and_callback_of_train() -> None:
    x, y = torch.randn(64, 3, generator=stream(0, "x")), torch.randn(64, 2, generator=stream(0, "y"))
    moved = {}
    for lam in (0.0, 1e4):
        model = nn.Linear(3, 2)
        with torch.no_grad():
            model.weight.fill_(0.1)
            model.bias.zero_()
        si, mas = SynapticIntelligence(model), MAS(model, lam=lam)
        mas.update(x)
        loss = lambda m, b: (m(b.x) - b.y).square().mean()
        train(model, (x, y), loss=loss, config=TrainConfig(steps=40, lr=1e-2), penalty=mas.penalty, callbacks=[si])
        moved[lam] = float((model.weight.detach() - 0.1).abs().max())
        assert sum(float(t.sum()) for t in si.update().values()) > 0
    assert moved[1e4] < 0.2 * moved[0.0]
