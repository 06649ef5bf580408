import copy
import pickle
from functools import partial

import pytest
import torch
from torch import nn

from etude.continual import ContinualHypernet, Growth, importance, learn_tasks
from etude.data import permuted_stream
from etude.data.randomness import seeded_build, stream
from etude.data.tasks import Split, Task
from etude.hypernetworks import HyperNetwork, RecurrentHyperNetwork, ScalarCondition, TaskCondition
from etude.layers import mlp
from etude.layers.parameters import flatten
from etude.training import TrainConfig

SIZE = 4 * 6 + 6 + 6 * 3 + 3


def hyper(seed: int = 0, **options) -> RecurrentHyperNetwork:
    return seeded_build(
        lambda: RecurrentHyperNetwork(mlp((4, 6, 3)), task_dim=5, chunk_size=10, hidden=7, **options),
        stream(seed, "hyper"),
    )


def chunked() -> HyperNetwork:
    return seeded_build(
        lambda: HyperNetwork(mlp((4, 6, 3)), TaskCondition(1, 5), strategy="chunk", hidden=(8,), num_chunks=6,
                             chunk_dim=4, init="gain"), stream(0, "hyper"),
    )  # fmt: skip


def rows(n: int = 30, seed: int = 0, classes: int = 3) -> Split:
    x = torch.randn(n, 4, generator=stream(seed, "x"))
    return Split(x, x[:, :classes].argmax(1))


def moved(cl: ContinualHypernet, size: float = 0.1) -> None:
    """A change of the generator."""
    with torch.no_grad():
        for i, p in enumerate(cl.hyper.generator.parameters()):
            p.add_(size * torch.randn(p.shape, generator=stream(i, "move")))


def ended(cl: ContinualHypernet, tasks: int, **options) -> ContinualHypernet:
    for t in range(tasks):
        cl.begin_task(t, **options)
        cl.end_task(rows(seed=t))
    return cl


@pytest.mark.parametrize("make", [hyper, chunked])
def test_the_regulariser_is_the_sum_over_weights_of_old_tasks(make) -> None:
    cl = ended(ContinualHypernet(make(), beta=0.5), 3)
    old = cl.hyper.generate_flat(task=torch.arange(3)).detach()
    cl.begin_task(3)
    assert float(cl.penalty().detach()) == pytest.approx(0, abs=1e-9)
    moved(cl)
    now = cl.hyper.generate_flat(task=torch.arange(3))
    wanted = 0.5 / 3 * (now - old).square().sum()
    torch.testing.assert_close(cl.penalty(), wanted)
    a = torch.autograd.grad(cl.penalty(), list(cl.hyper.generator.parameters()), allow_unused=True)
    b = torch.autograd.grad(wanted, list(cl.hyper.generator.parameters()), allow_unused=True)
    assert all(x is y is None or torch.allclose(x, y, rtol=1e-4, atol=1e-6) for x, y in zip(a, b))


def test_old_weights_made_in_the_forward_pass_give_the_same_penalty() -> None:
    cl = ended(ContinualHypernet(hyper(), beta=0.5), 2)
    cl.begin_task(2)
    moved(cl)
    alone = cl.penalty()
    out = cl(rows().x)
    together = cl.penalty()
    torch.testing.assert_close(alone, together)
    torch.testing.assert_close(out, cl.eval()(rows().x, 2))
    cl.train()(rows().x)
    moved(cl)  # a step between forward and penalty: what was made before does not count
    fresh = cl.penalty()
    assert not torch.allclose(fresh, together)


def test_a_step_on_the_regulariser_alone_brings_old_weights_back() -> None:
    cl = ended(ContinualHypernet(hyper(), beta=1.0), 2)
    cl.begin_task(2)
    moved(cl, 0.02)
    optimizer = torch.optim.Adam(cl.parameters(), lr=1e-3)
    first = float(cl.penalty().detach())
    for _ in range(100):
        optimizer.zero_grad()
        (cl.penalty() + 0 * cl(rows().x).sum()).backward()
        optimizer.step()
    assert float(cl.penalty().detach()) < 0.1 * first


