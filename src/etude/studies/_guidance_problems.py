"""What is guided by what: data, nets, lengths and layer pairs of the study of guidance."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from etude.data.batching import sampled
from etude.data.mnist1d import mnist1d
from etude.data.randomness import seeded_build, stream
from etude.data.sequences import copy_paste, parity
from etude.data.tasks import Split
from etude.layers import DecoderConfig, DecoderLM, RecurrentLM, convnet, make_rnn, mlp
from etude.layers.blocks import TransformerConfig, TransformerStack
from etude.layers.positions import LearnedPositions
from etude.training import TrainConfig, train


class StridedCNN(nn.Module):
    """Three convolutions of stride 2 on signals (B, length), then linear."""

    def __init__(self, length: int, num_classes: int, channels: int = 25) -> None:
        super().__init__()
        sizes = [1, channels, channels, channels]
        self.convs = nn.ModuleList(nn.Conv1d(a, b, 5, stride=2, padding=1) for a, b in pairwise(sizes))
        for _ in self.convs:
            length = (length - 3) // 2 + 1
        self.fc = nn.Linear(channels * length, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = x[:, None]
        for conv in self.convs:
            x = F.relu(conv(x))
        return self.fc(x.flatten(1))


class DeepCNN(nn.Module):
    """`depth` 3-convolutions with batch norm on signals (B, length), stride 2 at a third and two thirds."""

    def __init__(self, num_classes: int, depth: int = 24, channels: int = 16, *, skip: bool) -> None:
        super().__init__()
        self.strides = [2 if i in (depth // 3, 2 * depth // 3) else 1 for i in range(depth)]
        self.convs = nn.ModuleList(
            nn.Conv1d(1 if i == 0 else channels, channels, 3, stride=s, padding=1, bias=False)
            for i, s in enumerate(self.strides)
        )
        self.norms = nn.ModuleList(nn.BatchNorm1d(channels) for _ in range(depth))
        self.fc = nn.Linear(channels, num_classes)
        self.skip = skip

    def forward(self, x: Tensor) -> Tensor:
        x = x[:, None]
        for conv, norm, stride in zip(self.convs, self.norms, self.strides, strict=True):
            y = norm(conv(x))
            x = F.relu(x + y if self.skip and stride == 1 and x.shape == y.shape else y)
        return self.fc(x.mean(2))


class Tagger(RecurrentLM):
    """A recurrent net that labels each step: ids (B, T) -> logits (B, T, vocab_size)."""

    def __init__(self, width: int, num_layers: int, vocab_size: int) -> None:
        super().__init__(make_rnn("elman", width, width, num_layers=num_layers), vocab_size)

    def forward(self, ids: Tensor) -> Tensor:  # type: ignore[override]
        return self.head(self.run(ids)[0])


class Encoder(nn.Module):
    """Embedding, positions, full attention, head: ids (B, T) -> logits (B, T, classes)."""

    def __init__(self, vocab_size: int, num_classes: int, hidden_dim: int, num_layers: int, length: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocab_size, hidden_dim)
        self.positions = LearnedPositions(length, hidden_dim)
        config = TransformerConfig(num_layers=num_layers, hidden_dim=hidden_dim, causal=False, max_length=length)
        self.stack = TransformerStack(config)
        self.head = nn.Linear(hidden_dim, num_classes)

    def forward(self, ids: Tensor) -> Tensor:
        where = torch.arange(ids.shape[1], device=ids.device)
        return self.head(self.stack(self.embed(ids) + self.positions(where, ids.shape[1])))


@dataclass(frozen=True)
class Problem:
    """`data(seed)` is what `train` takes, `test(seed)` rows of known targets."""

    name: str
    target: Callable[[], nn.Module]
    guide: Callable[[], nn.Module]
    data: Callable[[int], Any]
    test: Callable[[int], Split]
    config: TrainConfig
    guide_config: TrainConfig
    alpha: float
    pairs: Any = "even"
    mask: Callable[[Any], Tensor] | None = None

    def loss(self, model: Any, batch: Any) -> Tensor:
        """Cross-entropy of the asked-for targets."""
        return F.cross_entropy(model(batch.x).flatten(0, -2), batch.y.flatten(), ignore_index=-100)

    @torch.no_grad()
    def correct(self, model: nn.Module, rows: Split) -> Tensor:
        """(asked-for targets,) whether the model names each."""
        right = model(rows.x).argmax(-1) == rows.y
        return right[rows.y != -100]


def problem(protocol: str, config: Any, task: Any = None) -> Problem:
    """The study's problem of this name; `task` is the user's data, or None."""
    if protocol in ("copy", "parity"):
        return _copy(config) if protocol == "copy" else _parity(config)
    if task is not None:
        return _users(config, task)
    rows = {"train": lambda s: _signals(config, s).train, "test": lambda s: _signals(config, s).test}
    plain = TrainConfig(steps=config.fcn_steps, batch_size=128)
    strided = TrainConfig(steps=config.fcn_guide_steps, batch_size=128, lr=1e-2)
    depth = config.cnn_depth
    if protocol == "plain_cnn":
        return Problem(
            protocol, lambda: DeepCNN(10, depth, skip=False), lambda: DeepCNN(10, depth, skip=True),
            rows["train"], rows["test"], TrainConfig(steps=config.cnn_steps, batch_size=config.batch_size),
            TrainConfig(steps=config.cnn_guide_steps, batch_size=config.batch_size, lr=3e-3), config.cnn_alpha,
            pairs=[(f"convs.{i}", f"convs.{i}") for i in range(depth)],
        )  # fmt: skip
    sizes = (40, *[100] * config.fcn_depth, 10) if protocol == "deep_fcn" else (40, 400, 400, 10)
    return Problem(
        protocol, lambda: mlp(sizes, norm="batch"), lambda: StridedCNN(40, 10), rows["train"], rows["test"],
        plain, strided, config.alpha,
    )  # fmt: skip


@lru_cache(8)
def _signals(config: Any, seed: int) -> Any:
    return mnist1d(config.train_rows, 1000, seed)


def _copy(config: Any) -> Problem:
    n, symbols, width = config.copy_length, 8, config.copy_width
    layers = config.copy_layers

    def draw(generator: torch.Generator, step: int) -> Split:
        return Split(*copy_paste(config.batch_size, n, generator, symbols=symbols)[:2])

    shape = DecoderConfig(num_layers=layers, hidden_dim=width, vocab_size=symbols + 1, max_length=2 * n, tie=False)
    common: dict[str, Any] = dict(batch_size=config.batch_size, optimizer="adamw", clip_norm=0.25)
    return Problem(
        "copy", lambda: Tagger(width, layers, symbols + 1), lambda: DecoderLM(shape),
        lambda s: sampled(draw), lambda s: Split(*copy_paste(1000, n, stream(s, "test"), symbols=symbols)[:2]),
        TrainConfig(steps=config.copy_steps, **common), TrainConfig(steps=config.copy_guide_steps, **common),
        config.alpha, pairs=[("embed", "embed"), ("rnn", "stack.norm")],
    )  # fmt: skip


def _parity(config: Any) -> Problem:
    longest, width, layers = config.parity_length, config.copy_width, config.copy_layers

    def draw(generator: torch.Generator, step: int) -> Split:
        return Split(*parity(64, (2, longest), generator)[:2])

    common: dict[str, Any] = dict(batch_size=64, optimizer="adamw", clip_norm=0.25)
    return Problem(
        "parity", lambda: Encoder(3, 2, width, layers, longest), lambda: Tagger(width, 1, 3),
        lambda s: sampled(draw), lambda s: Split(*parity(2000, (2, longest), stream(s, "test"))[:2]),
        TrainConfig(steps=config.parity_steps, **common), TrainConfig(steps=config.parity_steps, **common),
        config.alpha, pairs=[("embed", "embed"), ("stack.norm", "rnn")], mask=lambda batch: batch.x != 2,
    )  # fmt: skip


def _users(config: Any, task: Any) -> Problem:
    """A deep fully connected net on the user's rows, guided by a convolutional net or a shallow wide one."""

    @lru_cache(8)
    def parts(seed: int) -> Any:
        official = getattr(task, "test", None) is not None
        made = task.task(seed, (len(task.y), 0) if official else (0.7, 0.0, 0.3))
        return made.num_classes, made.train, made.test

    classes, rows, _ = parts(0)
    shape = tuple(rows.x.shape[1:])
    inputs = rows.x[0].numel()
    batch = min(128, rows.n)
    images, wide = len(shape) == 3, (inputs, 256, 256, classes)
    return Problem(
        "user", lambda: nn.Sequential(nn.Flatten(), *mlp((inputs, *[100] * config.fcn_depth, classes), norm="batch")),
        lambda: convnet(shape, (16, 32), classes, norm="batch") if images else mlp(wide, norm="batch"),
        lambda s: parts(s)[1], lambda s: parts(s)[2],
        TrainConfig(steps=config.fcn_steps, batch_size=batch, drop_last=True),
        TrainConfig(steps=config.fcn_steps, batch_size=batch, drop_last=True), config.alpha,
    )  # fmt: skip


