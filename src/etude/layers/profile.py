"""What a module costs: parameters, multiply-accumulates, bytes, latency, by sub-module.

MACs are counted by torch's own flop counter (two flops a MAC), so matrix products, convolutions and attention count and
element-wise work does not. Recurrent layers, whose fused kernels it does not see, are counted by their formula.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

_GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


@dataclass(frozen=True)
class Profile:
    """Costs of one forward pass on the example.

    parameters, bytes
        Numbers of parameters and the bytes that parameters and buffers take (tied ones once).
    macs
        Multiply-accumulates.
    kv_bytes
        Bytes of keys and values that attention would keep for the example, where the module says so.
    seconds, spread
        Median of the timed passes, and the distance between their quartiles.
    peak_bytes
        Highest memory on the device during a pass; on a CPU the bytes of all outputs of sub-modules.
    per_module
        MACs by dotted name; "" is the whole.
    """

    parameters: int
    bytes: int
    macs: int
    kv_bytes: int
    seconds: float
    spread: float
    peak_bytes: int
    per_module: Mapping[str, int]


@torch.no_grad()
def profile(model: nn.Module, example: Any, *, repeats: int = 7) -> Profile:
    """Costs of ``model(example)`` (or ``model(*example)`` for a tuple), in the mode that the model is in.

    Raises
    ------
    ValueError
        For fewer than one repeat.
    """
    if repeats < 1:
        raise ValueError(f"repeats must be at least 1, got {repeats}")
    inputs = example if isinstance(example, tuple) else (example,)
    outputs: list[int] = []
    recurrent: dict[str, int] = {}

    def watch(name: str) -> Any:
        def hook(module: nn.Module, given: tuple[Any, ...], out: Any) -> None:
            outputs.append(sum(t.numel() * t.element_size() for t in _tensors(out)))
            if isinstance(module, nn.RNNBase):
                recurrent[name] = recurrent.get(name, 0) + _recurrent_macs(module, given[0])

        return hook

    hooks = [m.register_forward_hook(watch(n)) for n, m in model.named_modules()]
    counter = FlopCounterMode(display=False)
    try:
        with counter:
            model(*inputs)
    finally:
        for h in hooks:
            h.remove()
    counts = {_dotted(name, model): sum(found.values()) // 2 for name, found in counter.get_flop_counts().items()}
    for name, macs in recurrent.items():
        unseen = macs - counts.get(name, 0)  # which kernels the counter sees depends on the device
        for place in {"", *_ancestors(name)}:
            counts[place] = counts.get(place, 0) + unseen
    cuda = any(p.is_cuda for p in model.parameters())
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        model(*inputs)
        if cuda:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    timed = torch.tensor(times[1:])  # the first pass warms up
    low, middle, high = torch.quantile(timed, torch.tensor([0.25, 0.5, 0.75])).tolist()
    state = {id(t): t for t in (*model.parameters(), *model.buffers())}
    kv = getattr(model, "kv_bytes", None)
    return Profile(
        sum(p.numel() for p in model.parameters()),
        sum(t.numel() * t.element_size() for t in state.values()),
        counts.get("", 0),
        int(kv(*inputs)) if callable(kv) else 0,
        middle,
        high - low,
        torch.cuda.max_memory_allocated() if cuda else sum(outputs),
        counts,
    )


def _recurrent_macs(module: nn.RNNBase, x: Any) -> int:
    """Gates times (inputs + hidden units) times hidden units, a step, layer and direction."""
    steps = len(x.data) if isinstance(x, nn.utils.rnn.PackedSequence) else x.numel() // x.shape[-1]
    gates = _GATES.get(module.mode.split("_")[0], 1)
    ways = 2 if module.bidirectional else 1
    hidden = module.hidden_size
    total = 0
    for layer in range(module.num_layers):
        width = module.input_size if layer == 0 else hidden * ways
        total += ways * gates * hidden * (width + hidden)
    return steps * total


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        value = list(value.values())
    return [t for v in value for t in _tensors(v)] if isinstance(value, list | tuple) else []


def _dotted(name: str, model: nn.Module) -> str:
    """The counter's "Global" and "Sequential.0.1" as names of sub-modules."""
    root = type(model).__name__
    return "" if name in ("Global", root) else name.removeprefix(f"{root}.")


def _ancestors(name: str) -> list[str]:
    parts = name.split(".") if name else []
    return [".".join(parts[: i + 1]) for i in range(len(parts))]