def test_importance_weighs_each_generated_weight_with_mean_one() -> None:
    cl = ContinualHypernet(hyper(), beta=2.0, importance="mas")
    cl.begin_task(0)
    data = rows()
    cl.end_task(data)
    net = cl.export(0).requires_grad_(True)
    raw = flatten(importance(net, data.x))[0]
    torch.testing.assert_close(cl.omega[0], raw / raw.mean(), rtol=1e-4, atol=1e-5)
    assert float(cl.omega[0].mean()) == pytest.approx(1, abs=1e-4)
    old = cl.hyper.generate_flat(task=0).detach()
    cl.begin_task(1)
    moved(cl)
    wanted = 2.0 * (cl.omega[0] * (cl.hyper.generate_flat(task=0) - old).square()).sum()
    torch.testing.assert_close(cl.penalty(), wanted)
    fisher = ContinualHypernet(hyper(), importance="fisher")
    fisher.begin_task(0)
    fisher.end_task([(data.x[:10], data.y[:10]), (data.x[10:], data.y[10:])])
    raw = flatten(importance(net, data.x, "fisher"))[0]
    torch.testing.assert_close(fisher.omega[0], raw / raw.mean(), rtol=1e-3, atol=1e-4)


def test_heads_of_other_tasks_are_left_out() -> None:
    cl = ContinualHypernet(hyper(), beta=1.0, importance="mas")
    cl.begin_task(0, outputs=(0, 1))
    x = rows().x
    assert cl(x).shape == (30, 2) and cl.export(0)(x).shape == (30, 3)
    torch.testing.assert_close(cl(x), cl.export(0)(x)[:, :2])
    cl.end_task(rows(classes=2))
    last = cl.omega[0][-(6 * 3 + 3) :]
    assert (last[12:18] == 0).all() and last[20] == 0 and (last[18:20] > 0).all()
    plain = ContinualHypernet(hyper(), beta=1.0)
    plain.begin_task(0, outputs=(2,))
    plain.end_task()
    old = plain.hyper.generate_flat(task=0).detach()
    plain.begin_task(1, outputs=(0, 1))
    moved(plain)
    change = (plain.hyper.generate_flat(task=0) - old).square()[0]
    wanted = change[:30].sum() + change[30 + 12 : 30 + 18].sum() + change[-1]
    torch.testing.assert_close(plain.penalty(), wanted)
    for bad in ((), (3,), (0, 0)):
        with pytest.raises(ValueError, match="outputs"):
            ContinualHypernet(hyper()).begin_task(0, outputs=bad)


def test_some_old_tasks_at_a_time_are_unbiased() -> None:
    cl = ended(ContinualHypernet(hyper(), beta=1.0, max_tasks=1, generator=stream(0, "draw")), 3)
    cl.begin_task(3)
    moved(cl)
    whole = copy.deepcopy(cl)
    whole.max_tasks = None
    with torch.no_grad():
        drawn = torch.stack([cl.penalty() for _ in range(300)])
        assert len(drawn.unique()) == 3
        torch.testing.assert_close(drawn.unique().mean(), whole.penalty())
        assert abs(float(drawn.mean() - whole.penalty())) < 4 * float(drawn.std()) / 300**0.5


def test_lookahead_regularises_where_the_next_step_leads() -> None:
    cl = ended(ContinualHypernet(hyper(), beta=1.0, lookahead=True), 2)
    optimizer = cl.make_optimizer(lambda p: torch.optim.SGD(p, lr=0.05))
    cl.begin_task(2)
    data = rows(seed=9)
    loss = nn.functional.cross_entropy(cl(data.x), data.y)
    state = copy.deepcopy(cl.state_dict())
    penalty = cl.penalty(loss)
    assert all(torch.equal(state[n], t) for n, t in cl.state_dict().items())  # nothing has moved
    assert float(penalty.detach()) > 0  # though phi still is phi*
    ahead = copy.deepcopy(cl)
    mine = [p for p in cl.parameters() if p.requires_grad]
    theirs = [p for p in ahead.parameters() if p.requires_grad]
    for p, g in zip(theirs, torch.autograd.grad(loss, mine, allow_unused=True, retain_graph=True)):
        if g is not None:
            p.data -= 0.05 * g
    ahead.lookahead = False
    wanted = ahead.penalty()
    torch.testing.assert_close(penalty, wanted, rtol=1e-4, atol=1e-6)
    a = torch.autograd.grad(penalty, cl.hyper.generator.head.weight, retain_graph=True)[0]
    b = torch.autograd.grad(wanted, ahead.hyper.generator.head.weight)[0]
    torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-6)
    (loss + penalty).backward()
    optimizer.step()
    with pytest.raises(ValueError, match="task loss"):
        cl.penalty()


