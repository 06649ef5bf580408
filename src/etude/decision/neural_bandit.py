"""`NeuralBandit`: choose among arms by a network's predicted losses, learn from the loss of the chosen one."""

import json
import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch
from numpy.random import Generator, RandomState
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from etude.data.randomness import as_generator
from etude.decision.arm_networks import ArmNetwork, ModuleArms, features_of
from etude.decision.bandit_learner import BanditLearner, BanditSettings, Policy, draw_arms
from etude.decision.decisions import (
    Decision,
    LoggedDecisions,
    WaitingDecisions,
    checked_contexts,
    losses_in_unit,
    numbers,
    tensor_of,
)
from etude.decision.off_policy import Estimator, PolicyValue, policy_value
from etude.layers.modes import gradients_on
from etude.training.replay import ReplayBuffer

_LARGE = 5_000_000


class NeuralBandit:
    """A contextual bandit that predicts losses with a network.

    Losses lie in [0, 1]; give ``reward=`` instead where larger is better. All policies share one replay memory and one
    kind of gradient step, and all predict losses from the same initial network.

    Parameters
    ----------
    n_arms, n_features
        K arms; length d of a context. A context is (K, d), one row an arm, or with ``disjoint=True`` one vector (d,)
        for all arms (classes, actions without features of their own). Batches have an axis in front. `n_features` may
        be left out with a `module` whose first parametered layer is linear.
    policy
        "squarecb", "fastcb": inverse-gap weighting (NeuSquareCB, NeuFastCB). "epsilon", "greedy", "ucb", "ts".
    gamma, gamma_scale, horizon, best_loss, epsilon, nu, prior_precision, lr, perturb, c_p, n_draws, radius,
    predicts
        See `etude.decision.BanditSettings`.
    module
        Any module from (..., d) to (..., 1) in place of the built-in network (with ``disjoint=True`` from (..., K d),
        the context in the arm's block). It is trained in place.
    hidden_dim
        Width of the built-in network, one hidden layer.
    batch_size
        Rows of a gradient step: the newest and others from memory.
    memory
        Rows kept; beyond that the oldest go.
    random_state
        int, generator or None.

    Raises
    ------
    ValueError
        For settings that make no sense.
    """

    def __init__(
        self,
        n_arms: int,
        n_features: int | None = None,
        *,
        policy: Policy = "fastcb",
        gamma: float | Literal["theory", "sqrt"] = "theory",
        gamma_scale: float = 1.0,
        horizon: int | None = None,
        best_loss: float | None = None,
        epsilon: float = 0.05,
        nu: float = 0.01,
        prior_precision: float = 0.1,
        lr: float = 0.1,
        perturb: Literal["expected", "sampled"] = "expected",
        c_p: float = 1.0,
        n_draws: int | None = None,
        radius: float | None = None,
        predicts: Literal["loss", "reward"] = "loss",
        disjoint: bool = False,
        module: nn.Module | None = None,
        hidden_dim: int = 100,
        batch_size: int = 32,
        memory: int = 10_000,
        random_state: int | torch.Generator | RandomState | None = None,
        device: str = "cpu",
    ) -> None:
        if n_features is None:
            n_features = features_of(module, n_arms if disjoint else 1)
        if any(n < 1 or n % 1 for n in (n_arms, n_features, batch_size)):
            found = f"{n_arms}, {n_features} and {batch_size}"
            raise ValueError(f"n_arms, n_features and batch_size must be at least 1 and whole, got {found}")
        self.settings = BanditSettings(
            policy,
            gamma,
            gamma_scale,
            horizon,
            best_loss,
            epsilon,
            nu,
            prior_precision,
            lr,
            perturb,
            c_p,
            n_draws,
            radius,
            predicts,
        )
        self.n_arms, self.n_features, self.disjoint = n_arms, n_features, disjoint
        self.batch_size, self.hidden_dim, self.device = batch_size, hidden_dim, device
        if isinstance(random_state, Generator):
            raise TypeError("random_state cannot be numpy's Generator: pass an int drawn from it")
        self._generator = as_generator(random_state)
        network: ArmNetwork | ModuleArms
        with torch.inference_mode(False):  # what is made in inference mode cannot learn outside
            if module is None:
                blocks = n_arms if disjoint else None
                network = ArmNetwork([self._generator], n_features, n_arms=blocks, hidden_dim=hidden_dim)
            else:
                network = ModuleArms(module, n_arms=n_arms if disjoint else None)
            self.network = network.to(device).eval()
            self._warn()
            seed = int(torch.randint(2**31 - 1, (1,), generator=self._generator))
            self._learner = BanditLearner(
                self.network, self.settings, n_arms, sign_generators=[self._generator], noise_seed=seed
            )
        self._memory = ReplayBuffer(memory, "fifo", self._generator, device=device)
        self._waiting = WaitingDecisions()

    def _warn(self) -> None:
        s, size = self.settings, sum(p.numel() for p in self.network.parameters())
        gamma, least = s.gamma_at(1, self.n_arms) if s.policy == "fastcb" else math.inf, 10 * self.n_arms
        if gamma < least:
            warnings.warn(
                f"gamma {gamma:.4g} is below 10 K = {least}: fastcb's guarantee is lost",
                stacklevel=3,
            )
        if s.policy in ("ucb", "ts") and size > _LARGE:
            gib = 4 * size * self.n_arms / 2**30
            warnings.warn(
                f"{s.policy} keeps a diagonal covariance of {size:,} numbers and takes the gradient of every arm "
                f"({gib:.1f} GiB a round): squarecb and fastcb need neither",
                stacklevel=3,
            )

    @property
    def rounds(self) -> int:
        """Losses seen so far."""
        return self._learner.rounds

    # --- choosing --------------------------------------------------------------------------------------------

    def choose(self, contexts: Any) -> Decision:
        """Draw an arm for every context.

        Returns
        -------
        Decision
            Unpacks to ``action, prob``; its `id` serves `partial_fit` when the loss comes later.
        """
        x, single = self._contexts(contexts)
        p = self._learner.probabilities(x[None])[0]
        arms = draw_arms(p, torch.rand(len(p), generator=self._generator).to(p.device))
        prob = p.gather(1, arms[:, None])[:, 0]
        number = self._waiting.add(x, arms)
        if single:
            return Decision(int(arms[0]), float(prob[0]), number)
        return Decision(arms.cpu(), prob.cpu(), number)

    def probabilities(self, contexts: Any) -> Tensor:
        """(B, K) probability of every arm, (K,) for one context, if it came now."""
        x, single = self._contexts(contexts)
        with self._looking():
            p = self._learner.probabilities(x[None])[0].cpu()
        return p[0] if single else p

    def predict_loss(self, contexts: Any) -> Tensor:
        """(B, K) predicted losses, cut to [0, 1]; (K,) for one context."""
        x, single = self._contexts(contexts)
        with self._looking():
            losses = self._learner.predict(x[None])[0].clamp(0, 1).cpu()
        return losses[0] if single else losses

    @contextmanager
    def _looking(self) -> Iterator[None]:
        """What is only asked moves no random state, so that it changes no later choice."""
        state = self._generator.get_state()
        try:
            yield
        finally:
            self._generator.set_state(state)

    # --- learning --------------------------------------------------------------------------------------------

    def partial_fit(
        self,
        contexts: Any = None,
        action: Any = None,
        *,
        loss: Any = None,
        reward: Any = None,
        prob: Any = None,
        decision: int | Decision | None = None,
    ) -> "NeuralBandit":
        """Learn from the losses of chosen arms: keep the rows and take one gradient step.

        Parameters
        ----------
        contexts, action
            What was seen and done; or leave both out and name the `decision`.
        loss, reward
            In [0, 1], one of the two, a number or (B,).
        prob
            Accepted for symmetry with `choose`; the update does not depend on it.
        decision
            A `Decision` or its id, for feedback that comes later. Each can be answered once.

        Raises
        ------
        ValueError
            For a loss outside of [0, 1] or missing, no rows, an unknown decision, an arm that does not exist, NaN.
        TypeError
            For losses or propensities that are no numbers.
        """
        x, arms = self._answered(contexts, action, decision)
        losses = losses_in_unit(loss, reward, len(x)).to(self.device)
        if prob is not None:
            given = numbers(prob, "prob", len(x), torch.float64)
            if not bool(((given > 0) & (given <= 1)).all()):
                raise ValueError(f"prob must lie in (0, 1], got {given.tolist()[:5]}")
        with gradients_on(), self._all_or_nothing():
            # clones, as what was made in inference mode cannot be learned from
            self._step(x.clone(), arms.clone(), losses.clone())
        if decision is not None:
            self._waiting.answered(decision)
        return self

    def _step(self, x: Tensor, arms: Tensor, losses: Tensor) -> None:
        self._learner.observe(x[None], arms[None])
        if not self.disjoint:
            x, arms = x[torch.arange(len(x)), arms][:, None], torch.zeros_like(arms)
        self._memory.add({"x": x, "arm": arms, "loss": losses})
        more = self.batch_size - len(x)
        if more > 0:
            old = self._memory.sample(more)
            x, arms, losses = (torch.cat(pair) for pair in ((x, old["x"]), (arms, old["arm"]), (losses, old["loss"])))
        self.network.train()
        self._learner.update(x[None], arms[None], losses[None])

    @contextmanager
    def _all_or_nothing(self) -> Iterator[None]:
        """If the module fails, nothing has been counted or drawn (in a full memory the oldest rows are gone)."""
        learner, memory = self._learner, self._memory
        counts, state = (learner.rounds, memory.num_seen), self._generator.get_state()
        precision = None if learner.precision is None else [u.clone() for u in learner.precision]
        try:
            yield
        except BaseException:
            (learner.rounds, memory.num_seen), learner.precision = counts, precision
            self._generator.set_state(state)
            raise
        finally:
            self.network.eval()

    def _answered(self, contexts: Any, action: Any, decision: Any) -> tuple[Tensor, Tensor]:
        if decision is not None:
            if contexts is not None or action is not None:
                raise ValueError("give contexts and action, or the decision that they belong to, not both")
            return self._waiting.find(decision)
        if contexts is None or action is None:
            raise ValueError("partial_fit needs contexts and action, or decision=")
        x, _ = self._contexts(contexts)
        try:
            arms = tensor_of(action, device=self.device).reshape(-1)
        except (TypeError, ValueError, RuntimeError) as error:
            raise TypeError(f"action must hold {len(x)} integers, got {action!r}") from error
        if arms.is_floating_point() or len(arms) != len(x):
            raise ValueError(f"action must hold {len(x)} integers, got {tuple(arms.shape)} of {arms.dtype}")
        if int(arms.min()) < 0 or int(arms.max()) >= self.n_arms:
            raise ValueError(f"action must be 0 to {self.n_arms - 1}, got {arms.tolist()[:5]}")
        return x, arms.long()

    # --- off-policy evaluation -------------------------------------------------------------------------------

    def evaluate(
        self, logged: LoggedDecisions | Mapping[str, Any], estimator: Estimator = "dr", *, confidence: float = 0.95
    ) -> PolicyValue:
        """Mean loss this bandit would have had on logged decisions, as it stands now, with a confidence interval.

        Parameters
        ----------
        logged
            `LoggedDecisions` or a mapping with contexts, action, loss (or reward) and prob.
        estimator
            "ips", "snips" or "dr" (with this bandit's own predictions).

        Raises
        ------
        ValueError
            If propensities, contexts or actions were not logged, or as in `policy_value`.
        """
        rows = logged._asdict() if isinstance(logged, LoggedDecisions) else dict(logged)
        if rows.get("prob") is None:
            raise ValueError(
                "the logged decisions lack prob, the probabilities with which the actions were chosen (propensities): "
                "without them no off-policy estimate is possible; `choose` returns them"
            )
        for name in ("contexts", "action"):
            if rows.get(name) is None:
                raise ValueError(f"the logged decisions lack {name}; they hold {', '.join(rows)}")
        x, _ = self._contexts(rows["contexts"])
        losses = losses_in_unit(rows.get("loss"), rows.get("reward"), len(x))
        actions, prob = (tensor_of(rows[name]).reshape(-1).cpu() for name in ("action", "prob"))
        with torch.no_grad(), self._looking():
            p = self._learner.probabilities(x[None])[0].cpu()
            predicted = self._learner.predict(x[None])[0].clamp(0, 1).cpu()
        return policy_value(p, actions, losses, prob, estimator=estimator, predicted=predicted, confidence=confidence)

    # --- state -----------------------------------------------------------------------------------------------

    def save(self, path: str | Path) -> None:
        """Write weights, theta_0, memory, counts and random state as safetensors. Decisions that wait are not kept."""
        learner = self._learner
        tensors = {f"network.{k}": v for k, v in self.network.state_dict().items()}
        tensors |= {f"memory.{k}": v for k, v in self._memory.state_dict().items()}
        tensors |= learner.state_dict()
        meta = {
            "settings": asdict(self.settings), "rounds": learner.rounds, "decisions": self._waiting.made,
            "n_arms": self.n_arms, "n_features": self.n_features, "disjoint": self.disjoint,
            "batch_size": self.batch_size, "hidden_dim": self.hidden_dim, "memory": self._memory.size,
            "module": isinstance(self.network, ModuleArms),
        }  # fmt: skip
        kept = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
        text = json.dumps(meta, default=lambda value: value.item())  # of numpy's numbers and tensors of one
        save_file(kept, str(path), {"bandit": text})

    @classmethod
    @torch.inference_mode(False)
    def load(cls, path: str | Path, *, module: nn.Module | None = None, device: str = "cpu") -> "NeuralBandit":
        """The bandit that `save` wrote; it goes on as if it had never stopped.

        Parameters
        ----------
        module
            A module built like the one that was saved, where one was; its weights are overwritten.
        """
        with safe_open(str(path), framework="pt") as file:
            meta = json.loads((file.metadata() or {}).get("bandit", "null"))
            if meta is None:
                raise ValueError(f"{path} does not hold a NeuralBandit")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if meta["module"] != (module is not None):
            raise ValueError(
                f"{path} was saved with{'' if meta['module'] else 'out'} a module of its own: pass module="
            )
        named = {k: meta[k] for k in ("n_arms", "n_features", "disjoint", "batch_size", "hidden_dim", "memory")}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # said when it was made
            made = cls(**named, **meta["settings"], module=module, random_state=0, device=device)

        def part(prefix: str) -> dict[str, Tensor]:
            return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

        made.network.load_state_dict(part("network."))
        made.network.to(device)
        made._learner.load_state_dict(tensors)
        made._learner.rounds, made._waiting.made = meta["rounds"], meta["decisions"]
        like = {"x": torch.zeros(1), "arm": torch.zeros(1), "loss": torch.zeros(1)}
        made._memory.load_state_dict(part("memory."), like=like)
        return made

    def _contexts(self, contexts: Any) -> tuple[Tensor, bool]:
        dtype = next(self.network.parameters()).dtype
        arms = None if self.disjoint else self.n_arms
        return checked_contexts(contexts, self.n_features, arms, dtype=dtype, device=self.device)
