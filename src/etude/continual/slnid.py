"""Sparse, decorrelated codes by local inhibition (SLNID): neighbours that are active together are punished.

    R = (1/M) sum_{i != j} exp(-(alpha_i + alpha_j)) exp(-(i - j)^2 / (2 sigma^2)) sum_m h_i^m h_j^m

h: outputs (M, width) of a hidden ReLU layer; alpha_i: importance of neuron i for earlier tasks, which switches the
inhibition off where a neuron is used. Source: Aljundi 2019, arXiv 1910.02718 (arXiv 1806.05421, eq. 5 and 6). As one
matrix: sum of (H^T H / M) * locality * discount, without the diagonal.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from etude.continual.importance import Forward, batches_of, check_gradients, num_rows, outputs, wide
from etude.layers.modes import evaluating
from etude.layers.surgery import Record, Targets, match


def local_inhibition(h: Tensor, sigma: float, alpha: Tensor | None = None) -> Tensor:
    """R of one layer, a scalar, in float32 at least.

    Parameters
    ----------
    h
        (M, width) activations, at least 0; images' (M, C, H, W) count as M * H * W rows of C channels.
    sigma
        Reach of the inhibition, in neurons; infinite: all pairs alike.
    alpha
        (width,) importance of the neurons; None: 0.

    Raises
    ------
    ValueError
        If sigma is not positive, alpha does not fit, or there are no rows.
    """
    if not sigma > 0:
        raise ValueError(f"sigma must be positive, got {sigma}")
    rows = h if h.ndim == 2 else h.movedim(1, -1).flatten(0, -2)
    rows = rows.to(wide(rows.dtype))  # sums of products overflow in half precision
    if not len(rows):
        raise ValueError(f"there are no rows: activations have shape {tuple(h.shape)}, give a batch with samples")
    width = rows.shape[1]
    if alpha is not None:
        if alpha.shape != (width,):
            raise ValueError(f"alpha must have shape ({width},), got {tuple(alpha.shape)}")
        rows = rows * (-alpha.to(rows)).exp()
    at = torch.arange(width, device=rows.device, dtype=rows.dtype)
    near = torch.exp(-(at[:, None] - at).square() / (2 * sigma**2)).fill_diagonal_(0)
    with torch.autocast(rows.device.type, enabled=False):
        return ((rows.T @ rows) * near).sum() / len(rows)


class _Hook:
    """A hook that a deep copy of the model shares, as it would a function, and that pickling leaves behind."""

    def __init__(self, call: Callable[..., None] | None) -> None:
        self.call = call

    def __call__(self, *given: Any) -> None:
        if self.call is not None:
            self.call(*given)

    def __deepcopy__(self, memo: Any) -> "_Hook":
        return self

    def __getstate__(self) -> dict[str, None]:
        return {"call": None}


class SLNID:
    """The regulariser for any module: `penalty` reads what its ReLU layers put out in the latest forward pass.

    A layer that runs again within the pass counts again, as ``name:1``, ``name:2``. Copies of the model are kept apart.

    Parameters
    ----------
    model
        Any module; hooks stay on it until `close`.
    lam
        Weight of the sum over layers.
    sigma
        Reach in neurons; None: a sixth of a layer's width.
    layers
        Which layers, as `targets` of `etude.layers.match`; None: every `nn.ReLU`.
    forward
        ``forward(model, x)`` gives the outputs; None: ``model(x)``.

    Raises
    ------
    TargetError
        If no layer fits.
    """

    def __init__(
        self,
        model: nn.Module,
        lam: float = 1e-3,
        sigma: float | None = None,
        *,
        layers: Targets = None,
        forward: Forward | None = None,
    ) -> None:
        if not lam >= 0 or (sigma is not None and not sigma > 0):
            raise ValueError(f"lam must be at least 0 and sigma positive, got {lam} and {sigma}")
        self.model, self.lam, self.sigma = model, lam, sigma
        self.forward: Forward = forward or outputs
        self.layers = match(model, layers, nn.ReLU if layers is None else nn.Module)
        self.alpha: dict[str, Tensor] = {}
        self._attach()

    def _attach(self) -> None:
        self._latest: WeakKeyDictionary[nn.Module, dict[str, Tensor]] = WeakKeyDictionary()  # of model and its copies
        self._pass: dict[str, Tensor] | None = None  # what the pass that is under way put out
        self._handles: list[Any] = [self.model.register_forward_pre_hook(_Hook(self._begin))]
        for name, m in self.layers.items():
            self._handles.append(m.register_forward_hook(_Hook(partial(self._keep, name))))
        self._handles.append(self.model.register_forward_hook(_Hook(self._end)))

    def _begin(self, model: nn.Module, args: Any) -> None:
        self._pass = {}

    def _end(self, model: nn.Module, args: Any, out: Any) -> None:
        if self._pass:
            self._latest[model] = self._pass
        self._pass = None

    def _keep(self, name: str, layer: nn.Module, args: Any, out: Tensor) -> None:
        if not out.requires_grad or torch._C._functorch.is_functorch_wrapped_tensor(out):
            return
        if self._pass is None:  # a part of the model was called alone
            if layer is self.layers[name]:
                self._latest.setdefault(self.model, {})[name] = out
            return
        key, again = name, 0
        while key in self._pass:
            again += 1
            key = f"{name}:{again}"
        self._pass[key] = out

    def close(self) -> None:
        """Take the hooks off the model."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._latest.clear()

    def __getstate__(self) -> dict[str, Any]:
        kept = {n: v for n, v in self.__dict__.items() if n not in ("_latest", "_pass", "_handles")}
        return {**kept, "attached": bool(self._handles)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        attached = state.pop("attached")
        self.__dict__.update(state)
        self._attach()
        if not attached:
            self.close()

    def penalty(self, model: nn.Module | None = None) -> Tensor:
        """lam * sum of R over layers, for the latest forward pass with gradients. Fits `penalty=` of `train`.

        Parameters
        ----------
        model
            A copy of the model, such as one that `train` made, whose pass is meant; None: the model itself.

        Raises
        ------
        RuntimeError
            If the model has not run since the last call.
        """
        own = next((m for m in model.modules() if m in self._latest), self.model) if model is not None else self.model
        latest = self._latest.pop(own, None)
        if latest is None:
            raise RuntimeError("the model has not run with gradients since the last penalty: call it first")
        parts = [local_inhibition(h, self.sigma or h.shape[1] / 6, self.alpha.get(name)) for name, h in latest.items()]
        return self.lam * torch.stack(parts).sum()

    def update(self, data: Any) -> dict[str, Tensor]:
        """Add each neuron's importance for what was learned last: mean |d ||F(x)||^2 / d h_i| (labels are ignored).

        Raises
        ------
        ValueError
            "no samples" if `data` are empty.
        RuntimeError
            In ``torch.inference_mode``, where there are no gradients.
        """
        check_gradients("SLNID.update")
        total: dict[str, Tensor] = {}
        count = 0
        for x, _ in batches_of(data):
            with evaluating(self.model), torch.enable_grad(), Record(self.model, list(self.layers)) as record:
                energy = self.forward(self.model, x).square().sum()  # rows do not mix: each has its own gradient
                kept = record.features
                grads = torch.autograd.grad(energy, list(kept.values()), allow_unused=True)
            for (name, h), g in zip(kept.items(), grads, strict=True):
                size = torch.zeros_like(h) if g is None else g.abs()
                size = size.to(wide(size.dtype))
                size = size if size.ndim == 2 else size.movedim(1, -1).flatten(1, -2).sum(1)
                total[name] = total.get(name, torch.zeros_like(size[0])) + size.sum(0)
            count += num_rows(x)
        self._latest.clear()
        if not count:
            raise ValueError("no samples: the data are empty")
        new = {n: t / count for n, t in total.items()}
        self.alpha = {n: self.alpha.get(n, torch.zeros_like(t)) + t for n, t in new.items()}
        return new

    def state_dict(self) -> dict[str, Tensor]:
        """The neurons' importance by layer."""
        return {f"alpha.{n}": t.clone() for n, t in self.alpha.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        self.alpha = {n.removeprefix("alpha."): t.clone() for n, t in state.items()}