def test_growing_changes_no_generated_weight() -> None:
    for options in ({}, {"cell": "gru"}, {"cell": "elman"}, {"num_layers": 2}):
        cl = ended(ContinualHypernet(hyper(**options), growth=Growth(step=3, trigger=None, every=1)), 1)
        before, count = cl.hyper.generate_flat(task=0).detach(), sum(p.numel() for p in cl.hyper.generator.parameters())
        cl.begin_task(1)
        after = cl.hyper.generate_flat(task=0)
        torch.testing.assert_close(after, before, rtol=0, atol=1e-6)
        assert cl.growth_history == [(1, 3)] and cl.hyper.generator.rnn.hidden_size == 10
        assert sum(p.numel() for p in cl.hyper.generator.parameters()) > count
        cl(rows().x).sum().backward()  # new units learn: through the head first
        assert float(cl.hyper.generator.head.weight.grad[:, 7:].abs().sum()) > 0


def test_growth_is_triggered_by_a_loss_that_stays_high() -> None:
    easy, hard = rows(200), Split(rows(200).x, torch.randint(0, 3, (200,), generator=stream(0, "noise")))
    growth = Growth(step=2, trigger=1.2, warm_up=40, lr=0.05)
    cl = ContinualHypernet(hyper(), growth=growth, generator=stream(0, "tasks"))
    optimizer = cl.make_optimizer(lambda p: torch.optim.Adam(p, lr=1e-2))
    phi = {n: p.detach().clone() for n, p in cl.hyper.generator.named_parameters()}
    cl.begin_task(0, easy)
    assert all(torch.equal(phi[n], p) for n, p in cl.hyper.generator.named_parameters())  # the embedding alone
    assert cl.growth_history == []  # nothing to compare with
    for _ in range(150):
        optimizer.zero_grad()
        nn.functional.cross_entropy(cl(easy.x), easy.y).backward()
        optimizer.step()
    cl.end_task(easy)
    cl.begin_task(1, easy)  # the generator knows this task: its loss is low
    assert cl.growth_history == [] and cl.warm_losses[1] < cl.warm_losses[0]
    cl.end_task(easy)
    cl.begin_task(2, hard)
    assert cl.growth_history == [(2, 2)]
    bounded = ended(ContinualHypernet(hyper(), growth=Growth(2, trigger=None, every=1, max_times=2)), 5)
    assert bounded.growth_history == [(1, 2), (2, 2)]


def test_growth_by_loss_without_data_is_decided_by_the_first_losses_of_the_task() -> None:
    easy, hard = rows(200), Split(rows(200).x, torch.randint(0, 3, (200,), generator=stream(0, "noise")))
    cl = ContinualHypernet(hyper(), growth=Growth(step=2, trigger=1.2, warm_up=20), generator=stream(0, "tasks"))
    optimizer = cl.make_optimizer(lambda p: torch.optim.Adam(p, lr=1e-2))
    heard: list[list[float]] = []
    for task, data in enumerate((easy, easy, hard)):
        cl.begin_task(task)
        heard.append([])
        for step in range(60):
            optimizer.zero_grad()
            width = cl.hyper.generator.rnn.hidden_size
            loss = nn.functional.cross_entropy(cl(data.x), data.y)
            (loss + cl.penalty(loss)).backward()
            optimizer.step()
            heard[-1].append(float(loss.detach()))
            if task == 2 and step == 20:  # one update after the twenty; no generated weight was changed by it
                assert cl.hyper.generator.rnn.hidden_size == width + 2
                assert heard[-1][20] < 1.1 * heard[-1][19]
        cl.end_task()
    assert cl.growth_history == [(2, 2)]
    assert cl.warm_losses == pytest.approx([sum(h[16:20]) / 4 for h in heard])
    new = cl.hyper.generator.head.weight[:, -2:]
    assert float(new.detach().abs().max()) > 0  # the optimiser followed


