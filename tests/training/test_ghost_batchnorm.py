"""Ghost batch norm against plain batch norm on chunks, its state, its pitfalls, and the swap."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from etude.data.randomness import stream
from etude.data.tasks import Split
from etude.layers import TargetError
from etude.training import GhostBatchNorm1d, GhostBatchNorm2d, GhostBatchNorm3d, TrainConfig, to_ghost_batchnorm, train
from etude.training.ghost_batchnorm import ghost_batch_norm, ghost_sizes

SHAPES = {(5,): (nn.BatchNorm1d, GhostBatchNorm1d), (5, 3): (nn.BatchNorm1d, GhostBatchNorm1d)}
SHAPES |= {(4, 3, 2): (nn.BatchNorm2d, GhostBatchNorm2d), (3, 2, 2, 2): (nn.BatchNorm3d, GhostBatchNorm3d)}


def filled(norm: nn.Module, seed: int) -> nn.Module:
    """The norm with weights and statistics that are not the start's."""
    g = stream(seed, "norm")
    with torch.no_grad():
        for t in (*norm.parameters(), norm.running_mean, norm.running_var):
            if t is not None:
                t.copy_(torch.rand(t.shape, generator=g) + 0.5)
    return norm


def by_chunks(norm: nn.Module, x: torch.Tensor, ghosts: list[torch.Tensor]) -> torch.Tensor:
    """Plain batch norm over the ghosts one after another: the authors' way."""
    y = torch.empty_like(x)
    for rows in ghosts:
        y = y.index_copy(0, rows, norm(x[rows]))
    return y


@given(
    st.sampled_from(sorted(SHAPES)),
    st.integers(2, 9),
    st.integers(1, 40),
    st.booleans(),
    st.sampled_from([0.1, 0.5, None]),
    st.booleans(),
    st.integers(0, 100),
)
def test_equals_plain_batch_norm_on_the_ghosts_in_turn(shape, v, n, contiguous, momentum, affine, seed):
    if len(shape) == 1 and 1 in ghost_sizes(n, v):
        return  # refused: see below
    plain_class, ghost_class = SHAPES[shape]
    plain = plain_class(shape[0], momentum=momentum, affine=affine)
    plain = filled(plain, seed)
    ours = ghost_class(shape[0], v, momentum=momentum, affine=affine, contiguous_groups=contiguous)
    ours.load_state_dict(plain.state_dict())
    g = stream(seed, "x")
    for _ in range(2):
        x = 3 * torch.randn(n, *shape, generator=g) + 1
        ghosts, start, order = [], 0, torch.arange(n)
        sizes = ghost_sizes(n, v)
        whole = [s for s in sizes if s == sizes[0]]
        block = order[: len(whole) * sizes[0]]
        ghosts = list(block.split(sizes[0])) if contiguous else [block[i :: len(whole)] for i in range(len(whole))]
        start = len(block)
        if start < n:
            ghosts.append(order[start:])
        a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
        mine, theirs = ours(a), by_chunks(plain, b, ghosts)
        assert torch.allclose(mine, theirs, atol=1e-5)
        up = torch.randn(x.shape, generator=g)
        grads = torch.autograd.grad(mine, [a, *ours.parameters()], up)
        wanted = torch.autograd.grad(theirs, [b, *plain.parameters()], up)
        assert all(torch.allclose(p, q, atol=1e-4) for p, q in zip(grads, wanted))
    for key, value in plain.state_dict().items():
        assert torch.allclose(ours.state_dict()[key], value, atol=1e-5), key


@given(st.integers(1, 200), st.integers(1, 40))
def test_sizes_of_ghosts(n, v):
    sizes = ghost_sizes(n, v)
    assert sum(sizes) == n
    assert all(s == v for s in sizes[:-1])
    if n > v:
        assert v / 2 <= sizes[-1] < 1.5 * v
    assert ghost_sizes(70, 32) == [32, 38]
    assert ghost_sizes(80, 32) == [32, 32, 16]
    assert ghost_sizes(20, 32) == [20]


def test_a_ghost_as_large_as_the_batch_is_plain_batch_norm():
    x = torch.randn(16, 4)
    for v in (16, 64):
        plain, ours = nn.BatchNorm1d(4), GhostBatchNorm1d(4, v)
        assert torch.equal(plain(x), ours(x))
        assert torch.equal(plain.running_var, ours.running_var)


def test_eval_mode_knows_no_ghosts():
    plain = filled(nn.BatchNorm2d(3), 0).eval()
    ours = GhostBatchNorm2d(3, 4).eval()
    ours.load_state_dict(plain.state_dict())
    x = torch.randn(10, 3, 2, 2)
    assert torch.equal(ours(x), plain(x))
    assert torch.equal(ours(x[:1]), plain(x)[:1])


