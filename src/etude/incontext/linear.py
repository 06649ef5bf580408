"""What learning algorithm is in-context learning? Linear regression in the prompt.

`identify` compares any learner with textbook ones, `implied_weights` reads the weight vector it acts by,
`GradientDescentTransformer` is gradient descent written into attention weights, `train` makes a learner.

Source: Akyurek et al. 2022, arXiv 2211.15661.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from etude.data.batching import sampled
from etude.data.randomness import stream
from etude.incontext.gd_transformer import (
    GradientDescentTransformer,
    LinearAttention,
    construction_error,
    gelu_multiply,
)
from etude.incontext.identify import Report, identify, implied_weights, placement
from etude.incontext.references import Reference, ols_weights, references
from etude.incontext.regression import RegressionPrompts, check_task, regression_prompts
from etude.incontext.sequence_model import SequenceModel
from etude.layers.modes import evaluating
from etude.training.config import TrainConfig
from etude.training.engine import Trained
from etude.training.engine import train as train_engine
from etude.training.probes import ProbeTable, probe_layers
from etude.training.sequence_probes import probe_sequences


def in_context_loss(model: torch.nn.Module, prompts: RegressionPrompts) -> Tensor:
    """Mean over positions and prompts of ``(prediction of y_i from the pairs before i - y_i)^2``."""
    return (model(prompts.x, prompts.y) - prompts.y).square().mean()


def train_learners(
    dim: int,
    *,
    num_layers: int,
    hidden_dim: int,
    noise: float = 0.0,
    prior_scale: float = 1.0,
    num_points: int | None = None,
    num_heads: int = 4,
    weights: Tensor | None = None,
    steps: int = 3000,
    batch_size: int = 64,
    lr: float = 1e-3,
    warmup_steps: int = 100,
    precision: str = "fp32",
    seeds: Sequence[int] = (0,),
    device: str = "cpu",
) -> list[Trained]:
    """Train one in-context learner a seed, on fresh functions and inputs in every step.

    Parameters
    ----------
    dim
        Features of x.
    noise, prior_scale
        Standard deviations of the noise and of the functions' weights.
    num_points
        Pairs in a prompt; None: 3 dim, at least 6.
    weights
        (dim,): one fixed function in every prompt, the control that can be learned by heart.
    steps, batch_size, lr, warmup_steps
        Adam with linear warm-up, cosine decay to 0 and gradients clipped at norm 1.

    Returns
    -------
    list of Trained
        `.module` is a `SequenceModel`.
    """
    check_task(dim, noise, prior_scale)
    points = max(3 * dim, 6) if num_points is None else num_points
    if points < 1:
        raise ValueError(f"num_points must be at least 1, got {points}")

    def build(seed: int) -> SequenceModel:
        return SequenceModel(
            dim, num_layers=num_layers, hidden_dim=hidden_dim, num_heads=num_heads, max_points=points + 1
        )

    def draw(generator: torch.Generator, step: int) -> RegressionPrompts:
        return regression_prompts(
            batch_size, points, dim, noise=noise, prior_scale=prior_scale, weights=weights, generator=generator
        )

    config = TrainConfig(
        steps=steps, batch_size=batch_size, optimizer="adam", lr=lr, schedule="cosine",
        warmup_steps=min(warmup_steps, steps // 2), clip_norm=1.0, precision=precision,
    )  # fmt: skip
    return train_engine(build, sampled(draw), loss=in_context_loss, config=config, seeds=seeds, device=device)


@torch.no_grad()
def probe_solutions(
    model: SequenceModel,
    dim: int,
    *,
    n_context: int | None = None,
    noise: float = 0.0,
    num_prompts: int = 2000,
    read: Literal["last", "attention"] = "last",
    hidden_size: int | None = None,
    steps: int = 1000,
    generator: torch.Generator | None = None,
) -> dict[str, ProbeTable]:
    """How well each layer's states give away X'y and the least-squares weights.

    The prompts are a query behind `n_context` pairs (None: 2 dim); `error` is the relative squared error on prompts
    held out.

    Parameters
    ----------
    read
        "last": the state at the query. "attention": the states of all tokens, weighted by learned scores.
    hidden_size
        None: a linear read-out ("last": ridge regression, its penalty chosen by cross-validation). A number: a net of
        two layers of this width.
    steps
        Updates of a read-out that is trained.

    Returns
    -------
    dict
        "moment" (X'y / n) and "weights" -> one row a layer, "layer0" being the tokens themselves.
    """
    if read not in ("last", "attention"):
        raise ValueError(f"read must be 'last' or 'attention', got {read!r}")
    if num_prompts < 10 or (hidden_size is not None and hidden_size < 1):
        raise ValueError(
            f"need at least 10 prompts and a hidden_size of at least 1 (or None), got {num_prompts} and {hidden_size}"
        )
    n = 2 * dim if n_context is None else n_context
    if n < 1:
        raise ValueError(f"n_context must be at least 1, got {n}: without pairs there is nothing to read")
    generator = stream(0, "probe") if generator is None else generator
    prompts = regression_prompts(num_prompts, n + 1, dim, noise=noise, generator=generator)
    X, y = prompts.x[:, :n], prompts.y[:, :n]
    place = next(model.parameters())
    with evaluating(model):
        states = model.layer_states(prompts.x.to(place), y.to(place))
    ridge = read == "last" and hidden_size is None
    features = {name: (h if read == "attention" else h[:, -1:]).cpu() for name, h in states.items()}
    targets = {"moment": (X.mT @ y.unsqueeze(-1)).squeeze(-1) / n, "weights": ols_weights(X, y)}
    split = int(torch.randint(2**31, (1,), generator=generator))
    if ridge:
        return {
            name: probe_layers(features, target, control=False, kind="ridge", generator=stream(split, name))
            for name, target in targets.items()
        }
    return {
        name: probe_sequences(features, target, hidden_size=hidden_size, steps=steps, generator=stream(split, name))
        for name, target in targets.items()
    }


def train(
    dim: int,
    num_layers: int = 2,
    hidden_dim: int = 64,
    noise: float = 0.0,
    *,
    num_points: int | None = None,
    num_heads: int = 4,
    steps: int = 3000,
    batch_size: int = 64,
    lr: float = 1e-3,
    seed: int = 0,
    device: str = "cpu",
) -> SequenceModel:
    """Train a transformer to do linear regression in its context; arguments as in `train_learners`.

    The result predicts by ``model.predict(X, y, Xq)`` and goes into `identify` as it is.
    """
    (trained,) = train_learners(
        dim, num_layers=num_layers, hidden_dim=hidden_dim, noise=noise, num_points=num_points,
        num_heads=num_heads, steps=steps, batch_size=batch_size, lr=lr, seeds=(seed,), device=device,
    )  # fmt: skip
    assert isinstance(trained.module, SequenceModel)
    return trained.module


__all__ = [
    "GradientDescentTransformer",
    "LinearAttention",
    "Reference",
    "RegressionPrompts",
    "Report",
    "construction_error",
    "gelu_multiply",
    "identify",
    "implied_weights",
    "in_context_loss",
    "placement",
    "probe_solutions",
    "references",
    "regression_prompts",
    "train",
    "train_learners",
]