def test_growth_by_loss_that_hears_of_no_loss_says_so() -> None:
    cl = ContinualHypernet(hyper(), growth=Growth(warm_up=5))
    cl.begin_task(0)
    cl.penalty(torch.tensor(1.0))
    with pytest.warns(UserWarning, match=r"not decided in task 0.*first 5 updates \(1 were\)"):
        cl.end_task()
    assert ended(ContinualHypernet(hyper(), growth=Growth(2, every=1)), 2).growth_history == [(1, 2)]  # without a word


def test_weights_that_are_not_generated_are_warned_of_once() -> None:
    cl = ended(ContinualHypernet(hyper(targets=["2"])), 1)
    with pytest.warns(UserWarning, match=r"0.weight is not generated.*freeze it"):
        cl.begin_task(1)
    cl.end_task()
    cl.begin_task(2)
    frozen = ended(ContinualHypernet(hyper(targets=["2"])), 1)
    frozen.hyper.target.requires_grad_(False)
    frozen.begin_task(1)


def test_tasks_are_whole_numbers() -> None:
    with pytest.raises(TypeError, match="got a str"):
        ContinualHypernet("net")
    cl = ContinualHypernet(hyper())
    with pytest.raises(TypeError, match="integer"):
        cl.begin_task("first")
    cl.begin_task(torch.tensor(0))
    assert cl.task == 0 and torch.equal(cl(rows().x, torch.tensor([0])), cl(rows().x))
    with pytest.raises(ValueError, match=r"one number, got \(30,\): hyper"):
        cl(rows().x, torch.zeros(30, dtype=torch.long))


def test_importances_are_kept_in_half_the_memory_too() -> None:
    whole = ended(ContinualHypernet(hyper(), beta=1.0, importance="mas", generator=stream(0, "tasks")), 2)
    half = ended(
        ContinualHypernet(
            hyper(), beta=1.0, importance="mas", generator=stream(0, "tasks"), cache_dtype=torch.bfloat16
        ), 2,
    )  # fmt: skip
    for cl in (whole, half):
        cl.begin_task(2)
        moved(cl)
    assert half.omega[0].dtype == torch.bfloat16
    assert float(half.penalty().detach()) == pytest.approx(float(whole.penalty().detach()), rel=0.05)


