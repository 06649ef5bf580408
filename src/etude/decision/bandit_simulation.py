"""Simulated bandits whose best action is known, and runs of a policy over many seeds at once.

Classification as a bandit: the arms are the classes, the right one costs 0, the others 1. Synthetic rewards are those
of the NeuralUCB experiments, on uniform contexts of the sphere.
"""

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from etude.data.randomness import stream
from etude.data.sphere import uniform_on_sphere
from etude.decision.arm_networks import ArmNetwork
from etude.decision.bandit_learner import BanditLearner, BanditSettings, draw_arms


class Rounds(NamedTuple):
    """What a seed's T rounds hold.

    contexts
        (T, d) if disjoint, else (T, K, d).
    losses
        (T, K) in [0, 1]: what each arm would cost; a policy sees its own arm's.
    means
        (T, K) expected losses given the context, for the regret.
    """

    contexts: Tensor
    losses: Tensor
    means: Tensor


class ClassificationBandit:
    """Rows of a classification set, one a round in an order drawn by the seed; after the last row they come anew.

    Parameters
    ----------
    x, y
        (N, d) float and (N,) int64. Columns are standardised, rows then scaled to length 1.
    label_noise
        Probability that a round's label is another class, drawn uniformly; then even the best policy errs.

    Raises
    ------
    ValueError
        If there are fewer than two classes or rows, the noise leaves [0, 1), x is not finite, or y does not hold a
        class a row.
    """

    disjoint = True

    def __init__(
        self,
        x: Tensor,
        y: Tensor,
        *,
        num_classes: int | None = None,
        label_noise: float = 0.0,
        provenance: tuple[dict[str, Any], ...] = (),
    ) -> None:
        if len(x) < 2 or y.shape != x.shape[:1]:
            found = f"{tuple(x.shape)} and {tuple(y.shape)}"
            raise ValueError(f"x must hold at least two rows and y one class a row, got {found}")
        self.n_arms = int(y.max()) + 1 if num_classes is None else num_classes
        if self.n_arms < 2:
            raise ValueError("a bandit of classes needs at least two classes")
        if y.is_floating_point():
            raise ValueError(f"y must hold integers, got {y.dtype}: use y.long()")
        if not 0 <= int(y.min()) <= int(y.max()) < self.n_arms:
            raise ValueError(f"y must hold classes 0 to {self.n_arms - 1}, got {int(y.min())} to {int(y.max())}")
        x = x.flatten(1).float()
        if not bool((finite := torch.isfinite(x).all(1)).all()):
            row = int(finite.logical_not().nonzero()[0])
            raise ValueError(f"row {row} of x holds NaN or infinity: fill it in or leave the row out")
        x = (x - x.mean(0)) / x.std(0).clamp_min(1e-6)
        self.x = x / torch.linalg.vector_norm(x, dim=1, keepdim=True).clamp_min(1e-6)
        self.y, self.label_noise, self.n_features = y.long(), _share(label_noise), x.shape[1]
        self.provenance = provenance

    def with_noise(self, label_noise: float) -> "ClassificationBandit":
        """The same rows with another share of noisy labels."""
        other = copy.copy(self)
        other.label_noise = _share(label_noise)
        return other

    def rounds(self, seed: int, horizon: int) -> Rounds:
        """T rounds of one seed."""
        n, k, order = len(self.x), self.n_arms, stream(seed, "order")
        rows = torch.cat([torch.randperm(n, generator=order) for _ in range(-(-horizon // n))])[:horizon]
        noise = stream(seed, "label_noise")
        flips = torch.rand(horizon, generator=noise) < self.label_noise
        other = (self.y[rows] + torch.randint(1, k, (horizon,), generator=noise)) % k
        eye = 1 - torch.eye(k)
        means = torch.where(eye[self.y[rows]] == 1, 1 - self.label_noise / (k - 1), self.label_noise)
        return Rounds(self.x[rows], eye[torch.where(flips, other, self.y[rows])], means)


def _share(label_noise: float) -> float:
    if not 0 <= label_noise < 1:
        raise ValueError(f"label_noise must lie in [0, 1), got {label_noise}")
    return label_noise


class SyntheticBandit:
    """Contexts uniform on the sphere, one an arm; reward h plus normal noise, cut to [0, 1]; loss 1 - reward.

    Parameters
    ----------
    reward
        "square": 10 (x . a)^2 with a uniform on the sphere; "form": x' A' A x / d with A of standard normals; "cosine":
        cos(3 x . a). a and A are drawn by the seed. (The form is divided by d, or it would be cut to 1 throughout.)
    """

    disjoint = False

    def __init__(
        self,
        reward: Literal["square", "form", "cosine"] = "square",
        *,
        n_arms: int = 4,
        n_features: int = 20,
        noise: float = 0.1,
    ) -> None:
        if reward not in ("square", "form", "cosine"):
            raise ValueError(f'reward must be "square", "form" or "cosine", got {reward!r}')
        if n_arms < 1 or n_features < 1 or noise < 0:
            found = f"{n_arms}, {n_features} and {noise}"
            raise ValueError(f"n_arms and n_features must be at least 1 and noise at least 0, got {found}")
        self.reward, self.n_arms, self.n_features, self.noise = reward, n_arms, n_features, noise
        self.provenance: tuple[dict[str, Any], ...] = ()

    def rounds(self, seed: int, horizon: int) -> Rounds:
        """T rounds of one seed."""
        d = self.n_features
        x = uniform_on_sphere(horizon, self.n_arms, d, generator=stream(seed, "contexts"))
        task = stream(seed, "reward")
        if self.reward == "form":
            h = (x @ torch.randn(d, d, generator=task).T).square().sum(-1) / d
        else:
            along = x @ uniform_on_sphere(d, generator=task)
            h = 10 * along.square() if self.reward == "square" else torch.cos(3 * along)
        drawn = h + self.noise * torch.randn(h.shape, generator=stream(seed, "reward_noise"))
        return Rounds(x, 1 - drawn.clamp(0, 1), 1 - _clipped_mean(h, self.noise))


def _clipped_mean(mean: Tensor, std: float) -> Tensor:
    """E min(1, max(0, g)) for g ~ N(mean, std^2)."""
    if std == 0:
        return mean.clamp(0, 1)

    def below(t: Tensor) -> Tensor:  # E max(0, t + std z)
        z = t / std
        density = torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi)
        return t * torch.special.ndtr(z) + std * density

    return below(mean) - below(mean - 1)


class BanditRun(NamedTuple):
    """Per round and seed, (S, T): the chosen arm, its probability, its loss, the regret of the choice; with
    `random_arms` also the loss that was predicted for it."""

    arms: Tensor
    probabilities: Tensor
    predicted: Tensor
    losses: Tensor
    regret: Tensor

    def cumulative(self) -> Tensor:
        """(S, T) regret up to each round."""
        return self.regret.double().cumsum(1)


Environment = ClassificationBandit | SyntheticBandit


@torch.inference_mode(False)
@torch.enable_grad()  # learning needs gradients, whatever the caller switched off
def simulate(
    environment: Environment,
    settings: BanditSettings | Literal["random"],
    seeds: Sequence[int],
    horizon: int,
    *,
    hidden_dim: int = 64,
    batch_size: int = 32,
    random_arms: bool = False,
    device: str = "cpu",
    on_round: Callable[[int], None] | None = None,
) -> BanditRun:
    """Play `horizon` rounds with every seed side by side; one gradient step a round.

    A step takes the newest row and ``batch_size - 1`` earlier ones, drawn with replacement. All seeds are batched in
    one network (`ArmNetwork`), so a round costs little more than one seed's; each draw is from the seed's own streams.

    Parameters
    ----------
    settings
        The policy; "random" plays uniform arms and learns nothing.
    random_arms
        Play uniform arms, but predict and learn as the policy would: online regression.
    on_round
        Called with the number of finished rounds.

    Raises
    ------
    ValueError
        For settings that are neither, no seeds, no rounds or an empty batch.
    """
    if horizon < 1 or batch_size < 1:
        raise ValueError(f"horizon and batch_size must be at least 1, got {horizon} and {batch_size}")
    if not isinstance(settings, BanditSettings) and settings != "random":
        raise ValueError(f'settings must be BanditSettings(policy, ...) or "random", got {settings!r}')
    if not len(seeds):
        raise ValueError("seeds must hold at least one seed, got none")
    drawn = [environment.rounds(s, horizon) for s in seeds]
    contexts, losses, means = (torch.stack([getattr(r, f) for r in drawn]).to(device) for f in Rounds._fields)
    k, count = environment.n_arms, len(seeds)
    uniforms = torch.stack([torch.rand(horizon, generator=stream(s, "actions")) for s in seeds]).to(device)
    arms = torch.zeros(count, horizon, dtype=torch.long, device=device)
    chosen = torch.full((count, horizon), 1 / k, device=device)
    predicted = torch.zeros_like(chosen)
    if settings == "random" or random_arms:
        arms = (uniforms * k).long().clamp(max=k - 1)
    if isinstance(settings, BanditSettings):
        sizes = (hidden_dim, batch_size)
        forced = arms if random_arms else None
        arms, chosen, predicted = _play(
            environment, settings, seeds, contexts, losses, uniforms, forced, sizes, on_round
        )
    own = arms[..., None]
    regret = means.gather(2, own)[..., 0] - means.amin(2)
    seen = losses.gather(2, own)[..., 0]
    return BanditRun(*(t.cpu() for t in (arms, chosen, predicted, seen, regret)))


def _play(
    environment: Environment,
    settings: BanditSettings,
    seeds: Sequence[int],
    contexts: Tensor,
    losses: Tensor,
    uniforms: Tensor,
    forced: Tensor | None,
    sizes: tuple[int, int],
    on_round: Callable[[int], None] | None,
) -> tuple[Tensor, Tensor, Tensor]:
    hidden_dim, batch_size = sizes
    device, horizon, n_arms = contexts.device, contexts.shape[1], environment.n_arms
    network = ArmNetwork(
        seeds, environment.n_features, n_arms=n_arms if environment.disjoint else None, hidden_dim=hidden_dim
    ).to(contexts)  # device and type
    signs = [stream(s, "signs") for s in seeds]
    learner = BanditLearner(network, settings, n_arms, sign_generators=signs, noise_seed=seeds[0])
    replay = [torch.rand(horizon, batch_size - 1, generator=stream(s, "replay")) for s in seeds]
    earlier = torch.stack(replay).to(device)
    newest = torch.zeros(len(seeds), 1, dtype=torch.long, device=device)
    arms = torch.zeros_like(uniforms, dtype=torch.long)
    chosen, predicted, seen = (torch.zeros_like(uniforms) for _ in range(3))
    rows = torch.arange(len(seeds), device=device)[:, None]
    if not environment.disjoint:  # of a round's contexts only the chosen arm's is learned from
        memory = torch.zeros(contexts.shape[0], horizon, 1, contexts.shape[-1], device=device)
    else:
        memory = contexts
    for t in range(horizon):
        now = contexts[:, t : t + 1]
        if forced is None:
            p = learner.probabilities(now, nodes=17)[:, 0]
            arm = draw_arms(p, uniforms[:, t])
            chosen[:, t] = p.gather(1, arm[:, None])[:, 0]
        else:
            arm = forced[:, t]
            chosen[:, t] = 1 / n_arms
            predicted[:, t] = learner.predict(now)[:, 0].gather(1, arm[:, None])[:, 0]
        arms[:, t] = arm
        seen[:, t] = losses[:, t].gather(1, arm[:, None])[:, 0]
        learner.observe(now, arm[:, None])
        if not environment.disjoint:
            memory[:, t, 0] = now[rows[:, 0], 0, arm]
        pick = (earlier[:, t] * (t + 1)).long().clamp(max=t)
        pick = torch.cat([pick, newest + t], dim=1)
        taken = arms[rows, pick] if environment.disjoint else torch.zeros_like(pick)
        learner.update(memory[rows, pick], taken, seen[rows, pick])
        if on_round is not None:
            on_round(t + 1)
    return arms, chosen, predicted
