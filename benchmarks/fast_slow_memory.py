"""Episodes of 50 items, 5 classes, batch 32, controllers of 200 (the sizes of memory-augmented networks): the fast path
against the same network without it, fast weights as lists against dense ones, one adaptation against MAML.

Peers: `dnc` for the step of a memory and `higher` for MAML, where they are installed (their newest releases are of 2019
and 2021); `learn2learn` does not build under this Python, so it is in no row.
"""

import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from etude.data.randomness import seeded_build, stream
from etude.incontext import EpisodeMAML, FastSlowMemory
from etude.incontext.few_shot_tasks import prototype_episodes, sinusoid_episodes
from etude.lab.bench import Case
from etude.layers import ContentMemory, FastLinear

BATCH, ITEMS, CLASSES, DIM, WIDTH = 32, 50, 5, 64, 200


def _training(net: nn.Module, x: Tensor, y: Tensor) -> Callable[[], float]:
    def run() -> float:
        net.zero_grad()
        out = net(x, y)
        loss = out.loss + out.synthetic_loss
        loss.backward()
        return float(loss.detach())

    return run


def _dense(layer: FastLinear, inputs: list[Tensor], deltas: list[Tensor]) -> Tensor:
    """The same fast weights as a (B, out, in) tensor that is rewritten at every step."""
    theta = inputs[0].new_zeros(len(inputs[0]), *layer.linear.weight.shape)
    outputs = []
    for x, d in zip(inputs, deltas, strict=True):
        outputs.append(layer.linear(x) + torch.einsum("boi,bi->bo", theta, x))
        theta = theta - 0.1 * d[:, :, None] * x[:, None, :]
    return torch.stack(outputs)


def _listed(layer: FastLinear, inputs: list[Tensor], deltas: list[Tensor]) -> Tensor:
    fast = layer.start(len(inputs[0]))
    outputs = []
    for x, d in zip(inputs, deltas, strict=True):
        outputs.append(layer(x, fast))
        fast = layer.update(fast, d, x, 0.1)
    return torch.stack(outputs)


def _higher(net: nn.Sequential, x: Tensor, y: Tensor, known: int, steps: int, lr: float) -> Tensor:
    """MAML's inner loop on the first `known` points of every episode, one episode after another."""
    import higher

    outputs = []
    for points, values in zip(x, y[..., None], strict=True):
        with higher.innerloop_ctx(net, torch.optim.SGD(net.parameters(), lr=lr), track_higher_grads=False) as (f, opt):
            for _ in range(steps):
                opt.step(F.mse_loss(f(points[:known]), values[:known]))
            outputs.append(f(points).detach())
    return torch.stack(outputs)


def _installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def cases() -> list[Case]:
    """Training steps a second, memory steps, and the cost of one adaptation."""
    e = prototype_episodes(BATCH, ITEMS, stream(0, "e"), classes=CLASSES, dim=DIM)
    torch_free: dict[str, Any] = {"slots": 128, "width": 40, "hidden_size": WIDTH}
    fast, lean, plain = (
        seeded_build(lambda o=o: FastSlowMemory(DIM, CLASSES, **torch_free, **o), stream(0, "net"))  # type: ignore[misc]
        for o in ({}, {"synthetic": False}, {"feedback": None})
    )
    layer = FastLinear(seeded_build(lambda: nn.Linear(WIDTH, WIDTH), stream(0, "layer")))
    draws = torch.randn(2, ITEMS, BATCH, WIDTH, generator=stream(0, "d"))
    inputs, deltas = (list(d) for d in draws)

    memory = ContentMemory(128, 40)
    M, q, v = (torch.randn(BATCH, *s, generator=stream(0, str(i))) for i, s in enumerate(((128, 40), (40,), (40,))))
    gate = torch.rand(BATCH, 1, generator=stream(0, "gate"))

    def ours_memory() -> Tensor:
        found = memory.read(q, M)
        return memory.read(q, memory.write(M, found.weights, v, gate)).weights

    maml = EpisodeMAML(DIM, CLASSES, 5, hidden_size=WIDTH, task="classification").eval()
    session = fast.start(BATCH)
    labels = F.one_hot(e.y, CLASSES).float()
    known, last = torch.ones_like(e.y, dtype=torch.bool), torch.tensor([ITEMS - 1])

    def adapt_ours() -> Tensor:
        return session.observe(e.x[:, 0], e.y[:, 0])

    def adapt_maml() -> Tensor:
        return maml.adapted(e.x, labels, known, last).detach()

    without = _training(plain, e.x, e.y)
    same_net, target = "same net without fast path", "training step, fast path (0.67: 1.5 times its time)"
    out = [
        Case(target, _training(fast, e.x, e.y), without, same_net, None, 0.67),
        Case("training step without L_syn", _training(lean, e.x, e.y), without, same_net, None, None),
        Case("50 fast steps of a layer of 200", lambda: _listed(layer, inputs, deltas),
             lambda: _dense(layer, inputs, deltas), "dense (B, out, in) tensors", _close, 1.0),
        Case("one adaptation", adapt_ours, adapt_maml, "MAML here, 5 steps on 49 items", None, 5.0, "equal widths"),
    ]  # fmt: skip
    if _installed("dnc"):
        from dnc.memory import Memory

        peer = Memory(input_size=40, mem_size=128, cell_size=40, read_heads=1)
        state = peer.reset(BATCH)
        out.append(
            Case("one memory step, 128 x 40", ours_memory, lambda: peer(q, state)[0].detach(), "dnc", None, 1.0,
                 "dnc also keeps temporal links and makes its own interface")
        )  # fmt: skip
    if _installed("higher"):
        waves = sinusoid_episodes(32, 10, stream(0, "waves"))
        learner = EpisodeMAML(1, 1, 5).eval()
        values, there = waves.y[..., None], torch.ones(32, 10, dtype=torch.bool)
        out.append(
            Case("MAML, 5 steps on 32 sinusoids",
                 lambda: learner.adapted(waves.x, values, there, torch.tensor([9])).detach()[:, 0],
                 lambda: _higher(learner.start, waves.x, waves.y, 9, 5, 0.01), "higher", _close, 1.0)
        )  # fmt: skip
    return out


def _close(a: Tensor, b: Tensor) -> bool:
    return bool(torch.allclose(a, b, atol=1e-2))
