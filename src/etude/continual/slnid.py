"""Sparse, decorrelated codes by local inhibition (SLNID): neighbours that are active together are punished.

    R = (1/M) sum_{i != j} exp(-(alpha_i + alpha_j)) exp(-(i - j)^2 / (2 sigma^2)) sum_m h_i^m h_j^m

h: outputs (M, width) of a hidden ReLU layer; alpha_i: importance of neuron i for earlier tasks, which switches the
inhibition off where a neuron is used. Source: Aljundi 2019, arXiv 1910.02718 (arXiv 1806.05421, eq. 5 and 6). As one
matrix: sum of (H^T H / M) * locality * discount, without the diagonal.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from etude.continual.importance import Forward, batches_of
from etude.layers.modes import evaluating
from etude.layers.surgery import Record, Targets, match


def local_inhibition(h: Tensor, sigma: float, alpha: Tensor | None = None) -> Tensor:
    """R of one layer, a scalar.

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
        If sigma is not positive or alpha does not fit.
    """
    if not sigma > 0:
        raise ValueError(f"sigma must be positive, got {sigma}")
    rows = h if h.ndim == 2 else h.movedim(1, -1).flatten(0, -2)
    width = rows.shape[1]
    if alpha is not None:
        if alpha.shape != (width,):
            raise ValueError(f"alpha must have shape ({width},), got {tuple(alpha.shape)}")
        rows = rows * (-alpha.to(rows)).exp()
    at = torch.arange(width, device=rows.device, dtype=rows.dtype)
    near = torch.exp(-(at[:, None] - at).square() / (2 * sigma**2)).fill_diagonal_(0)
    return ((rows.T @ rows) * near).sum() / len(rows)


class SLNID:
    """The regulariser for any module: `penalty` reads what its ReLU layers put out in the latest forward pass.

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
        self.forward: Forward = forward or (lambda m, x: m(x))
        self.layers = match(model, layers, nn.ReLU if layers is None else nn.Module)
        self.alpha: dict[str, Tensor] = {}
        self._latest: dict[str, Tensor] = {}
        self._handles = [m.register_forward_hook(self._keeper(name)) for name, m in self.layers.items()]

    def _keeper(self, name: str) -> Any:
        def keep(module: nn.Module, args: Any, out: Tensor) -> None:
            if out.requires_grad and not torch._C._functorch.is_functorch_wrapped_tensor(out):
                self._latest[name] = out

        return keep

    def close(self) -> None:
        """Take the hooks off the model."""
        for handle in self._handles:
            handle.remove()
        self._handles, self._latest = [], {}

    def penalty(self, model: nn.Module | None = None) -> Tensor:
        """lam * sum of R over layers, for the latest forward pass with gradients. Fits `penalty=` of `train`.

        Raises
        ------
        RuntimeError
            If the model has not run since the last call.
        """
        if not self._latest:
            raise RuntimeError("the model has not run with gradients since the last penalty: call it first")
        latest, self._latest = self._latest, {}
        parts = [local_inhibition(h, self.sigma or h.shape[1] / 6, self.alpha.get(name)) for name, h in latest.items()]
        return self.lam * torch.stack(parts).sum()

    def update(self, data: Any) -> dict[str, Tensor]:
        """Add each neuron's importance for what was learned last: mean |d ||F(x)||^2 / d h_i| (labels are ignored).

        Raises
        ------
        ValueError
            "no samples" if `data` are empty.
        """
        total: dict[str, Tensor] = {}
        count = 0
        for x, _ in batches_of(data):
            with evaluating(self.model), torch.enable_grad(), Record(self.model, list(self.layers)) as record:
                energy = self.forward(self.model, x).square().sum()  # rows do not mix: each has its own gradient
                kept = {n: record.features[n] for n in self.layers if n in record.features}
                grads = torch.autograd.grad(energy, list(kept.values()), allow_unused=True)
            for (name, h), g in zip(kept.items(), grads, strict=True):
                size = torch.zeros_like(h) if g is None else g.abs()
                size = size if size.ndim == 2 else size.movedim(1, -1).flatten(1, -2).sum(1)
                total[name] = total.get(name, torch.zeros_like(size[0])) + size.sum(0)
            count += len(x)
        self._latest = {}
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
