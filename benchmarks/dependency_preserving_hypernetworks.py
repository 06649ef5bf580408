"""A step of the output regulariser with all old tasks in one batch, beside a loop over old tasks and hypnettorch.

hypnettorch 0.0.4 and hypercl loop over old tasks; hypercl is no package. avalanche-lib imports torchvision, whose
published wheels do not load beside a CPU build of torch, so EWC and MAS on the target are ours in the study and not
timed here. The cell loop computes what `nn.LSTM` computes fused.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from etude.continual import ContinualHypernet
from etude.data.randomness import seeded_build, stream
from etude.hypernetworks import HyperNetwork, RecurrentHyperNetwork, TaskCondition
from etude.lab.bench import Case
from etude.layers import mlp

SIZES, TASKS, BETA = (196, 64, 64, 10), 8, 0.1


def _rows() -> tuple[Tensor, Tensor]:
    return torch.randn(64, SIZES[0], generator=stream(0, "x")), torch.randint(0, 10, (64,), generator=stream(0, "y"))


def _learner(kind: str) -> ContinualHypernet:
    def build() -> HyperNetwork:
        net = mlp(SIZES)
        if kind == "rnn":
            return RecurrentHyperNetwork(net, task_dim=16, chunk_size=150, hidden=24)
        return HyperNetwork(net, TaskCondition(1, 16), strategy="chunk", hidden=(40, 40), num_chunks=109, init="gain")

    cl = ContinualHypernet(seeded_build(build, stream(0, "init")), beta=BETA, generator=stream(0, "tasks"))
    for t in range(TASKS):
        cl.begin_task(t)
        if t < TASKS - 1:
            cl.end_task()
    with torch.no_grad():
        for i, p in enumerate(cl.hyper.generator.parameters()):
            p.add_(0.01 * torch.randn(p.shape, generator=stream(i, "move")))
    return cl


def _grads(cl: ContinualHypernet, loss: Tensor) -> Tensor:
    params = [p for p in cl.parameters() if p.requires_grad]
    found = torch.autograd.grad(loss, params, allow_unused=True)
    return torch.cat([torch.zeros(p.numel()) if g is None else g.flatten() for p, g in zip(params, found)])


def _ours(cl: ContinualHypernet) -> Callable[[], Tensor]:
    x, y = _rows()
    return lambda: _grads(cl, F.cross_entropy(cl(x), y) + cl.penalty())


def _loop(cl: ContinualHypernet) -> Callable[[], Tensor]:
    """One pass of the generator a task, as the published code has it."""
    x, y = _rows()
    targets = cl._kept.targets
    assert targets is not None

    def step() -> Tensor:
        loss = F.cross_entropy(cl.hyper(x, task=TASKS - 1), y)
        terms = [(cl.hyper.generate_flat(task=j)[0] - targets[j]).square().sum() for j in range(TASKS - 1)]
        return _grads(cl, loss + BETA * torch.stack(terms).mean())

    return step


def _cells(cl: ContinualHypernet) -> Callable[[], Tensor]:
    """The same loop with an LSTM cell a chunk."""
    generator: Any = cl.hyper.generator
    cell = nn.LSTMCell(generator.rnn.input_size, generator.rnn.hidden_size)
    for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
        setattr(cell, name, getattr(generator.rnn, f"{name}_l0"))
    scale = torch.repeat_interleave(cl.hyper.gain, cl.hyper._sizes())
    x, y = _rows()
    targets = cl._kept.targets
    assert targets is not None

    def weights(task: int) -> Tensor:
        e = cl.condition.rows[task][None]
        h = torch.tanh(generator.start(e))
        c, out = torch.zeros_like(h), []
        for place in generator.places:
            h, c = cell(torch.cat([e, place[None]], 1), (h, c))
            out.append(generator.head(h))
        return torch.cat(out, 1)[0, : cl.hyper.layout.size] * scale + cl.hyper.offset

    def step() -> Tensor:
        loss = F.cross_entropy(cl.hyper.forward_flat(x, weights(TASKS - 1), task=TASKS - 1), y)
        terms = [(weights(j) - targets[j]).square().sum() for j in range(TASKS - 1)]
        return _grads(cl, loss + BETA * torch.stack(terms).mean())

    return step


def _peer() -> Callable[[], Tensor] | None:
    """hypnettorch's chunked hypernetwork with its own regulariser; None where it cannot be imported."""
    try:
        from hypnettorch.hnets import ChunkedHMLP
        from hypnettorch.utils import hnet_regularizer
    except ImportError:
        return None
    shapes = [list(p.shape) for p in mlp(SIZES).parameters()]
    hnet = ChunkedHMLP(
        shapes, 160, layers=(40, 40), chunk_emb_size=8, cond_in_size=16, num_cond_embs=TASKS, cond_chunk_embs=False,
        verbose=False,
    )  # fmt: skip
    targets = hnet_regularizer.get_current_targets(TASKS - 1, hnet)
    x, y = _rows()
    params = list(hnet.parameters())

    def step() -> Tensor:
        w = hnet.forward(cond_id=TASKS - 1)
        h = F.relu(F.linear(x, w[0], w[1]))
        h = F.relu(F.linear(h, w[2], w[3]))
        loss = F.cross_entropy(F.linear(h, w[4], w[5]), y)
        loss = loss + BETA * hnet_regularizer.calc_fix_target_reg(hnet, TASKS - 1, targets=targets)
        found = torch.autograd.grad(loss, params, allow_unused=True)
        return torch.cat([g.flatten() for g in found if g is not None])

    return step


def _close(a: Any, b: Any) -> bool:
    return torch.allclose(a, b, rtol=1e-3, atol=1e-4)


def cases() -> list[Case]:
    """The study's generators with 7 old tasks: gradients of task loss and regulariser, batch 64."""
    rnn, chunked, peer = _learner("rnn"), _learner("chunked"), _peer()
    found = [
        Case("gradients, recurrent, 7 old tasks", _ours(rnn), _loop(rnn), "loop over old tasks", _close, 3.0),
        Case(
            "gradients, recurrent, 7 old tasks", _ours(rnn), _cells(rnn), "loop over old tasks and cells", _close, 3.0
        ),
        Case("gradients, chunked, 7 old tasks", _ours(chunked), _loop(chunked), "loop over old tasks", _close, 3.0),
    ]
    if peer is not None:
        found.append(Case("gradients, chunked, 7 old tasks", _ours(chunked), peer, "hypnettorch", target=3.0))
    return found