def test_running_variance_is_each_ghosts_unbiased_one():
    x = (
        torch.cat([torch.zeros(4, 1), torch.full((4, 1), 100.0)])
        + torch.tensor([-1.0, 0.0, 0.0, 1.0]).repeat(2)[:, None]
    )
    ours = GhostBatchNorm1d(1, 4, momentum=1.0, contiguous_groups=True)
    ours(x)
    assert ours.running_mean.item() == pytest.approx(100.0)  # the last ghost's alone with momentum 1
    assert ours.running_var.item() == pytest.approx(2 / 3)  # not the batch's 2857, not the biased 0.5
    assert int(ours.num_batches_tracked) == 2


def test_interleaved_ghosts_are_a_view():
    ours = GhostBatchNorm2d(2, 2)
    x = torch.randn(6, 2, 3, 3)
    y = ours(x)
    for g in range(3):
        rows = y[g::3].transpose(0, 1).flatten(1)
        assert torch.allclose(rows.mean(1), torch.zeros(2), atol=1e-6)
        assert torch.allclose(rows.var(1, unbiased=False), torch.ones(2), atol=1e-3)


def test_without_running_statistics_evaluation_uses_the_batch():
    ours = GhostBatchNorm1d(3, 4, track_running_stats=False)
    assert ours.running_mean is None
    x = torch.randn(8, 3)
    assert not torch.allclose(ours(x), nn.BatchNorm1d(3)(x))
    assert torch.allclose(ours.eval()(x), nn.BatchNorm1d(3)(x), atol=1e-6)


def test_double_precision_and_gradcheck():
    ours = GhostBatchNorm1d(2, 3).double()
    x = torch.randn(7, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: ours(t), (x,))


def test_a_ghost_of_one_value_is_refused_as_torch_does():
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        GhostBatchNorm1d(3, 1)(torch.randn(4, 3))
    with pytest.raises(ValueError, match="more than 1 value per channel.* 5 rows in ghosts of 2"):
        GhostBatchNorm1d(3, 2)(torch.randn(5, 3))  # the remainder of one row is half a ghost: its own
    assert GhostBatchNorm1d(3, 3)(torch.randn(7, 3)).shape == (7, 3)  # here it joins the last
    assert GhostBatchNorm2d(3, 1)(torch.randn(4, 3, 2, 2)).shape == (4, 3, 2, 2)


@pytest.mark.parametrize("size", [0, -3, 2.5])
def test_wrong_ghost_size(size):
    with pytest.raises(ValueError, match="ghost_size must be"):
        GhostBatchNorm1d(3, size)
    with pytest.raises(ValueError, match="ghost_size must be"):
        to_ghost_batchnorm(nn.BatchNorm1d(3), size)


def test_wrong_dimensions_are_refused_as_torch_does():
    with pytest.raises(ValueError, match="expected 4D"):
        GhostBatchNorm2d(3, 2)(torch.randn(4, 3))
    with pytest.raises(ValueError, match=r"expected 3 channels, got an input of shape \(4, 5\)"):
        GhostBatchNorm1d(3, 2)(torch.randn(4, 5))  # not 6 and 10, those of two ghosts
    with pytest.raises(ValueError, match="ghost_size must be a whole number"):
        ghost_batch_norm(torch.randn(4, 3), None, None, ghost_size=0)


def net() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3, momentum=0.3, eps=1e-3), nn.Flatten(),
        nn.Sequential(nn.LazyLinear(4), nn.BatchNorm1d(4, affine=False)), nn.BatchNorm1d(4, track_running_stats=False),
    )  # fmt: skip


def test_swap_keeps_weights_statistics_settings_and_tensors():
    model = net()
    model(torch.randn(8, 1, 5, 5))
    state, weights = copy.deepcopy(model.state_dict()), list(model.parameters())
    model[1].eval()
    found = to_ghost_batchnorm(model, ghost_size=4)
    assert found is model
    assert [type(model[1]), type(model[3][1]), type(model[4])] == [GhostBatchNorm2d, GhostBatchNorm1d, GhostBatchNorm1d]
    assert (model[1].ghost_size, model[1].momentum, model[1].eps) == (4, 0.3, 1e-3)
    assert not model[1].training
    assert all(a is b for a, b in zip(model.parameters(), weights, strict=True))
    assert list(model.state_dict()) == list(state)
    assert all(torch.equal(model.state_dict()[k], v) for k, v in state.items())
    back = net()
    back(torch.randn(8, 1, 5, 5))
    back.load_state_dict(model.state_dict())  # both ways
    x = torch.randn(6, 1, 5, 5)
    assert torch.equal(back.eval()(x), model.eval()(x))


def test_swap_of_a_bare_norm_of_some_and_of_a_tied_one():
    bare = to_ghost_batchnorm(nn.BatchNorm1d(3), 8)
    assert isinstance(bare, GhostBatchNorm1d)
    some = to_ghost_batchnorm(nn.Sequential(nn.BatchNorm1d(2), nn.BatchNorm1d(2)), 4, targets="1")
    assert [type(m) for m in some] == [nn.BatchNorm1d, GhostBatchNorm1d]
    shared = nn.BatchNorm1d(2)
    tied = to_ghost_batchnorm(nn.Sequential(shared, nn.ReLU(), shared), 4)
    assert tied[0] is tied[2]


