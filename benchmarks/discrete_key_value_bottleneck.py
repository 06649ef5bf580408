"""The key-value bottleneck at the paper's size, against one built on vector-quantize-pytorch.

B = 256 rows of D = 2048, C = 256 codebooks of J = 4096 pairs, keys of width 14, 10 classes. Both sides share
projection, keys and values; a step is one update of the values by clipped SGD. The notes hold the peak memory of a
fresh process that makes three steps, above what it held before the first. That five steps give the same values is shown
with C = 32 and J = 512, where it takes seconds.
"""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from etude.continual import KeyValueBottleneck
from etude.data.randomness import stream
from etude.lab.bench import Case

ROWS, WIDTH, BOOKS, PAIRS, KEY, CLASSES = 256, 2048, 256, 4096, 14, 10
LR = 0.3


def _bottleneck(books: int = BOOKS, pairs: int = PAIRS) -> KeyValueBottleneck:
    kv = KeyValueBottleneck(WIDTH, books, pairs, KEY, CLASSES, generator=stream(0, "init"))
    return kv.freeze_keys().train()


def _rows() -> tuple[Tensor, Tensor]:
    e = torch.randn(ROWS, WIDTH, generator=stream(0, "x"))
    return e, torch.randint(0, CLASSES, (ROWS,), generator=stream(0, "y"))


class _Peer(nn.Module):
    """vector-quantize-pytorch for the keys, an ordinary parameter for the values."""

    def __init__(self, kv: KeyValueBottleneck) -> None:
        from vector_quantize_pytorch import VectorQuantize

        super().__init__()
        books, pairs, _ = kv.keys.shape
        self.vq = VectorQuantize(
            dim=books * KEY, codebook_size=pairs, heads=books, separate_codebook_per_head=True, codebook_dim=KEY
        )
        with torch.no_grad():
            self.vq.codebook.copy_(kv.keys)
        self.projection, self.values = kv.projection, nn.Parameter(torch.zeros(books, pairs, CLASSES))
        self.books = torch.arange(books)

    def cells(self, e: Tensor) -> Tensor:
        with torch.no_grad():
            return self.vq((e @ self.projection)[:, None])[1][:, 0]  # type: ignore[no-any-return]

    def forward(self, e: Tensor) -> Tensor:
        return self.values[self.books, self.cells(e)].mean(1)


def _own_step(kv: KeyValueBottleneck, e: Tensor, y: Tensor) -> Callable[[], Tensor]:
    def step() -> Tensor:
        kv.learn(e, y, lr=LR)
        return kv.values

    return step


def _peer_step(peer: _Peer, e: Tensor, y: Tensor) -> Callable[[], Tensor]:
    optimizer = torch.optim.SGD([peer.values], lr=LR)

    def step() -> Tensor:
        optimizer.zero_grad()
        F.cross_entropy(peer(e), y, label_smoothing=0.1).backward()
        torch.nn.utils.clip_grad_norm_([peer.values], 1.0)
        optimizer.step()
        return peer.values

    return step


def _own_placing(kv: KeyValueBottleneck, u: Tensor) -> Callable[[], Tensor]:
    return lambda: kv.quantizer.train()(u).indices[..., 0]


def _peer_placing(peer: _Peer, u: Tensor) -> Callable[[], Tensor]:
    peer.vq.train()
    flat = u.flatten(1)[:, None]
    return lambda: peer.vq(flat)[1][:, 0]


def _make(side: str, what: str, books: int = BOOKS, pairs: int = PAIRS) -> Callable[[], Tensor]:
    kv = _bottleneck(books, pairs)
    e, y = _rows()
    if side == "ours":
        return _own_step(kv, e, y) if what == "step" else _own_placing(kv, kv.heads(e))
    u, peer = kv.heads(e), _Peer(kv).eval()
    del kv
    return _peer_step(peer, e, y) if what == "step" else _peer_placing(peer, u)


def _peak(side: str, what: str) -> float:
    """MiB that three calls need above what was held before, in a process of its own."""
    command = [sys.executable, __file__, side, what]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(json.loads(done.stdout.splitlines()[-1]))


def _measure(side: str, what: str) -> float:
    """Linux only: the high-water mark of the resident memory is set back before the calls."""
    call = _make(side, what)
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    for _ in range(3):
        call()
    return (_status("VmHWM") - before) / 1024


def _status(field: str) -> int:
    """KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1])


def _same_values(ours: Any, peer: Any) -> bool:
    """Both sides were called equally often, so the tables agree; one cell in 10^4 may differ by a rounded tie."""
    gap = (ours - peer).abs().amax(-1)
    return bool((gap > 1e-5 * peer.abs().max()).float().mean() < 1e-4)


def cases() -> list[Case]:
    """A training step, a training step on kept cells, a step that places keys."""
    try:
        import vector_quantize_pytorch as _  # noqa: F401
    except ImportError:
        return []
    e, y = _rows()
    kept = _bottleneck()
    size = "B=256 C=256 J=4096 dk=14"
    notes = {
        what: f"peak memory {_peak('ours', what):.0f} MiB, peer {_peak('peer', what):.0f} MiB"
        for what in ("step", "placing")
    }
    return [
        Case(f"training step, {size}", _make("ours", "step"), _make("peer", "step"), "vector-quantize-pytorch",
             target=3.0, note=notes["step"]),
        Case(f"training step on kept cells, {size}", _own_step(kept, kept.cells(e), y), _make("peer", "step"),
             "vector-quantize-pytorch", target=3.0),
        Case(f"key placement step, {size}", _make("ours", "placing"), _make("peer", "placing"),
             "vector-quantize-pytorch", target=3.0, note=notes["placing"]),
        Case("the same values after five steps, C=32 J=512", _several("ours"), _several("peer"),
             "vector-quantize-pytorch", same=_same_values),
    ]  # fmt: skip


def _several(side: str) -> Callable[[], Tensor]:
    """Five steps from zero, anew at each call."""
    call = _make(side, "step", 32, 512)

    def run() -> Tensor:
        table = call()
        with torch.no_grad():
            table.zero_()
        for _ in range(5):
            table = call()
        return table.detach().clone()

    return run


if __name__ == "__main__":
    sys.stdout.write(json.dumps(_measure(sys.argv[1], sys.argv[2])) + "\n")
