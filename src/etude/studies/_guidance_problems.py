"""What is guided by what: data, nets, lengths and layer pairs of the study of guidance."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from etude.data.batching import sampled
from etude.data.mnist1d import mnist1d
from etude.data.randomness import stream
from etude.data.sequences import copy_paste, parity
from etude.data.tasks import Split
from etude.layers import DecoderConfig, DecoderLM, convnet, mlp
from etude.studies._guidance_nets import DeepCNN, Encoder, StridedCNN, Tagger, residual_net
from etude.training import TrainConfig


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
    residual = config.fcn_guide == "resnet"
    guide = TrainConfig(steps=config.fcn_guide_steps, batch_size=128, lr=3e-3 if residual else 1e-2)
    depth = config.cnn_depth
    if protocol == "plain_cnn":
        return Problem(
            protocol, lambda: DeepCNN(10, depth, skip=False), lambda: DeepCNN(10, depth, skip=True),
            rows["train"], rows["test"], TrainConfig(steps=config.cnn_steps, batch_size=config.batch_size),
            TrainConfig(steps=config.cnn_guide_steps, batch_size=config.batch_size, lr=3e-3), config.cnn_alpha,
            pairs=[(f"convs.{i}", f"convs.{i}") for i in range(depth)],
        )  # fmt: skip
    sizes = (40, *[config.fcn_width] * config.fcn_depth, 10) if protocol == "deep_fcn" else (40, 400, 400, 10)
    return Problem(
        protocol, lambda: mlp(sizes, norm="batch"), lambda: residual_net(40, 10) if residual else StridedCNN(40, 10),
        rows["train"], rows["test"], plain, guide, config.alpha,
    )  # fmt: skip


@lru_cache(8)
def _signals(config: Any, seed: int) -> Any:
    return mnist1d(config.train_rows, 1000, seed)


def _copy(config: Any) -> Problem:
    n, symbols, width = config.copy_length, config.copy_symbols, config.copy_width
    layers, longest = config.copy_layers, max(config.copy_length, config.copy_longest or 0)

    def draw(generator: torch.Generator, step: int) -> Split:
        length = n if longest == n else int(torch.randint(n, longest + 1, (1,), generator=generator))
        return Split(*copy_paste(config.batch_size, length, generator, symbols=symbols)[:2])

    shape = DecoderConfig(
        num_layers=layers, hidden_dim=width, vocab_size=symbols + 1, max_length=2 * longest, tie=False
    )
    common: dict[str, Any] = dict(batch_size=config.batch_size, optimizer="adamw", clip_norm=0.25)
    return Problem(
        "copy", lambda: Tagger(width, layers, symbols + 1), lambda: DecoderLM(shape),
        lambda s: sampled(draw), lambda s: Split(*copy_paste(1000, longest, stream(s, "test"), symbols=symbols)[:2]),
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
    deep = (inputs, *[config.fcn_width] * config.fcn_depth, classes)
    return Problem(
        "user", lambda: nn.Sequential(nn.Flatten(), *mlp(deep, norm="batch")),
        lambda: convnet(shape, (16, 32), classes, norm="batch") if images else mlp(wide, norm="batch"),
        lambda s: parts(s)[1], lambda s: parts(s)[2],
        TrainConfig(steps=config.fcn_steps, batch_size=batch, drop_last=True),
        TrainConfig(steps=config.fcn_steps, batch_size=batch, drop_last=True), config.alpha,
    )  # fmt: skip
