"""CKA of all pairs of layers beside torch-cka; a guided update beside the official loop, which runs the target twice.

cka-pytorch and torchdistill need torchvision; ckatorch does the same as torch-cka.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from etude.data.randomness import seeded_build, stream
from etude.lab.bench import Case
from etude.layers import resnet
from etude.training import Guidance, cka_matrix

ROWS, BATCH = 512, 128


def _nets(depth: int) -> list[nn.Module]:
    return [seeded_build(lambda: resnet((3, 16, 16), depth, 8, 10), stream(s, "init")).eval() for s in (0, 1)]


def _torch_cka(a: nn.Module, b: nn.Module, names: list[str], rows: Tensor) -> Any:
    from torch_cka import CKA  # type: ignore[import-not-found]

    loader = DataLoader(TensorDataset(rows), batch_size=ROWS)

    def compare() -> Tensor:
        peer = CKA(a, b, "a", "b", list(names), list(names), device="cpu")
        peer.compare(loader)
        found: Tensor = peer.export()["CKA"]
        for net in (a, b):  # its hooks stay on the models
            for module in net.modules():
                module._forward_hooks.clear()
        return found

    return compare


def _hsic(K: Tensor, L: Tensor) -> Tensor:
    n = len(K)
    H = torch.eye(n) - 1 / n
    return ((H @ K @ H) * (H @ L @ H)).sum()


class _Twice:
    """The official way: logits from one pass of the target, activations from a second one, CKA pair by pair."""

    def __init__(self, target: nn.Module, guide: nn.Module, names: list[str]) -> None:
        self.nets, self.names = (target, guide), names

    def _activations(self, net: nn.Module, x: Tensor) -> list[Tensor]:
        kept: list[Tensor] = []
        layers = [net.get_submodule(n) for n in self.names]
        handles = [m.register_forward_hook(lambda _, __, out: kept.append(out.flatten(1))) for m in layers]
        net(x)
        for handle in handles:
            handle.remove()
        return kept

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        target, guide = self.nets
        task = F.cross_entropy(target(x), y)
        mine = self._activations(target, x)
        with torch.no_grad():
            theirs = self._activations(guide, x)
        for a, b in zip(mine, theirs):
            K, L = a @ a.T, b @ b.T
            task = task + 1 - _hsic(K, L) / (_hsic(K, K) * _hsic(L, L)).sqrt()
        return task


def cases() -> list[Case]:
    """Residual nets of 20 layers (8 where torch-cka compares all pairs) on 16 x 16 images."""
    a, b = _nets(20)
    rows = torch.rand(ROWS, 3, 16, 16, generator=stream(0, "bench"))
    names = [n for n, m in a.named_modules() if isinstance(m, nn.Conv2d)]

    def ours() -> Tensor:
        return cka_matrix(a, b, [rows], layers=names, debiased=True).values

    made = []
    try:
        peer = _torch_cka(a, b, names, rows)
    except ImportError:
        peer = None
    if peer is not None:
        made.append(
            Case(
                f"CKA of {len(names)} x {len(names)} layers on {ROWS} images", ours, peer, "torch-cka",
                lambda x, y: torch.allclose(x, y, atol=0.05), 3.0,
                "equal to 0.05: torch-cka does not centre its single-precision Gram matrices and is off by up to 0.02",
            )
        )  # fmt: skip
    target, guide = (net.train() if i == 0 else net for i, net in enumerate(_nets(20)))
    x, y = rows[:BATCH], torch.arange(BATCH) % 10
    guidance = Guidance(target, guide, map=[(n, n) for n in names])
    official = _Twice(_nets(20)[0].train(), guide, names)

    def step() -> Tensor:
        value = F.cross_entropy(target(x), y) + guidance.loss(x)
        value.backward()
        target.zero_grad()
        return value.detach()

    def official_step() -> Tensor:
        value = official.loss(x, y)
        value.backward()
        official.nets[0].zero_grad()
        return value.detach()

    made.append(
        Case(
            f"one guided update, {len(names)} pairs, batch {BATCH}", step, official_step, "port of the official loop",
            lambda p, q: torch.allclose(p, q, atol=1e-3), 1.5, "the official loop runs the target twice",
        )
    )  # fmt: skip
    return made