def test_with_freeze_old_only_what_is_new_learns() -> None:
    cl = ended(ContinualHypernet(hyper(), beta=0.0, growth=Growth(3, trigger=None, every=1, freeze_old=True)), 1)
    old = cl.hyper.generator.rnn
    h, wide = 7, old.input_size
    cl.begin_task(1)
    rnn, head = cl.hyper.generator.rnn, cl.hyper.generator.head
    before = {n: p.detach().clone() for n, p in cl.hyper.generator.named_parameters()}
    optimizer = torch.optim.Adam([p for p in cl.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(5):
        optimizer.zero_grad()
        (cl(rows().x).square().sum() + cl.penalty()).backward()
        optimizer.step()
    hh = (rnn.weight_hh_l0.detach() - before["rnn.weight_hh_l0"]).view(4, h + 3, h + 3)
    ih = (rnn.weight_ih_l0.detach() - before["rnn.weight_ih_l0"]).view(4, h + 3, wide)
    assert float(hh[:, :h, :h].abs().max()) == 0 and float(ih[:, :h].abs().max()) == 0
    assert float(ih[:, h:].abs().max()) > 0
    change = head.weight.detach() - before["head.weight"]
    assert float(change[:, :h].abs().max()) == 0 and float(change[:, h:].abs().min()) > 0
    assert torch.equal(head.bias, before["head.bias"])


@pytest.mark.parametrize("clears", ["optimiser", "module"])
@pytest.mark.parametrize("growth", [None, Growth(2, trigger=None, every=1)])
def test_an_optimiser_made_too_early_is_found_out(growth, clears) -> None:
    cl = ContinualHypernet(hyper(), growth=growth)
    early = torch.optim.Adam(cl.parameters(), lr=1e-3)
    cl.begin_task(0)
    data, ce = rows(), nn.functional.cross_entropy
    for _ in range(3):  # it knows the first embedding
        early.zero_grad()
        (ce(cl(data.x), data.y) + cl.penalty()).backward()
        early.step()
    cl.end_task()
    cl.begin_task(1)
    (ce(cl(data.x), data.y) + cl.penalty()).backward()
    early.step()
    (early if clears == "optimiser" else cl).zero_grad()
    with pytest.raises(RuntimeError, match="not trained"):
        cl.penalty()


def test_a_managed_optimiser_follows_tasks_and_growth() -> None:
    cl = ContinualHypernet(hyper(), growth=Growth(2, trigger=None, every=1))
    calls = []
    cl.parameters_changed.append(lambda: calls.append(1))
    optimizer = cl.make_optimizer(lambda p: torch.optim.Adam(p, lr=1e-2))
    data, ce = rows(), nn.functional.cross_entropy
    for t in range(3):
        cl.begin_task(t)
        assert not optimizer.optimizer.state  # momentum is gone
        held = {id(p) for g in optimizer.param_groups for p in g["params"]}
        assert held == {id(p) for p in cl.parameters() if p.requires_grad}
        row = cl.condition.rows[t].detach().clone()
        for _ in range(3):
            optimizer.zero_grad()
            (ce(cl(data.x), data.y) + cl.penalty()).backward()
            optimizer.step()
        assert not torch.equal(row, cl.condition.rows[t])
        cl.end_task()
        assert not cl.condition.rows[t].requires_grad
    assert len(calls) == 5  # three tasks, two widenings


@pytest.mark.parametrize("growth", [None, Growth(2, trigger=None, every=1)])
def test_state_goes_to_a_fresh_object(growth) -> None:
    cl = ContinualHypernet(hyper(), beta=0.3, importance="mas", growth=growth)
    for t in range(3):
        cl.begin_task(t, outputs=(0, 1))
        if t < 2:
            cl.end_task(rows(seed=t, classes=2))
    other = ContinualHypernet(hyper(seed=5), beta=0.3, importance="mas", growth=growth)
    other.load_state_dict(cl.state_dict())
    x = rows().x
    for t in range(3):
        torch.testing.assert_close(other(x, t), cl(x, t))
    assert other.growth_history == cl.growth_history and other.done == [0, 1] and other.task == 2
    for one in (cl, other):
        moved(one)
    torch.testing.assert_close(other.penalty(), cl.penalty())
    assert all(isinstance(t, torch.Tensor) for t in cl.state_dict().values())
    assert [r.requires_grad for r in other.condition.rows] == [False, False, True]


def test_order_of_calls() -> None:
    cl = ContinualHypernet(hyper())
    with pytest.raises(RuntimeError, match="begin_task"):
        cl.penalty()
    with pytest.raises(RuntimeError, match="begin_task"):
        cl(rows().x)
    with pytest.raises(RuntimeError, match="begin_task"):
        cl.end_task()
    with pytest.raises(ValueError, match="in order"):
        cl.begin_task(1)
    cl.begin_task(0)
    with pytest.raises(RuntimeError, match="task 0 is still in hand: call end_task"):
        cl.begin_task(1)
    assert cl.task == 0 and cl.condition.num_tasks == 1
    cl.end_task()
    cl.begin_task(1)
    cl.end_task()
    with pytest.raises(ValueError, match="begun before"):
        cl.begin_task(0)
    with pytest.raises(ValueError, match="no task 7"):
        cl(rows().x, 7)
    cl.allow_revisit = True
    cl.begin_task(0)
    assert cl.condition.rows[0].requires_grad and cl.done == [1]
    moved(cl)
    assert float(cl.penalty().detach()) > 0
    cl.end_task()
    cl.begin_task(2)
    assert cl.done == [0, 1]


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="TaskCondition"):
        ContinualHypernet(HyperNetwork(mlp((2, 2)), ScalarCondition(["lam"])))
    for bad in ({"beta": -1.0}, {"importance": "other"}, {"max_tasks": 0}):
        with pytest.raises(ValueError):
            ContinualHypernet(hyper(), **bad)
    for bad in ({"step": 0}, {"trigger": 0.0}, {"every": 0}, {"warm_up": 0}, {"max_times": 0}):
        with pytest.raises(ValueError):
            Growth(**bad)
    cl = ContinualHypernet(hyper(), importance="mas")
    cl.begin_task(0)
    with pytest.raises(ValueError, match="no samples"):
        cl.end_task()
    with pytest.raises(ValueError, match="no samples"):
        cl.end_task([])
    ahead = ended(ContinualHypernet(hyper(), lookahead=True), 1)
    ahead.begin_task(1)
    with pytest.raises(RuntimeError, match="make_optimizer"):
        ahead.penalty(torch.zeros((), requires_grad=True))


def test_batch_norm_statistics_stand_by_task() -> None:
    target = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))
    made = RecurrentHyperNetwork(target, task_dim=5, chunk_size=10, hidden=7, buffers="per_condition")
    cl = ContinualHypernet(made)
    cl.begin_task(0)
    for _ in range(20):
        cl(rows().x)
    cl.end_task()
    first = cl.eval()(rows().x, 0)
    cl.train().begin_task(1)
    for _ in range(20):
        cl(rows(seed=4).x + 5)
    torch.testing.assert_close(cl.eval()(rows().x, 0), first)
    assert not torch.allclose(cl.export(0)[1].running_mean, cl.export(1)[1].running_mean)