_guides: dict[Any, nn.Module] = {}  # trained once a process: four arms ask for the same one


def trained_guide(p: Problem, seed: int, key: Any, device: str) -> nn.Module:
    """The guide, trained on the target's own data; its start and the order of its batches are not the target's."""
    full = (p.name, seed, key, device)
    if full not in _guides:
        while len(_guides) >= 8:
            _guides.pop(next(iter(_guides)))
        own = int(torch.randint(2**31, (1,), generator=stream(seed, "trained guide")))
        (done,) = train(
            lambda s: p.guide(), p.data(seed), loss=p.loss, config=p.guide_config, seeds=(own,), device=device
        )  # fmt: skip
        _guides[full] = done.module
    return _guides[full]


def untrained(build: Callable[[], nn.Module], seed: int, device: str) -> nn.Module:
    """A net at its start, by a stream of its own."""
    return seeded_build(build, stream(seed, "guide")).to(device).eval()


class Shuffled(nn.Module):
    """A guide that sees another row of the batch in each row's place: the pull without the content."""

    def __init__(self, guide: nn.Module, generator: torch.Generator) -> None:
        super().__init__()
        self.guide, self.generator = guide, generator

    def forward(self, x: Tensor) -> Any:
        return self.guide(x[torch.randperm(len(x), generator=self.generator).to(x.device)])