def test_the_swapped_net_equals_chunked_training_of_the_plain_one():
    """Gradients of the whole net against the authors' loop: chunks forward and backward, averaged."""
    g = stream(0, "net")
    plain = nn.Sequential(
        nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 2)
    )
    ghost = to_ghost_batchnorm(copy.deepcopy(plain), 8, contiguous_groups=True)
    x, y = torch.randn(32, 3, generator=g), torch.randint(2, (32,), generator=g)
    nn.functional.cross_entropy(ghost(x), y).backward()
    for a, b in zip(x.split(8), y.split(8)):
        (nn.functional.cross_entropy(plain(a), b) / 4).backward()
    assert all(torch.allclose(p.grad, q.grad, atol=1e-6) for p, q in zip(ghost.parameters(), plain.parameters()))
    assert all(torch.allclose(p, q, atol=1e-6) for p, q in zip(ghost.buffers(), plain.buffers()))


class OwnNorm(nn.BatchNorm1d):
    """A batch norm with ways of its own."""


def test_what_cannot_be_swapped_is_named():
    with pytest.raises(TargetError, match="has no batch norm to swap"):
        to_ghost_batchnorm(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="0 is a SyncBatchNorm"):
        to_ghost_batchnorm(nn.Sequential(nn.SyncBatchNorm(2), nn.BatchNorm1d(2)))
    with pytest.raises(TargetError, match="'0' does not know its width yet"):
        to_ghost_batchnorm(nn.Sequential(nn.LazyBatchNorm1d()))
    model = nn.Sequential(OwnNorm(3), nn.BatchNorm1d(3))
    with pytest.raises(TargetError, match=r"0 is a OwnNorm, .* give targets to leave it"):
        to_ghost_batchnorm(model)
    assert type(model[1]) is nn.BatchNorm1d
    assert [type(m) for m in to_ghost_batchnorm(model, targets="1")] == [OwnNorm, GhostBatchNorm1d]


@pytest.mark.parametrize("size", [None, float("nan"), float("inf"), 2.5, "4", 0])
def test_ghost_sizes_that_are_no_whole_number(size):
    with pytest.raises(ValueError, match="ghost_size must be a whole number"):
        GhostBatchNorm1d(3, ghost_size=size)


def test_many_seeds_at_once_give_what_each_gives_alone():
    """Under vmap with stacked weights and buffers, running statistics included."""

    def build(seed: int) -> nn.Module:
        return to_ghost_batchnorm(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)), 4)

    g = stream(0, "data")
    data = Split(torch.randn(40, 3, generator=g), torch.randint(2, (40,), generator=g))
    config = TrainConfig(steps=6, batch_size=18, optimizer="sgd", lr=0.1)
    runs = [
        train(
            build, data, loss=lambda m, b: nn.functional.cross_entropy(m(b.x), b.y), config=config, seeds=(0, 1), plan=p
        )
        for p in ("sequential", "vmap")
    ]
    for alone, together in zip(*runs):
        for key, value in alone.module.state_dict().items():
            assert torch.allclose(together.module.state_dict()[key], value, atol=1e-5), key


def test_hooks_stay_and_a_second_call_changes_the_size():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    seen = []
    handle = model[1].register_forward_hook(lambda *_: seen.append(1))
    to_ghost_batchnorm(model, 8)
    model(torch.randn(16, 3))
    assert seen == [1]
    handle.remove()
    to_ghost_batchnorm(model, 2)
    assert model[1].ghost_size == 2
    model(torch.randn(16, 3))
    assert seen == [1]


@pytest.mark.parametrize(
    "register",
    ["register_full_backward_hook", "register_full_backward_pre_hook", "register_state_dict_post_hook",
     "register_state_dict_pre_hook", "register_load_state_dict_post_hook"],
)  # fmt: skip
def test_every_kind_of_hook_stays(register):
    model, seen = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)), []
    getattr(model[1], register)(lambda *_: seen.append(1))
    to_ghost_batchnorm(model, 4)
    model(torch.randn(8, 3)).sum().backward()
    model.load_state_dict(model.state_dict())
    assert seen == [1]


def test_a_second_call_reaches_chosen_ghosts_and_new_batch_norms():
    model = to_ghost_batchnorm(nn.Sequential(nn.BatchNorm1d(4), nn.BatchNorm1d(4)), 8)
    before = list(model)
    to_ghost_batchnorm(model, 4, targets="1", contiguous_groups=True)
    assert [m.ghost_size for m in model] == [8, 4]
    assert list(model) == before
    model.append(nn.BatchNorm1d(4))
    to_ghost_batchnorm(model, 2)
    assert [m.ghost_size for m in model] == [2, 2, 2]
    assert to_ghost_batchnorm(model[0], 16) is model[0]
    with pytest.raises(ValueError, match="ghost_size must be a whole number"):
        to_ghost_batchnorm(model, 0)
    assert [m.ghost_size for m in model] == [16, 2, 2]
