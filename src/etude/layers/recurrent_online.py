"""The exact gradient of an Elman net, carried forward in time.

Source: Lipton, Berkowitz & Elkan 2015, arXiv 1506.00019, section 2.3; real-time recurrent learning of Williams & Zipser
1989.
"""

import inspect
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from etude.layers.recurrent_cells import LinearRNN
from etude.layers.recurrent_gradients import refuse_inference_mode

_ACTIVATIONS: dict[str, Callable[[Tensor], tuple[Tensor, Tensor]]] = {
    "tanh": lambda a: (torch.tanh(a), 1 - torch.tanh(a) ** 2),
    "relu": lambda a: (torch.relu(a), (a > 0).to(a.dtype)),
    "linear": lambda a: (a, torch.ones_like(a)),
}


def rtrl(
    cell: nn.Module, x: Tensor, loss_fn: Callable[..., Tensor], *, state: Tensor | None = None
) -> dict[str, Tensor]:
    """Exact gradient of a sum of losses, carried forward in time: no step is kept, nothing is run backwards.

    The sensitivities P_t = dh_t / d(W, U, b) follow P_t = D_t (U P_{t-1} + dz_t), with D_t the diagonal of act' and
    z_t = [x_t, h_{t-1}, 1]. Memory O(batch * h^2 (d + h)), time O(h^4) a step: an oracle for tests, not a way to train.

    Parameters
    ----------
    cell
        Elman: one-layer, one-directional `make_rnn("elman", ...)`, `torch.nn.RNN` or `torch.nn.RNNCell`.
    x
        Shape (batch, time, input).
    loss_fn
        ``loss_fn(h_t)`` or ``loss_fn(h_t, t)`` -> scalar of the hidden state (batch, h) at step t; summed over t.
    state
        First hidden state, (batch, h) or (1, batch, h); None: zeros.

    Returns
    -------
    dict
        Gradient by parameter name of the cell; equal to full back-propagation through time.

    Raises
    ------
    ValueError
        For a cell that is not of this kind or whose weights are parametrized, or x of another shape.
    RuntimeError
        Under `torch.inference_mode()`, where every gradient would be 0.
    """
    refuse_inference_mode()
    if not isinstance(cell, (nn.RNN, nn.RNNCell, LinearRNN)):
        raise ValueError(f"rtrl is for Elman cells (nn.RNN, nn.RNNCell), got {type(cell).__name__}")
    if getattr(cell, "num_layers", 1) != 1 or getattr(cell, "bidirectional", False):
        raise ValueError("rtrl needs one layer and one direction")
    if x.dim() != 3 or x.shape[-1] != cell.input_size:
        raise ValueError(f"x must have shape (batch, time, {cell.input_size}), got {tuple(x.shape)}")
    if is_parametrized(cell):
        raise ValueError("the cell's weights are parametrized, as by pruning: make them plain first (make_permanent)")
    named = {name.removesuffix("_l0"): p.detach() for name, p in cell.named_parameters()}
    h_size, d = cell.hidden_size, cell.input_size
    w, u = named["weight_ih"], named["weight_hh"]
    bias = named.get("bias_ih", w.new_zeros(h_size)) + named.get("bias_hh", w.new_zeros(h_size))
    activate, with_step = _ACTIVATIONS[getattr(cell, "nonlinearity", "linear")], _takes_step(loss_fn)
    h = x.new_zeros(x.shape[0], h_size) if state is None else state.detach().reshape(x.shape[0], h_size)
    sensitivity = x.new_zeros(x.shape[0], h_size, h_size, d + h_size + 1)
    total = x.new_zeros(h_size, d + h_size + 1)
    own = torch.arange(h_size, device=x.device)
    for t in range(x.shape[1]):
        z = torch.cat([x[:, t].detach(), h, x.new_ones(x.shape[0], 1)], dim=1)
        a = x[:, t].detach() @ w.T + h @ u.T + bias
        h, slope = activate(a)
        sensitivity = torch.einsum("im,bmkj->bikj", u, sensitivity)
        sensitivity[:, own, own] += z[:, None]
        sensitivity = slope[:, :, None, None] * sensitivity
        leaf = h.clone().requires_grad_(True)
        with torch.enable_grad():
            value = loss_fn(leaf, t) if with_step else loss_fn(leaf)
        if value.requires_grad:
            (error,) = torch.autograd.grad(value, leaf, allow_unused=True, materialize_grads=True)
            total += torch.einsum("bi,bikj->kj", error, sensitivity)
    pieces = {"weight_ih": total[:, :d], "weight_hh": total[:, d:-1], "bias_ih": total[:, -1], "bias_hh": total[:, -1]}
    return {name: pieces[name.removesuffix("_l0")].clone() for name, _ in cell.named_parameters()}


def _takes_step(loss_fn: Callable[..., Tensor]) -> bool:
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    try:
        parameters = inspect.signature(loss_fn).parameters.values()
    except ValueError:  # torch.sum and other built-ins have no signature, and know nothing of steps
        return False
    return sum(p.kind in kinds and p.default is p.empty for p in parameters) >= 2
