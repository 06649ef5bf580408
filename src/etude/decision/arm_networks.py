"""Networks that predict the loss of every arm, for one bandit or for many seeds at once.

Both classes have a leading axis S of seeds (1 for a user's own module). `predict` gives all arms, `chosen` one arm a
row, `squared_gradients` what NeuralUCB and NeuralTS need: sum_j g_j^2 / U_j with the diagonal U of the seed.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from etude.data.randomness import stream
from etude.layers.parameters import layout_of
from etude.training.gradients import per_sample_gradients

_AT_ONCE = 2**24  # numbers of single-sample gradients of a module held at once, but at least those of one round


class ArmNetwork(nn.Module):
    """One hidden layer of rectifiers for each of S seeds, f(x) = v . relu(W x + b) + c.

    With `n_arms` contexts are disjoint: one vector x a round, of which arm a sees the block vector that holds x in
    place a and zeros elsewhere. The block vector is never built: W is (S, d, K, m) and arm a uses its own slice.

    Parameters
    ----------
    seeds
        Weights of seed s are drawn from ``stream(s, "init")``, as `nn.Linear` draws them, whatever the other seeds.
    n_features
        Length d of a context.
    n_arms
        K for disjoint contexts; None where every arm brings a context of its own.

    Notes
    -----
    Shapes: contexts (S, B, d) if disjoint, else (S, B, K, d).
    """

    def __init__(
        self,
        seeds: Sequence[int | torch.Generator],
        n_features: int,
        *,
        n_arms: int | None = None,
        hidden_dim: int = 100,
    ) -> None:
        super().__init__()
        if min(len(seeds), n_features, hidden_dim, 1 if n_arms is None else n_arms) < 1:
            raise ValueError(
                f"seeds, n_features, n_arms and hidden_dim must be at least 1, got {len(seeds)}, {n_features}, "
                f"{n_arms} and {hidden_dim}"
            )
        self.num_seeds, self.n_features, self.n_arms, self.width = len(seeds), n_features, n_arms, hidden_dim
        blocks = 1 if n_arms is None else n_arms
        bounds = 1 / math.sqrt(n_features * blocks), 1 / math.sqrt(hidden_dim)
        shapes = {
            "weight": ((n_features, blocks, hidden_dim), bounds[0]), "bias": ((hidden_dim,), bounds[0]),
            "out": ((hidden_dim,), bounds[1]), "out_bias": ((1,), bounds[1]),
        }  # fmt: skip
        drawn: dict[str, list[Tensor]] = {name: [] for name in shapes}
        for seed in seeds:
            generator = seed if isinstance(seed, torch.Generator) else stream(seed, "init")
            for name, (shape, bound) in shapes.items():
                drawn[name].append((2 * torch.rand(shape, generator=generator) - 1) * bound)
        self.weight = nn.Parameter(torch.stack(drawn["weight"]))  # (S, d, K or 1, m)
        self.bias = nn.Parameter(torch.stack(drawn["bias"])[:, None])  # (S, 1, m)
        self.out = nn.Parameter(torch.stack(drawn["out"])[..., None])  # (S, m, 1)
        self.out_bias = nn.Parameter(torch.stack(drawn["out_bias"])[:, None])  # (S, 1, 1)

    @property
    def disjoint(self) -> bool:
        """Whether all arms share a round's context."""
        return self.n_arms is not None

    def _before(self, contexts: Tensor) -> Tensor:
        """Hidden layer before the rectifier, of every arm: (S, B, K, m)."""
        s, b = contexts.shape[:2]
        wide = self.weight.flatten(2)  # (S, d, K m)
        if not self.disjoint:
            return torch.baddbmm(self.bias, contexts.flatten(1, 2), wide).unflatten(1, (b, -1))
        return torch.bmm(contexts, wide).view(s, b, -1, self.width) + self.bias[:, :, None]

    def _read(self, hidden: Tensor) -> Tensor:
        s = hidden.shape[0]
        return torch.baddbmm(self.out_bias, hidden.reshape(s, -1, self.width), self.out).view(hidden.shape[:-1])

    def predict(self, contexts: Tensor) -> Tensor:
        """(S, B, K) raw predictions of all arms."""
        return self._read(self._before(contexts).relu())

    def chosen(self, contexts: Tensor, arms: Tensor) -> Tensor:
        """(S, B) raw predictions of one arm a row; `arms` is (S, B) int64."""
        if not self.disjoint:
            own = contexts.gather(2, arms[..., None, None].expand(-1, -1, 1, contexts.shape[-1]))
            return self.predict(own)[..., 0]
        before = self._before(contexts)
        own = before.gather(2, arms[..., None, None].expand(-1, -1, 1, self.width))
        return self._read(own.relu())[..., 0]

    def start_precision(self, value: float) -> list[Tensor]:
        """The diagonal U at the beginning, one tensor a parameter."""
        return [torch.full_like(p, value) for p in self.parameters()]

    @torch.no_grad()
    def squared_gradients(self, contexts: Tensor, precision: Sequence[Tensor]) -> Tensor:
        """(S, B, K): sum over parameters of (d f / d theta_j)^2 / U_j."""
        before = self._before(contexts)
        hidden, gate = before.relu(), (before > 0).to(before.dtype)
        u_weight, u_bias, u_out, u_out_bias = precision
        squares = contexts.square()
        rows = squares if self.disjoint else squares.flatten(1, 2)
        inputs = torch.bmm(rows, (1 / u_weight).flatten(2)).view(before.shape)
        behind = gate * self.out.square().transpose(1, 2)[:, :, None]  # (v phi')^2
        through = (behind * (inputs + 1 / u_bias[:, :, None])).sum(-1)
        last = (hidden.square() / u_out.transpose(1, 2)[:, :, None]).sum(-1) + 1 / u_out_bias
        return through + last

    @torch.no_grad()
    def add_precision(self, contexts: Tensor, arms: Tensor, precision: Sequence[Tensor]) -> None:
        """U += g^2 for the chosen arms, row after row, in place."""
        before = self._before(contexts)
        own = before.gather(2, arms[..., None, None].expand(-1, -1, 1, self.width))[:, :, 0]  # (S, B, m)
        behind = (own > 0).to(own.dtype) * self.out.square().transpose(1, 2)
        u_weight, u_bias, u_out, u_out_bias = precision
        u_out += own.relu().square().sum(1)[..., None]
        u_bias += behind.sum(1, keepdim=True)
        u_out_bias += contexts.shape[1]
        seeds = torch.arange(len(own), device=own.device)
        for b in range(contexts.shape[1]):
            x = contexts[:, b] if self.disjoint else contexts[seeds, b, arms[:, b]]
            place = arms[:, b] if self.disjoint else torch.zeros_like(arms[:, b])
            u_weight[seeds, :, place] += x.square()[..., None] * behind[:, b, None]