def test_a_kept_copy_in_half_the_memory_is_close() -> None:
    cl = ended(ContinualHypernet(hyper(), beta=1.0, cache_dtype=torch.bfloat16), 2)
    cl.begin_task(2)
    moved(cl)
    whole = copy.deepcopy(cl)
    whole.cache_dtype = None
    assert cl._kept.targets.dtype == torch.bfloat16 and float(cl.penalty().detach()) > 0


def test_it_forgets_less_with_the_regulariser() -> None:
    g = stream(0, "task")
    centre, y = 2 * torch.randn(3, 4, generator=g), torch.arange(3).repeat_interleave(50)
    draw = lambda: Split(centre[y] + torch.randn(150, 4, generator=g), y)
    segments = permuted_stream(Task("blobs", "table", draw(), None, draw(), 3), 4, seed=0)
    found = {}
    for beta in (0.0, 1.0):
        cl = ContinualHypernet(hyper(), beta=beta)
        found[beta] = learn_tasks(
            cl, segments, config=TrainConfig(steps=120, batch_size=32, lr=1e-2), penalty=lambda m: m.penalty(),
            before=lambda s, cl=cl: cl.begin_task(s.number), after=lambda s, cl=cl: cl.end_task(), by_task=True,
        )  # fmt: skip
    assert found[1.0].average > found[0.0].average + 0.1 and found[1.0].bwt > found[0.0].bwt


@pytest.mark.parametrize("options", [{"unit": "layer"}, {"feed_previous": True}, {"cell": "rnn"},
                                     {"unit": "layer", "feed_previous": True, "cell": "gru"}])  # fmt: skip
