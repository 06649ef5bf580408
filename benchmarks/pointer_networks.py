"""Pointer network against the usual port: an LSTM cell a step, the memory projected anew at every step.

Same weights, batch and optimiser on both sides; equal loss is part of the comparison.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from etude.data.geometry import convex_hull_targets
from etude.data.planar import planar_problem
from etude.data.randomness import seeded_build, stream
from etude.lab.bench import Case
from etude.layers import PointerNetwork


class StepwisePort(nn.Module):
    """Encoder and decoder as cells in a Python loop; W1 e is computed inside the decoder's loop."""

    def __init__(self, net: PointerNetwork) -> None:
        super().__init__()
        h = net.hidden_size
        self.encoder, self.decoder = nn.LSTMCell(2, h), nn.LSTMCell(2, h)
        for cell, rnn in ((self.encoder, net.encoder), (self.decoder, net.decoder)):
            for name, p in cell.named_parameters():
                p.data.copy_(rnn.get_parameter(f"{name}_l0"))
        self.w1, self.w2 = nn.Linear(h, h, bias=False), nn.Linear(h, h, bias=False)
        self.w1.weight.data.copy_(net.attention.key_proj.weight)
        self.w2.weight.data.copy_(net.attention.query_proj.weight)
        self.v, self.end, self.start = (nn.Parameter(p.detach().clone()) for p in (net.attention.v, net.end, net.start))

    def _encode(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        state = (x.new_zeros(len(x), self.encoder.hidden_size),) * 2
        outputs = [self.end.expand(len(x), -1)]
        for t in range(x.shape[1]):
            state = self.encoder(x[:, t], state)
            outputs.append(state[0])
        return torch.stack(outputs, dim=1), state

    def _scores(self, memory: Tensor, h: Tensor) -> Tensor:
        return torch.tanh(self.w1(memory) + self.w2(h)[:, None]) @ self.v

    def loss(self, x: Tensor, target: Tensor) -> Tensor:
        memory, state = self._encode(x)
        fed, total, count = self.start.expand(len(x), -1), x.new_zeros(()), 0
        sizes = (target >= 0).sum(1)
        for t in range(target.shape[1] + 1):
            state = self.decoder(fed, state)
            logits = self._scores(memory, state[0])
            now = target[:, t] if t < target.shape[1] else torch.full_like(sizes, -1)
            label = torch.where(t < sizes, now + 1, torch.where(t == sizes, 0, -100))
            total = total + F.cross_entropy(logits, label, ignore_index=-100, reduction="sum")
            count += int((label >= 0).sum())
            fed = x.gather(1, now.clamp_min(0)[:, None, None].expand(-1, 1, 2))[:, 0]
        return total / count

    @torch.no_grad()
    def greedy(self, x: Tensor, steps: int) -> Tensor:
        memory, state = self._encode(x)
        fed, out = self.start.expand(len(x), -1), []
        used = torch.zeros(len(x), x.shape[1] + 1, dtype=torch.bool)
        used[:, 0] = True
        for _ in range(steps):
            state = self.decoder(fed, state)
            best = self._scores(memory, state[0]).masked_fill(used, -torch.inf).argmax(1)
            used = used.scatter(1, best[:, None], True)
            out.append(best - 1)
            fed = x.gather(1, (best - 1)[:, None, None].expand(-1, 1, 2))[:, 0]
        return torch.stack(out, dim=1)


def _training(hidden_size: int, n: int, batch: int) -> tuple:
    net = seeded_build(lambda: PointerNetwork(2, hidden_size), stream(0, "init"))
    port = StepwisePort(net)
    data = planar_problem("hull", batch, n, stream(0, "data"))
    start = {"ours": {k: v.clone() for k, v in net.state_dict().items()},
             "port": {k: v.clone() for k, v in port.state_dict().items()}}  # fmt: skip

    def steps(module: nn.Module, loss, initial) -> list[float]:
        module.load_state_dict(initial)
        optimizer = torch.optim.Adam(module.parameters(), 1e-3)
        losses = []
        for _ in range(3):
            optimizer.zero_grad()
            value = loss(data.x, data.y)
            value.backward()
            optimizer.step()
            losses.append(float(value.detach()))
        return losses

    return (lambda: steps(net, lambda x, y: net(x, y).loss, start["ours"]),
            lambda: steps(port, port.loss, start["port"]))  # fmt: skip


def _close(a: list[float], b: list[float]) -> bool:
    return all(abs(x - y) < 1e-3 for x, y in zip(a, b, strict=True))


def _hull_loop(x: Tensor) -> list[list[int]]:
    """The peer's labels: one Qhull call a row."""
    from scipy.spatial import ConvexHull

    rows = []
    for row in x.double().numpy():
        corners = ConvexHull(row).vertices.tolist()
        first = corners.index(min(corners))
        rows.append(corners[first:] + corners[:first])
    return rows


def cases() -> list[Case]:
    """Training steps at two sizes, greedy decoding of long inputs, and hull labels."""
    out = []
    for hidden_size, n, batch in ((64, 10, 128), (256, 50, 128)):
        ours, port = _training(hidden_size, n, batch)
        name = f"3 training steps, hull n={n}, h={hidden_size}, batch {batch}"
        out.append(Case(name, ours, port, "loop over steps", _close, 2.0 if n == 50 else None))
    net = seeded_build(lambda: PointerNetwork(2, 128), stream(0, "init")).eval()
    port = StepwisePort(net)
    x = torch.rand(16, 200, 2, generator=stream(0, "x"))
    out.append(
        Case(
            "greedy permutation of 200 points, 16 rows", lambda: net.generate(x, mask="permutation").sequences,
            lambda: port.greedy(x, 200), "loop over steps", lambda a, b: bool((a == b).float().mean() > 0.99), 1.0,
        )
    )  # fmt: skip
    points = torch.rand(512, 10, 2, generator=stream(0, "points"))
    same = lambda a, b: [[i for i in r if i >= 0] for r in a.tolist()] == b  # noqa: E731
    out.append(
        Case("hull labels, 512 rows of 10", lambda: convex_hull_targets(points), lambda: _hull_loop(points),
             "scipy.spatial.ConvexHull in a loop", same, 5.0)
    )  # fmt: skip
    return out
