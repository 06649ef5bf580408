"""Feedback that predicts the gradient at a controller's output, and the loss that trains it.

    ghat = S(h, c),   c = [r; y; yhat - y]          an estimate of dL/dh, before L is known
    L_syn = mean || S(stopgrad h, stopgrad c) - stopgrad dL/dh ||^2

Gradients are those of every row by itself, of the sum of the episode's losses: of a batch mean they would be 1/B too
small. Reconstruction: arXiv 2011.05438 was available to us as its abstract only; the form of S is that of decoupled
interfaces (Jaderberg et al. 2016, arXiv 1608.05343) with the label in its context.
"""

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from etude.layers import mlp

CONTROLLERS = ("read", "output", "write")
TASK_WIDTH = 8


class Feedback(nn.Module):
    """S for the three controllers of a memory network; several networks may use one.

    Parameters
    ----------
    sizes
        Width of each controller's output h, by name.
    width, output_size
        Of what is read and of the labels, which make up the context c. A net with fewer outputs fills up with zeros.
    kind
        "per_controller": a net each; "shared": one, told which controller asks.
    num_tasks
        More than 1: the nets are told the task by a learned vector, so that networks of several tasks may share them.

    Raises
    ------
    ValueError
        For an unknown kind or sizes below 1.
    """

    def __init__(
        self, sizes: Mapping[str, int], width: int, output_size: int,
        kind: Literal["per_controller", "shared"] = "per_controller", *, hidden_size: int = 64, num_tasks: int = 1,
    ) -> None:  # fmt: skip
        super().__init__()
        if kind not in ("per_controller", "shared"):
            raise ValueError(f"feedback must be 'per_controller', 'shared' or a Feedback, got {kind!r}")
        if min(*sizes.values(), width, output_size, hidden_size, num_tasks) < 1:
            raise ValueError(f"sizes must be at least 1, got {dict(sizes)}, {width}, {output_size}, {num_tasks}")
        self.sizes, self.width, self.output_size, self.kind = dict(sizes), width, output_size, kind
        self.context_size = width + 2 * output_size
        self.task = nn.Embedding(num_tasks, TASK_WIDTH) if num_tasks > 1 else None
        extra = self.context_size + (TASK_WIDTH if num_tasks > 1 else 0)
        if kind == "shared":
            largest = max(self.sizes.values())
            made = {"all": mlp((largest + len(self.sizes) + extra, hidden_size, largest))}
        else:
            made = {name: mlp((size + extra, hidden_size, size)) for name, size in self.sizes.items()}
        self.nets = nn.ModuleDict(made)
        for net in made.values():  # fast learning starts as a no-op
            nn.init.zeros_(net[-1].weight)  # type: ignore[arg-type]
            nn.init.zeros_(net[-1].bias)  # type: ignore[arg-type]

    def context(self, r: Tensor, y: Tensor, error: Tensor) -> Tensor:
        """c (..., width + 2 out) of what was read, the label and the prediction's error."""
        missing = self.output_size - y.shape[-1]
        if missing < 0:
            raise ValueError(f"this feedback was made for {self.output_size} outputs, the net has {y.shape[-1]}")
        if missing:
            y, error = F.pad(y, (0, missing)), F.pad(error, (0, missing))
        return torch.cat([r, y, error], -1)

    def forward(self, name: str, h: Tensor, c: Tensor, task_id: int = 0, *, both: Tensor | None = None) -> Tensor:
        """ghat, of the shape of h (..., size); `both` is [h; c] where the caller has it already."""
        if self.kind == "per_controller" and self.task is None:
            return self.nets[name](torch.cat([h, c], -1) if both is None else both)
        parts = [h, c]
        if self.task is not None:
            parts.append(self.task.weight[task_id].expand(*h.shape[:-1], -1))
        if self.kind == "per_controller":
            return self.nets[name](torch.cat(parts, -1))
        size, largest = self.sizes[name], max(self.sizes.values())
        which = F.one_hot(torch.tensor(list(self.sizes).index(name), device=h.device), len(self.sizes)).to(h.dtype)
        parts = [F.pad(h, (0, largest - size)), which.expand(*h.shape[:-1], -1), *parts[1:]]
        return self.nets["all"](torch.cat(parts, -1))[..., :size]


class Tape(NamedTuple):
    """Where fast steps were taken, in order of time."""

    outputs: dict[str, list[Tensor]]
    """h of each controller, (B, size) a step, with their graph."""
    contexts: list[Tensor]
    """c, (B, context) a step."""
    known: list[Tensor]
    """(B,) bool a step: the label was there."""


def true_gradients(total: Tensor, tape: Tape) -> dict[str, list[Tensor]]:
    """dL/dh at every h, by one pass back through the episode; `total` is the sum over rows and steps."""
    flat = [h for name in CONTROLLERS for h in tape.outputs[name]]
    found = torch.autograd.grad(total, flat, retain_graph=True, allow_unused=True, materialize_grads=True)
    n = len(tape.contexts)
    return {name: list(found[i * n : (i + 1) * n]) for i, name in enumerate(CONTROLLERS)}


def synthetic_loss(
    feedback: Feedback, tape: Tape, gradients: Mapping[str, Sequence[Tensor]], task_id: int = 0
) -> Tensor:
    """L_syn: squared error of S at all outputs whose label was known, a mean over rows, steps and controllers."""
    weight, c = torch.stack(tape.known).to(tape.contexts[0].dtype), torch.stack(tape.contexts).detach()
    terms = []
    for name in CONTROLLERS:
        h, g = torch.stack(tape.outputs[name]).detach(), torch.stack(list(gradients[name])).detach()
        error = (feedback(name, h, c, task_id) - g).square().sum(-1)
        terms.append((error * weight).sum() / weight.sum().clamp_min(1))
    return torch.stack(terms).mean()


@torch.no_grad()
def cosines(
    feedback: Feedback, tape: Tape, gradients: Mapping[str, Sequence[Tensor]], task_id: int = 0,
    permutation: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Mean cosine of synthetic and true gradients over rows, steps and controllers; outputs without gradient left out.

    permutation
        (B,) S gets the h and c of these rows instead: what it can say without looking.
    """
    c, known = torch.stack(tape.contexts), torch.stack(tape.known)
    values = []
    for name in CONTROLLERS:
        h, g = torch.stack(tape.outputs[name]), torch.stack(list(gradients[name]))
        seen, context = (h, c) if permutation is None else (h[:, permutation], c[:, permutation])
        cosine = F.cosine_similarity(feedback(name, seen, context, task_id), g, dim=-1)
        values.append(cosine[known & (g.norm(dim=-1) > 0)])
    return torch.cat(values).mean()