def test_other_wirings_of_the_generator_learn_and_grow(options) -> None:
    cl = ended(ContinualHypernet(hyper(**options), beta=1.0, growth=Growth(2, trigger=None, every=1)), 1)
    assert cl.hyper.generate_flat(task=0).shape == (1, SIZE)
    steps = 2 if options.get("unit") == "layer" else 6
    assert len(cl.hyper.generator.places) == steps
    before = cl.hyper.generate_flat(task=0).detach()
    cl.begin_task(1)
    torch.testing.assert_close(cl.hyper.generate_flat(task=0), before, rtol=0, atol=1e-6)
    data = rows(200)
    optimizer = torch.optim.Adam([p for p in cl.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        (nn.functional.cross_entropy(cl(data.x), data.y) + cl.penalty()).backward()
        optimizer.step()
    assert (cl(data.x).argmax(1) == data.y).float().mean() > 0.6


def test_a_step_that_reads_the_weights_before_it_depends_on_them() -> None:
    made = hyper(feed_previous=True)
    with torch.no_grad():
        made.generator.previous.weight.zero_()  # nothing is read: the same as without
    plain = hyper()
    with torch.no_grad():
        for name, p in plain.generator.named_parameters():
            other = dict(made.generator.named_parameters())[name]
            p.copy_(other[:, : p.shape[1]] if name == "rnn.weight_ih_l0" else other)
        plain.condition.rows[0].copy_(made.condition.rows[0])
        plain.gain.copy_(made.gain)
    torch.testing.assert_close(made.generate_flat(task=0), plain.generate_flat(task=0))
    with torch.no_grad():
        made.generator.previous.weight.fill_(0.5)
    assert not torch.allclose(made.generate_flat(task=0)[:, 9:], plain.generate_flat(task=0)[:, 9:])
    torch.testing.assert_close(made.generate_flat(task=0)[:, :9], plain.generate_flat(task=0)[:, :9])


def test_growth_is_its_generators_alone() -> None:
    grown = []
    for seed in (1, 2):
        cl = ContinualHypernet(
            hyper(), growth=Growth(3, trigger=None, every=1), generator=torch.Generator().manual_seed(7)
        )
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        ended(cl, 2)
        cl.begin_task(2)
        assert torch.equal(state, torch.get_rng_state())
        grown.append(cl.hyper.generator.state_dict())
    assert all(torch.equal(grown[0][k], grown[1][k]) for k in grown[0])


def test_loss_and_penalty_go_backward_apart() -> None:
    cl = ended(ContinualHypernet(hyper()), 1)
    cl.begin_task(1)
    for p in cl.hyper.generator.parameters():
        p.data.add_(0.1)  # unseen by the watch for optimisers made too early
    x = torch.randn(4, 4, generator=stream(0, "x"))
    cl.train()
    together = copy.deepcopy(cl)
    (together(x).sum() + together.penalty()).backward()
    cl(x).sum().backward()
    cl.penalty().backward()
    for a, b in zip(cl.parameters(), together.parameters(), strict=True):
        if a.grad is not None:
            torch.testing.assert_close(a.grad, b.grad)


def test_what_is_frozen_at_growth_stays_frozen_in_a_fresh_object() -> None:
    def make() -> ContinualHypernet:
        growth = Growth(3, trigger=None, every=1, freeze_old=True)
        return ContinualHypernet(hyper(residual=True), beta=0.0, growth=growth)

    cl = ended(make(), 2)
    fresh = make()
    fresh.load_state_dict(cl.state_dict())
    for each in (cl, fresh):
        each.begin_task(2)
        assert each.hyper.theta0 is not None
        assert not each.hyper.theta0.requires_grad
        before = each.hyper.generator.head.weight.detach().clone()
        each(torch.randn(4, 4, generator=stream(0, "x"))).sum().backward()
        old = each.hyper.generator.head.weight.grad[:, :-6]
        assert float(old.abs().max()) == 0.0
        assert before.shape == each.hyper.generator.head.weight.shape


@pytest.mark.parametrize(("data", "outputs"), [(rows(), [99]), ([], None)])
def test_a_task_that_could_not_begin_can_begin_again(data, outputs) -> None:
    cl = ended(ContinualHypernet(hyper(), growth=Growth(2, trigger=9.0, warm_up=2)), 0)
    for task in range(2):
        with pytest.raises(ValueError, match="outputs must be|no samples"):
            cl.begin_task(task, data, outputs=outputs)
        assert cl.task == (None if task == 0 else 0) and cl.condition.num_tasks == 1
        cl.begin_task(task, rows())
        cl.end_task()


COPIES = [copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))]


@pytest.mark.parametrize("copied", COPIES)
def test_a_copy_trains_itself(copied) -> None:
    cl = ContinualHypernet(hyper(), generator=stream(0, "tasks"))
    cl.make_optimizer(partial(torch.optim.SGD, lr=0.1))
    ended(cl, 1)
    cl.begin_task(1)
    cl(rows().x)  # holds a graph
    other = copied(cl)
    cl.end_task()
    before = {n: p.detach().clone() for n, p in cl.named_parameters()}
    for again in range(2):
        held = {id(p) for g in other._optimizer.param_groups for p in g["params"]}
        assert held == {id(p) for p in other.parameters() if p.requires_grad}
        (other(rows().x).square().sum() + other.penalty()).backward()
        other._optimizer.step()
        other.end_task()
        other.begin_task(2 + again)
    assert not torch.equal(other.hyper.generator.head.weight, before["hyper.generator.head.weight"])
    assert all(torch.equal(before[n], p) for n, p in cl.named_parameters())


