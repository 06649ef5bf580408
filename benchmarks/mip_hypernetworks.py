"""Generating the weights of an MLP 784-100-100-10 and running it, forward and backward, for 1 and 32 conditions.

Peers: hyperlight (its magnitude-invariant HyperNet, given our weights, so that both compute the same) and hypnettorch's
HMLP (another generator, so results are not compared). Both take one condition at a time. hyper-nn needs JAX and Flax
beside torch and is left out.
"""

from typing import Any

import torch
from torch import Tensor, nn

from etude.data.randomness import seeded_build, stream
from etude.hypernetworks import HyperNetwork, ScalarCondition
from etude.lab.bench import Case
from etude.layers import mlp

HIDDEN, BATCH = (16, 64, 128), 32


def _target() -> nn.Module:
    return mlp((784, 100, 100, 10))


def _ours() -> HyperNetwork:
    condition = ScalarCondition(["lam"])
    return seeded_build(
        lambda: HyperNetwork(_target(), condition, hidden=HIDDEN, encoding="cos|sin", residual=True), stream(0, "net")
    )


def _same(a: Tensor, b: Tensor) -> bool:
    return bool(torch.allclose(a, b, rtol=1e-3, atol=1e-4))


def cases() -> list[Case]:
    """One condition, then 32 with a batch of their own; the sum of squared outputs is differentiated."""
    ours = _ours()
    x = torch.randn(32, BATCH, 784, generator=stream(0, "x"))
    lams = torch.linspace(0.05, 1, 32)

    def one() -> Tensor:
        ours.zero_grad(set_to_none=True)
        out = ours(x[0], lam=lams[0])
        out.square().sum().backward()
        return out.detach()

    def many() -> Tensor:
        ours.zero_grad(set_to_none=True)
        out = ours.forward_each(x, lam=lams)
        out.square().sum().backward()
        return out.detach()

    out: list[Case] = []
    try:
        import hyperlight
    except ImportError:
        pass
    else:
        out += _hyperlight(hyperlight, ours, x, lams, one, many)
    try:
        from hypnettorch.hnets import HMLP
        from hypnettorch.mnets.mlp import MLP
    except ImportError:
        return out
    main = MLP(n_in=784, n_out=10, hidden_layers=(100, 100), no_weights=True, verbose=False)
    net = HMLP(main.param_shapes, cond_in_size=2, layers=HIDDEN, num_cond_embs=32, verbose=False)

    def theirs(count: int) -> Any:
        net.zero_grad()
        outs = [main(x[i], weights=net(cond_id=i)) for i in range(count)]
        torch.stack(outs).square().sum().backward()

    return [
        *out,
        Case("one condition", one, lambda: theirs(1), "hypnettorch HMLP", None, 0.91),
        Case("32 conditions", many, lambda: theirs(32), "hypnettorch HMLP", None, 5.0),
    ]


def _hyperlight(package: Any, ours: HyperNetwork, x: Tensor, lams: Tensor, one: Any, many: Any) -> list[Case]:
    target = _target()
    target, values = package.hypernetize(target, parameters=list(target.parameters()), return_values=True)
    shapes = {name: tuple(v.shape) for name, v in values.items()}
    net = package.HyperNet({"lam": (1,)}, shapes, hidden_sizes=list(HIDDEN), encoding="cos|sin")
    state = dict(ours.generator.state_dict())
    with torch.no_grad():  # our weights in their layers: the outputs must agree
        linears = [m for m in net.backbone if isinstance(m, nn.Linear)]
        named = [k for k in state if k.endswith("weight")]
        for linear, key in zip(linears[:-1], [k for k in named if "head" not in k], strict=True):
            linear.weight.copy_(state[key])
            linear.bias.copy_(state[key.replace("weight", "bias")])
        assert ours.theta0 is not None
        linears[-1].weight.copy_(state["head.weight"])
        linears[-1].bias.copy_(ours.theta0)

    def run(i: int) -> Tensor:
        with target.using_externals(net(lam=lams[i : i + 1])):
            return target(x[i])  # type: ignore[no-any-return]

    def theirs(count: int) -> Tensor:
        net.zero_grad()
        made = torch.stack([run(i) for i in range(count)])
        made.square().sum().backward()
        return made.detach()

    return [
        Case("one condition", one, lambda: theirs(1)[0], "hyperlight", _same, 0.91),
        Case("32 conditions", many, lambda: theirs(32), "hyperlight", _same, 5.0),
    ]
