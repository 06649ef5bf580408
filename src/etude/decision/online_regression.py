"""The regret of online regression: what predicting a stream as it comes costs above the best network in hindsight."""

from collections.abc import Sequence

import torch
from torch import Tensor

from etude.data.randomness import stream
from etude.decision.arm_networks import ArmNetwork
from etude.decision.bandit_learner import BanditLearner, BanditSettings
from etude.decision.bandit_simulation import ClassificationBandit, simulate


@torch.inference_mode(False)
@torch.enable_grad()  # as in `simulate`
def regression_regret(
    environment: ClassificationBandit,
    seeds: Sequence[int],
    horizon: int,
    *,
    lr: float,
    c_p: float = 1.0,
    hidden_dim: int = 64,
    batch_size: int = 32,
    fit_steps: int = 4000,
    device: str = "cpu",
) -> dict[str, Tensor]:
    """Cumulative square-loss regret (S, T) of predicting the loss of one random arm a round.

    Arms and rows are the same for all three learners: "perturbed" (strength `c_p`), "plain" (0) and "frozen" (the
    initial network). The comparator is the same network fitted to the whole stream by `fit_steps` steps.
    """
    shared = {"hidden_dim": hidden_dim, "batch_size": batch_size, "random_arms": True, "device": device}
    runs = {
        name: simulate(environment, BanditSettings("squarecb", 1.0, lr=lr, c_p=c), seeds, horizon, **shared)  # type: ignore[arg-type]
        for name, c in (("perturbed", c_p), ("plain", 0.0))
    }
    arms, losses = runs["plain"].arms.to(device), runs["plain"].losses.to(device)
    contexts = torch.stack([environment.rounds(s, horizon).contexts for s in seeds]).to(device)
    network = ArmNetwork(seeds, environment.n_features, n_arms=environment.n_arms, hidden_dim=hidden_dim).to(contexts)
    with torch.no_grad():
        predicted = {"frozen": network.chosen(contexts, arms)}
    learner = BanditLearner(network, BanditSettings("greedy", lr=lr), environment.n_arms, noise_seed=seeds[0])
    rows = torch.arange(len(seeds), device=device)[:, None]
    order = [stream(s, "hindsight") for s in seeds]
    for _ in range(fit_steps):
        pick = torch.stack([torch.randint(horizon, (batch_size,), generator=g) for g in order]).to(device)
        learner.update(contexts[rows, pick], arms[rows, pick], losses[rows, pick])
    with torch.no_grad():
        best = 0.5 * (network.chosen(contexts, arms) - losses).square()
    predicted |= {name: run.predicted.to(device) for name, run in runs.items()}
    return {name: (0.5 * (f - losses).square() - best).double().cumsum(1).cpu() for name, f in predicted.items()}


def log_slope(cumulative: Tensor, steps: Sequence[int]) -> Tensor:
    """Least-squares slope of log cumulative[:, t - 1] on log t over the given t: (S,).

    Raises
    ------
    ValueError
        If a value is not positive, a step is none of 1 .. T, or there are fewer than two different ones.
    """
    if len(set(steps)) < 2:
        raise ValueError(f"a slope needs at least two different steps, got {list(steps)}")
    if not 1 <= min(steps) <= max(steps) <= cumulative.shape[1]:
        raise ValueError(f"steps must lie in 1..{cumulative.shape[1]}, got {list(steps)}")
    y = cumulative[:, torch.as_tensor(steps) - 1].double()
    if not bool((y > 0).all()):
        raise ValueError(
            "a slope on logarithmic axes needs positive values: take later steps, or more rounds (a larger horizon)"
        )
    x = torch.as_tensor(steps, dtype=torch.float64).log()
    x = x - x.mean()
    return ((y.log() - y.log().mean(1, keepdim=True)) * x).sum(1) / x.square().sum()