@pytest.mark.parametrize("copied", COPIES)
def test_what_is_frozen_at_growth_stays_frozen_in_a_copy(copied) -> None:
    growth = Growth(3, trigger=None, every=1, freeze_old=True)
    other = copied(ended(ContinualHypernet(hyper(), beta=0.0, growth=growth), 2))
    other(rows().x, 1).sum().backward()
    generator = other.hyper.generator
    assert float(generator.places.grad.abs().max()) == 0 and float(generator.head.weight.grad[:, :7].abs().max()) == 0
    assert float(generator.head.weight.grad[:, 7:].abs().max()) > 0


class Wrapped(nn.Module):
    def __init__(self, seed: int) -> None:
        super().__init__()
        self.one, self.two = (ContinualHypernet(hyper(seed + i), importance="mas") for i in range(2))


def test_states_inside_another_module_are_kept_apart() -> None:
    made, other = Wrapped(0), Wrapped(7)
    ended(made.one, 2)
    ended(made.two, 3)
    found = other.load_state_dict(made.state_dict())
    assert not found.missing_keys and not found.unexpected_keys
    assert (other.one.done, other.two.done) == ([0, 1], [0, 1, 2]) and not other.two.condition.rows[0].requires_grad
    for name in ("one", "two"):
        assert torch.equal(getattr(other, name).omega[1], getattr(made, name).omega[1])
        torch.testing.assert_close(getattr(other, name)(rows().x, 1), getattr(made, name)(rows().x, 1))
    state = made.state_dict()
    del state["two.done"]
    with pytest.raises(RuntimeError, match="two.done"):
        Wrapped(3).load_state_dict(state)


@pytest.mark.parametrize(
    "options", [{"strategy": "split", "num_heads": 2}, {"strategy": "attention"}, {"norm": "layer"}]
)
def test_growth_of_a_generator_that_cannot_widen_is_refused_at_once(options) -> None:
    made = HyperNetwork(mlp((4, 6, 3)), TaskCondition(1, 5), hidden=(8, 8), **options)
    with pytest.raises(ValueError, match="widen needs one head"):
        ContinualHypernet(made, growth=Growth(2))


@pytest.mark.parametrize("outputs", [None, (0, 2)])
def test_labels_outside_the_head_begin_no_task(outputs) -> None:
    cl = ended(ContinualHypernet(hyper(), growth=Growth(2, trigger=None, every=9)), 1)
    cl.growth = Growth(2, trigger=1.5, warm_up=2)
    data = rows()
    with pytest.raises(ValueError, match="label 9 lies outside"):
        cl.begin_task(1, data._replace(y=data.y.clamp_max(1).index_fill(0, torch.tensor([3]), 9)), outputs=outputs)
    assert cl.task == 0 and cl.condition.num_tasks == 1 and not cl.outputs


def test_everything_frozen_still_runs_in_training() -> None:
    cl = ended(ContinualHypernet(hyper()), 1)
    cl.begin_task(1)
    assert cl.requires_grad_(False).train()(rows().x).shape == (30, 3)


def test_a_managed_optimiser_goes_on_and_takes_closures() -> None:
    cl = ContinualHypernet(hyper())
    cl.begin_task(0)
    optimizer = cl.make_optimizer(partial(torch.optim.Adam, lr=1e-2))

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(cl(rows().x), rows().y)
        loss.backward()
        return loss

    first = optimizer.step(closure)
    state = copy.deepcopy(optimizer.state_dict())
    assert optimizer.step(closure) < first
    optimizer.load_state_dict(state)
    assert all(int(s["step"]) == 1 for s in optimizer.optimizer.state.values())


def test_weight_decay_with_freeze_old_is_warned_of() -> None:
    cl = ContinualHypernet(hyper(), growth=Growth(2, trigger=None, every=1, freeze_old=True))
    cl.begin_task(0)
    cl.make_optimizer(partial(torch.optim.AdamW, lr=1e-2, weight_decay=0.1))
    cl.end_task()
    with pytest.warns(UserWarning, match="weight decay moves"):
        cl.begin_task(1)