class ModuleArms(nn.Module):
    """A user's module, (..., d) to (..., 1), as the network of one bandit.

    With `n_arms` contexts are disjoint and the module sees the block vectors of length K d.
    """

    num_seeds = 1

    def __init__(self, module: nn.Module, *, n_arms: int | None = None) -> None:
        super().__init__()
        self.module, self.n_arms = module, n_arms
        first = next((m for m in module.modules() if isinstance(m, nn.Linear)), None)
        self.width = 100 if first is None else first.out_features

    @property
    def disjoint(self) -> bool:
        """Whether all arms share a round's context."""
        return self.n_arms is not None

    def _inputs(self, contexts: Tensor) -> Tensor:
        """(B, K, inputs of the module)."""
        x = contexts[0]
        if self.n_arms is None:
            return x
        eye = torch.eye(self.n_arms, dtype=x.dtype, device=x.device)
        return (eye[None, :, :, None] * x[:, None, None]).flatten(2)

    def _call(self, inputs: Tensor) -> Tensor:
        out = self.module(inputs)
        if out.shape != (*inputs.shape[:-1], 1):
            raise ValueError(
                f"the module must map (..., d) to (..., 1): {tuple(inputs.shape)} became {tuple(out.shape)}"
            )
        return out[..., 0]

    def predict(self, contexts: Tensor) -> Tensor:
        """(1, B, K) raw predictions of all arms."""
        return self._call(self._inputs(contexts))[None]

    def chosen(self, contexts: Tensor, arms: Tensor) -> Tensor:
        """(1, B) raw predictions of one arm a row."""
        inputs = self._inputs(contexts)
        return self._call(inputs[torch.arange(len(inputs), device=inputs.device), arms[0]])[None]

    def start_precision(self, value: float) -> list[Tensor]:
        """The diagonal U at the beginning, one vector over all trainable parameters."""
        size = layout_of({n: p for n, p in self.module.named_parameters() if p.requires_grad}).size
        first = next(self.module.parameters())
        dtype = torch.promote_types(first.dtype, torch.float32)  # half precision stops counting at some hundred rows
        return [torch.full((size,), value, dtype=dtype, device=first.device)]

    def _gradients(self, inputs: Tensor) -> Tensor:
        g = per_sample_gradients(self.module, lambda m, x: m(x).sum(), inputs)
        return g.to(torch.promote_types(g.dtype, torch.float32))

    def squared_gradients(self, contexts: Tensor, precision: Sequence[Tensor]) -> Tensor:
        """(1, B, K): sum over parameters of (d f / d theta_j)^2 / U_j."""
        inputs = self._inputs(contexts)
        parts = inputs.split(max(1, _AT_ONCE // (len(precision[0]) * inputs.shape[1])))
        flat = [self._gradients(part.flatten(0, 1)).square() @ (1 / precision[0]) for part in parts]
        return torch.cat(flat).view(1, *inputs.shape[:2])

    def add_precision(self, contexts: Tensor, arms: Tensor, precision: Sequence[Tensor]) -> None:
        """U += g^2 for the chosen arms, in place."""
        inputs = self._inputs(contexts)
        own = inputs[torch.arange(len(inputs), device=inputs.device), arms[0]]
        for part in own.split(max(1, _AT_ONCE // len(precision[0]))):
            precision[0].add_(self._gradients(part).square().sum(0))


def features_of(module: nn.Module | None, blocks: int) -> int:
    """Features of one of the blocks that the module reads, by its first layer with parameters.

    Raises
    ------
    ValueError
        If that is not an `nn.Linear`, or its inputs are no whole number of blocks.
    """
    first = next((m for m in (module.modules() if module else ()) if any(True for _ in m.parameters(False))), None)
    if not isinstance(first, nn.Linear):
        raise ValueError("give n_features, the length of a context")
    if first.in_features % blocks:
        raise ValueError(f"the module reads {first.in_features} features, which {blocks} arms cannot share evenly")
    return first.in_features // blocks
