import pytest
import torch
from torch import nn

from etude.continual import EBLL, LwF, TaskHeads
from etude.data.randomness import seeded_build, stream
from etude.data.tasks import Split
from etude.training import TrainConfig, distillation_kl, train


def heads(tasks: int = 2) -> TaskHeads:
    model = TaskHeads(seeded_build(lambda: nn.Sequential(nn.Linear(4, 8), nn.ReLU()), stream(0, "trunk")), 8)
    for t in range(tasks):
        model.add_head(3, stream(t, "head"))
    return model


def rows(n: int = 40, seed: int = 0) -> Split:
    x = torch.randn(n, 4, generator=stream(seed, "x"))
    return Split(x, (x[:, 0] > 0).long() + (x[:, 1] > 1).long())


def test_heads_share_the_trunk_and_grow() -> None:
    model = heads(1)
    x = rows().x
    first = model(x)
    assert model.add_head(2) == 1 and model.task == 1
    assert model(x).shape == (40, 2) and torch.equal(model(x, 0), first) and torch.equal(model.at(0)(x), first)
    for bad in (-1, 2):
        with pytest.raises(ValueError, match="no head"):
            model(x, bad)
    with pytest.raises(ValueError):
        model.add_head(0)
    with pytest.raises(ValueError):
        TaskHeads(nn.Identity(), 0)


def test_lwf_is_the_distillation_of_every_old_head() -> None:
    model, x = heads(2), rows().x
    lwf = LwF(model, lam=0.5, temperature=2.0)
    assert float(lwf.penalty(x)) == 0
    lwf.begin_task()
    old = [model(x, t).detach() for t in range(2)]
    assert float(lwf.penalty(x).detach()) == pytest.approx(0, abs=1e-6)
    model.add_head(3)
    with torch.no_grad():
        model.trunk[0].weight += 0.3
    wanted = 0.5 * sum(distillation_kl(model(x, t), old[t], temperature=2.0) for t in range(2))
    torch.testing.assert_close(lwf.penalty(x), wanted)
    other = LwF(model, lam=0.5)
    other.load_state_dict(lwf.state_dict())
    torch.testing.assert_close(other.penalty(x), wanted)
    terms = lwf.loss(model, rows())
    torch.testing.assert_close(terms["kept"], wanted)
    with pytest.raises(ValueError, match="lies outside"):
        lwf.loss(model, Split(x, torch.full((40,), 3)))


def test_lwf_keeps_old_answers_while_a_new_task_is_learned() -> None:
    moved = {}
    for lam in (0.0, 5.0):
        model, data = heads(1), rows(200)
        lwf = LwF(model, lam)
        lwf.begin_task()
        old = model(data.x, 0).softmax(1).detach()
        model.add_head(3, stream(9, "head"))
        train(model, data, loss=lwf.loss, config=TrainConfig(steps=200, lr=1e-2))
        assert (model(data.x).argmax(1) == data.y).float().mean() > 0.85
        moved[lam] = float((model(data.x, 0).softmax(1) - old).abs().mean().detach())
    assert moved[5.0] < 0.5 * moved[0.0]


def test_ebll_adds_the_movement_of_the_codes() -> None:
    model, data = heads(1), rows(100)
    ebll = EBLL(model, lam=0.0, code_dim=3, alpha=2.0)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    net = ebll.end_task(data, TrainConfig(steps=100, lr=1e-2))
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())  # only the autoencoder learned
    assert all(p.requires_grad for p in model.parameters())
    ebll.begin_task()
    old = model.trunk(data.x).detach()
    assert float(ebll.penalty(data.x).detach()) == pytest.approx(0, abs=1e-7)
    with torch.no_grad():
        model.trunk[0].weight += 0.2
    code = lambda f: torch.sigmoid(f @ net.encoder[0].weight.T + net.encoder[0].bias)
    wanted = 0.5 * 2.0 * (code(model.trunk(data.x)) - code(old)).square().sum(1).mean()
    torch.testing.assert_close(ebll.penalty(data.x), wanted)
    other = EBLL(model, lam=0.0, code_dim=3, alpha=2.0)
    rng = torch.get_rng_state()
    other.load_state_dict(ebll.state_dict())
    assert torch.equal(rng, torch.get_rng_state())
    torch.testing.assert_close(other.penalty(data.x), wanted)


def test_ebll_codes_keep_what_the_task_needs() -> None:
    """With the task's loss, one code unit suffices for the head; without it the code follows the largest variance."""
    trunk = nn.Identity()
    model = TaskHeads(trunk, 4)
    model.add_head(2)
    with torch.no_grad():
        model.heads[0].weight.copy_(torch.tensor([[0.0, 0, 0, 4.0], [0, 0, 0, -4.0]]))
        model.heads[0].bias.zero_()
    x = torch.randn(300, 4, generator=stream(0, "x")) * torch.tensor([5.0, 1, 1, 1])
    data = Split(x, (x[:, 3] < 0).long())
    right = {}
    for weight in (0.0, 200.0):
        ebll = EBLL(model, code_dim=1, task_weight=weight)
        net = ebll.end_task(data, TrainConfig(steps=600, lr=2e-2))
        right[weight] = float((model.heads[0](net(x).output).argmax(1) == data.y).float().mean())
    assert right[200.0] > 0.9 > 0.75 > right[0.0]


def test_bad_input() -> None:
    for bad in ({"code_dim": 8}, {"code_dim": 0}, {"alpha": -1.0}, {"lam": -1.0}, {"temperature": 0.0}):
        with pytest.raises(ValueError):
            EBLL(heads(1), **bad)
    with pytest.raises(ValueError, match="lies outside"):
        EBLL(heads(1), code_dim=2).end_task(Split(rows().x, rows().y + 2), TrainConfig(steps=1))


@pytest.mark.parametrize("kind", [LwF, lambda m: EBLL(m, code_dim=3)])
def test_batch_norm_counts_a_batch_once_and_the_codes_are_those_of_eval_mode(kind) -> None:
    model, data = heads(1), rows()
    model.trunk.append(nn.BatchNorm1d(8)).append(nn.Dropout(0.5))
    count = model.trunk[2].num_batches_tracked
    keep = kind(model)
    if isinstance(keep, EBLL):
        state = torch.get_rng_state()
        keep.end_task(data, TrainConfig(steps=2))
        assert torch.equal(state, torch.get_rng_state()) and int(count) == 0 and model.trunk.training
    keep.begin_task()
    model.add_head(3)
    keep.loss(model, data)
    assert int(count) == 1
