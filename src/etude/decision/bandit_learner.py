"""Predicting, choosing and learning of neural bandits, for S seeds of one policy at once.

Source: Deb et al. 2023, arXiv 2312.07145 (NeuSquareCB, NeuFastCB); baselines NeuralUCB, Zhou et al. 2020, arXiv
1911.04462, and NeuralTS, Zhang et al. 2021, arXiv 2010.00827, with a diagonal covariance. Every policy starts
from the same initial network: whether a net near 0 is optimistic or pessimistic matters more than the rule.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from etude.data.tasks import Split
from etude.decision import gap_rules
from etude.decision.arm_networks import ArmNetwork, ModuleArms
from etude.layers.parameters import Anchor
from etude.training.config import TrainConfig
from etude.training.updater import Updater

Policy = Literal["squarecb", "fastcb", "epsilon", "ucb", "ts", "greedy"]
_GAUSS = 12  # nodes of the expectation over the perturbation's sum


@dataclass(frozen=True)
class BanditSettings:
    """How a policy explores and learns; the defaults are those of `NeuralBandit`.

    policy
        "squarecb", "fastcb", "epsilon", "ucb", "ts" or "greedy".
    gamma
        Exploration of the gap rules (larger: less): a number, "theory" (needs `horizon`), or "sqrt" for sqrt(K t).
    gamma_scale
        Factor of that.
    horizon, best_loss
        T and L*, the total loss of the best policy, for "theory": sqrt(K T / log T), and
        max(sqrt(K L* / (3 log T)), 10 K) for "fastcb" (10 K where L* is not known).
    epsilon, nu, prior_precision
        Share of random arms; exploration of "ucb" (variance) and "ts" (standard deviation); start of their U (lambda).
    lr
        Step size of gradient descent.
    perturb, c_p, n_draws
        The perturbed network f + c_p m^(-1/4) (theta - theta_0) . eps. "sampled": random signs eps, `n_draws` of them
        (None: log m). "expected": the exact expectation, no noise and cheaper; for the square loss a ridge towards
        theta_0, for the logistic loss by quadrature, taking the sum over many signs as normal. c_p = 0: none.
        Only the gap rules are perturbed.
    radius
        Keep theta within this distance of theta_0; None: no projection.
    predicts
        What the network puts out: the "loss", or the "reward", one minus the loss. A net that starts near 0 takes
        every arm for the best when it predicts losses and for the worst when it predicts rewards.
    """

    policy: Policy = "fastcb"
    gamma: float | Literal["theory", "sqrt"] = "theory"
    gamma_scale: float = 1.0
    horizon: int | None = None
    best_loss: float | None = None
    epsilon: float = 0.05
    nu: float = 0.01
    prior_precision: float = 0.1
    lr: float = 0.1
    perturb: Literal["expected", "sampled"] = "expected"
    c_p: float = 1.0
    n_draws: int | None = None
    radius: float | None = None
    predicts: Literal["loss", "reward"] = "loss"

    def __post_init__(self) -> None:
        if self.policy not in get_args(Policy):
            raise ValueError(f"unknown policy {self.policy!r}: choose one of {', '.join(get_args(Policy))}")
        if isinstance(self.gamma, str):
            if self.gamma not in ("theory", "sqrt"):
                raise ValueError(f'gamma must be a number, "theory" or "sqrt", got {self.gamma!r}')
        elif self.gamma is None or not 0 < self.gamma < math.inf:
            raise ValueError(f'gamma must be positive and finite, got {self.gamma}; or use "theory" or "sqrt"')
        if self.gamma == "theory" and self.policy == "squarecb" and self.horizon is None:
            raise ValueError('gamma="theory" needs the number of rounds: give horizon, or gamma="sqrt"')
        if self.perturb not in ("expected", "sampled"):
            raise ValueError(f'perturb must be "expected" or "sampled", got {self.perturb!r}')
        if self.predicts not in ("loss", "reward"):
            raise ValueError(f'predicts must be "loss" or "reward", got {self.predicts!r}')
        if not 0 <= self.epsilon <= 1:
            raise ValueError(f"epsilon must lie in [0, 1], got {self.epsilon}")
        for name in ("gamma_scale", "prior_precision", "lr", "horizon", "n_draws", "radius"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                hint = "; None: no projection" if name == "radius" else ""
                raise ValueError(f"{name} must be positive and finite, got {value}{hint}")
        if self.n_draws is not None and self.n_draws != int(self.n_draws):
            raise ValueError(f"n_draws must be a whole number, got {self.n_draws}")
        for name in ("nu", "c_p", "best_loss"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise ValueError(f"{name} must be at least 0 and finite, got {value}")

    def gamma_at(self, t: int, n_arms: int) -> float:
        """gamma of round t = 1, 2, ..."""
        if self.gamma == "sqrt":
            return self.gamma_scale * math.sqrt(n_arms * t)
        if not isinstance(self.gamma, str):
            return self.gamma_scale * self.gamma
        log_t = math.log(max(3, self.horizon or 3))
        if self.policy == "fastcb":
            rate = math.sqrt(n_arms * (self.best_loss or 0.0) / (3 * log_t))
            return self.gamma_scale * max(rate, 10 * n_arms)
        assert self.horizon is not None
        return self.gamma_scale * math.sqrt(n_arms * self.horizon / log_t)


class _SquaredLength(torch.autograd.Function):
    """|theta - theta_0|^2 of every seed (S,), handed in ready-made; its gradient is twice the way gone."""

    @staticmethod
    def forward(ctx: Any, squared: Tensor, moves: list[Tensor], *parameters: Tensor) -> Tensor:
        ctx.moves = moves
        return squared.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        twice = 2 * grads[0]
        return None, None, *(twice.view(-1, *[1] * (m.ndim - 1)) * m for m in ctx.moves)


class BanditLearner:
    """The network, its exploration and its gradient steps. Contexts as the network takes them; S seeds in front.

    Parameters
    ----------
    network
        Its weights now are theta_0.
    sign_generators
        One generator a seed for the signs of ``perturb="sampled"``.
    """

    def __init__(
        self,
        network: ArmNetwork | ModuleArms,
        settings: BanditSettings,
        n_arms: int,
        *,
        sign_generators: Sequence[torch.Generator] = (),
        noise_seed: int = 0,
    ) -> None:
        self.network, self.settings, self.n_arms = network, settings, n_arms
        self.rounds = 0
        self.logistic = settings.policy == "fastcb"
        self.strength = settings.c_p * network.width**-0.25 if settings.policy in ("squarecb", "fastcb") else 0.0
        self.n_draws = settings.n_draws or max(1, math.ceil(math.log(network.width)))
        self.signs = list(sign_generators)
        if self.strength and settings.perturb == "sampled" and len(self.signs) != network.num_seeds:
            raise ValueError(f"sampled perturbations need {network.num_seeds} sign generators, got {len(self.signs)}")
        self.anchor = Anchor(network)
        self.precision: list[Tensor] | None = None
        if settings.policy in ("ucb", "ts"):
            self.precision = network.start_precision(settings.prior_precision)
        nodes, weights = np.polynomial.hermite_e.hermegauss(_GAUSS)
        like = next(network.parameters())
        self._nodes = torch.from_numpy(nodes).to(like)
        self._weights = torch.from_numpy(weights / weights.sum()).to(like)
        self._way: tuple[Tensor, list[Tensor]] | None = None  # of the present weights; None: to be computed
        self.updater = Updater(network, self._loss, TrainConfig(optimizer="sgd", lr=settings.lr), seed=noise_seed)

    # --- the perturbed network -------------------------------------------------------------------------------

    def _trainable(self) -> list[tuple[str, nn.Parameter]]:
        return [(name, p) for name, p in self.network.named_parameters() if p.requires_grad]

    @torch.no_grad()
    def _gone(self) -> tuple[Tensor, list[Tensor]]:
        """|theta - theta_0|^2 (S,) and the moves themselves; once for the same weights."""
        if self._way is None:
            moves = [p - self.anchor.start[name] for name, p in self._trainable()]
            if moves[0].dtype in (torch.float16, torch.bfloat16):  # small squares vanish in half precision
                moves = [m.float() for m in moves]
            flat = [m.reshape(self.network.num_seeds, 1, -1) for m in moves]
            self._way = torch.stack([torch.bmm(m, m.mT)[:, 0, 0] for m in flat]).sum(0), moves
        return self._way

    def squared_distance(self) -> Tensor:
        """|theta - theta_0|^2 (S,); differentiable."""
        squared, moves = self._gone()
        if not torch.is_grad_enabled():
            return squared
        found: Tensor = _SquaredLength.apply(squared, moves, *(p for _, p in self._trainable()))  # type: ignore[no-untyped-call]
        return found

    def shifts(self) -> tuple[Tensor, Tensor]:
        """Values that the perturbation adds to f, (S, draws), and their weights (draws,).

        "expected": nodes of a normal distribution whose deviation is c_p m^(-1/4) |theta - theta_0|.
        """
        if self.settings.perturb == "expected":
            spread = self.strength * torch.sqrt(self.squared_distance() + 1e-12)
            return spread[:, None].to(self._nodes) * self._nodes, self._weights
        moves = [(p - self.anchor.start[name]).reshape(self.network.num_seeds, -1) for name, p in self._trainable()]
        rows = []
        for i, generator in enumerate(self.signs):
            parts = []
            for move in moves:
                size = (self.n_draws, move.shape[1])
                signs = torch.randint(2, size, generator=generator, device=generator.device) * 2 - 1
                parts.append(signs.to(move) @ move[i])
            rows.append(torch.stack(parts).sum(0))
        drawn = self.strength * torch.stack(rows)
        return drawn, torch.full((self.n_draws,), 1 / self.n_draws, dtype=drawn.dtype, device=drawn.device)

    def _loss(self, network: nn.Module, batch: Split) -> Tensor:
        """Sum over seeds of the mean loss over the rows and over the perturbation."""
        raw, y = self.network.chosen(batch.x, batch.groups), batch.y  # (S, B)
        y = y.to(raw.dtype)
        if self.settings.predicts == "reward":
            y = 1 - y
        ridge = self.strength and self.settings.perturb == "expected" and not self.logistic
        weights = None
        if self.strength and not ridge:
            added, weights = self.shifts()
            raw = raw[..., None] + added[:, None]  # (S, B, draws)
            y = y[..., None].expand_as(raw)
        if self.logistic:
            losses = F.binary_cross_entropy_with_logits(raw, y, reduction="none")
        else:
            losses = 0.5 * (raw - y).square()
        if weights is not None:
            losses = losses @ weights
        total = losses.mean(1).sum()
        return total + self.strength**2 / 2 * self.squared_distance().sum() if ridge else total

    # --- choosing --------------------------------------------------------------------------------------------

    @torch.no_grad()
    def predict(self, contexts: Tensor) -> Tensor:
        """Predicted losses (S, B, K): f, or for "fastcb" the mean of sigmoid of the perturbed f; one minus that where
        the network predicts rewards.

        The perturbation adds the same to every arm, so it does not change what the square loss's rule does.
        """
        found = self._output(contexts)
        return 1 - found if self.settings.predicts == "reward" else found

    def _output(self, contexts: Tensor) -> Tensor:
        raw = self.network.predict(contexts)
        if not self.logistic:
            return raw
        if not self.strength:
            return torch.sigmoid(raw)
        added, weights = self.shifts()
        return torch.sigmoid(raw[..., None] + added[:, None, None]) @ weights

    @torch.no_grad()
    def probabilities(self, contexts: Tensor, *, nodes: int = 33) -> Tensor:
        """(S, B, K) probability of every arm in the next round."""
        s, losses = self.settings, self.predict(contexts)
        if losses.dtype in (torch.float16, torch.bfloat16):  # in which shares of many arms do not sum to 1
            losses = losses.float()
        gamma = s.gamma_at(self.rounds + 1, self.n_arms) if "cb" in s.policy and s.policy != "ucb" else 1.0
        if s.policy == "squarecb":
            return gap_rules.squarecb_probabilities(losses, gamma)
        if s.policy == "fastcb":
            return gap_rules.fastcb_probabilities(losses, gamma)
        if s.policy in ("epsilon", "greedy"):
            return gap_rules.epsilon_greedy_probabilities(losses, s.epsilon if s.policy == "epsilon" else 0.0)
        assert self.precision is not None
        squares = self.network.squared_gradients(contexts, self.precision)
        if s.policy == "ucb":
            optimistic = losses - torch.sqrt(s.prior_precision * s.nu * squares)
            return gap_rules.epsilon_greedy_probabilities(optimistic, 0.0)
        return gap_rules.thompson_probabilities(losses, s.nu * torch.sqrt(squares), nodes=nodes)

    # --- learning --------------------------------------------------------------------------------------------

    @torch.no_grad()
    def observe(self, contexts: Tensor, arms: Tensor) -> None:
        """Count rows whose loss is known, (S, B), before learning from them."""
        self.rounds += arms.shape[1]
        if self.precision is not None:
            self.network.add_precision(contexts, arms, self.precision)

    def update(self, contexts: Tensor, arms: Tensor, losses: Tensor) -> float:
        """One gradient step on rows (S, B) of contexts, chosen arms and their losses; the loss before it."""
        loss = self.updater.update(Split(contexts, losses, arms))["loss"]
        self._way = None
        if self.settings.radius is not None:
            self._project(self.settings.radius)
        return loss

    @torch.no_grad()
    def _project(self, radius: float) -> None:
        squared, moves = self._gone()
        share = (radius / squared.sqrt().clamp_min(radius)).clamp(max=1)  # (S,)
        for (name, p), move in zip(self._trainable(), moves, strict=True):
            p.copy_(self.anchor.start[name] + share.view(-1, *[1] * (p.ndim - 1)) * move)
        self._way = None

    # --- state -----------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Tensor]:
        """theta_0, the diagonal U and the random states of the steps; weights and `rounds` are kept elsewhere."""
        state = {f"start.{k}": v for k, v in self.anchor.start.items()}
        state |= {f"precision.{i}": u for i, u in enumerate(self.precision or ())}
        return state | {f"noise.{i}": s for i, s in enumerate(self.updater.noise.states)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on where `state_dict` was taken; entries of other names are not looked at."""
        device = next(self.network.parameters()).device
        found = {name: v for name, v in state.items() if name.startswith("start.")}
        self.anchor.start = {name.removeprefix("start."): v.to(device) for name, v in found.items()}
        if self.precision is not None:
            self.precision = [state[f"precision.{i}"].to(device) for i in range(len(self.precision))]
        self.updater.noise.states = [v for _, v in sorted(_numbered(state, "noise.").items())]
        self._way = None


def _numbered(state: Mapping[str, Tensor], prefix: str) -> dict[int, Tensor]:
    return {int(name.removeprefix(prefix)): v for name, v in state.items() if name.startswith(prefix)}


def draw_arms(probabilities: Tensor, uniforms: Tensor) -> Tensor:
    """Arms (...) from probabilities (..., K) and uniform numbers (...): the inverse of the distribution function."""
    below = probabilities.cumsum(-1)
    return (uniforms[..., None] * below[..., -1:] >= below).sum(-1).clamp(max=probabilities.shape[-1] - 1)
