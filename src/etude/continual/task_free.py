"""Task-free MAS: importance is updated where the loss has settled, so nobody has to say where a task ends.

A window holds the latest batch losses. While armed, mean < `mean_threshold` and deviation < `std_threshold` is a
plateau: Omega is taken on a buffer of hard samples, theta* moves, and the detector disarms, until the mean exceeds
mean + deviation of that plateau: a peak, the data have changed. Omega is the running mean over updates.

Source: Aljundi, Kelchtermans & Tuytelaars 2019, arXiv 1812.03596, algorithm 1 (Aljundi 2019, arXiv 1910.02718).
"""

import math
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from etude.continual.consolidation import MAS
from etude.continual.heads import check_labels, check_rows, cross_entropies, loss_of_each
from etude.continual.importance import Forward
from etude.layers.modes import evaluating


class PlateauDetector:
    """Finds plateaus and peaks in a series of losses.

    Parameters
    ----------
    window
        Losses looked at.
    mean_threshold, std_threshold
        A plateau has a mean and a deviation (over the window, divided by its length) below these.
    """

    def __init__(self, window: int = 5, mean_threshold: float = 0.2, std_threshold: float = 0.1) -> None:
        if window < 2 or not mean_threshold > 0 or not std_threshold > 0:
            raise ValueError(f"need a window of at least 2 and positive thresholds, got {window}, {mean_threshold}, "
                             f"{std_threshold}")  # fmt: skip
        self.window, self.mean_threshold, self.std_threshold = window, mean_threshold, std_threshold
        self._losses: deque[float] = deque(maxlen=window)
        self.armed = True
        self._peak = math.inf  # the mean above which it arms again

    def observe(self, loss: float) -> Literal["plateau", "peak"] | None:
        """Take in a batch's loss; what it shows, if anything.

        Raises
        ------
        ValueError
            If the loss is not finite.
        """
        if not math.isfinite(loss):
            raise ValueError(f"the loss is {loss}: the model diverged")
        self._losses.append(float(loss))
        if len(self._losses) < self.window:
            return None
        mean = sum(self._losses) / self.window
        std = math.sqrt(sum((v - mean) ** 2 for v in self._losses) / self.window)
        if self.armed and mean < self.mean_threshold and std < self.std_threshold:
            self.armed, self._peak = False, mean + std
            return "plateau"
        if not self.armed and mean > self._peak:
            self.armed, self._peak = True, math.inf
            return "peak"
        return None

    def state_dict(self) -> dict[str, Tensor]:
        return {
            "losses": torch.tensor(list(self._losses), dtype=torch.float64),
            "armed": torch.tensor(self.armed),
            "peak": torch.tensor(self._peak, dtype=torch.float64),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._losses = deque(state["losses"].tolist(), maxlen=self.window)
        self.armed, self._peak = bool(state["armed"]), float(state["peak"])


class TaskFreeMAS(MAS):
    """MAS on a stream without task borders, with a buffer of hard samples.

    For each batch train on ``loss(model, batch)``, a few updates, with `penalty`; then `observe` the batch.

    Parameters
    ----------
    model, lam, per_sample, forward
        As for `MAS`.
    hard_size
        Samples in the hard buffer: of those kept and those of the batch, the ones of largest loss.
    window, mean_threshold, std_threshold
        See `PlateauDetector`.
    losses
        ``losses(outputs, y)``: one number a sample; None: cross-entropy.
    detect
        Replaces the detector: called with each batch's number and loss, True is a plateau.

    Attributes
    ----------
    plateaus, peaks
        Numbers of the batches at which they were found, from 0.
    """

    def __init__(
        self,
        model: nn.Module,
        lam: float = 1.0,
        per_sample: bool = True,
        *,
        hard_size: int = 30,
        window: int = 5,
        mean_threshold: float = 0.2,
        std_threshold: float = 0.1,
        losses: Callable[[Tensor, Tensor], Tensor] | None = None,
        detect: Callable[[int, float], bool] | None = None,
        forward: Forward | None = None,
        lr: float | None = None,
    ) -> None:
        super().__init__(model, lam, per_sample, forward=forward, lr=lr, combine="mean")
        if hard_size < 1:
            raise ValueError(f"hard_size must be at least 1, got {hard_size}")
        self.hard_size = hard_size
        self.detector = PlateauDetector(window, mean_threshold, std_threshold)
        self.detect = detect
        self.losses = losses or cross_entropies
        self.hard: tuple[Tensor, Tensor] | None = None
        self.num_batches = 0
        self.plateaus: list[int] = []
        self.peaks: list[int] = []

    def _outputs(self, x: Tensor) -> Tensor:
        return self.model(x) if self.forward is None else self.forward(self.model, x)  # type: ignore[no-any-return]

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """Mean loss of the batch (x, y) plus that of the hard samples, no penalty. Fits `loss=` of `Updater`."""
        x, y = batch[0], batch[1]
        count = len(x)
        if self.hard is not None:
            x, y = torch.cat([x, self.hard[0].to(x)]), torch.cat([y, self.hard[1].to(y)])
        out = model(x) if self.forward is None else self.forward(model, x)
        check_labels(out, y)
        each = loss_of_each(self.losses, out, y)
        return each[:count].mean() + (each[count:].mean() if len(each) > count else 0.0)

    def observe(self, x: Tensor, y: Tensor) -> bool:
        """Book a batch after its updates: hard samples, detector, and the importance if this is a plateau.

        Returns True when Omega was updated.

        Raises
        ------
        ValueError
            If the batch is empty or not of tensors, a label lies outside the head, or the detector's loss not finite.
        """
        check_rows(x, y)
        if not len(x):
            raise ValueError("no samples: the batch is empty")
        with evaluating(self.model), torch.no_grad():
            pool = (x.detach(), y.detach())
            if self.hard is not None:
                pool = (torch.cat([pool[0], self.hard[0].to(x)]), torch.cat([pool[1], self.hard[1].to(y)]))
            out = self._outputs(pool[0])
            check_labels(out, pool[1])
            each = loss_of_each(self.losses, out, pool[1])
        loss = float(each[: len(x)].mean())
        number = self.num_batches
        if self.detect is not None:
            found = "plateau" if self.detect(number, loss) else None
        else:
            found = self.detector.observe(loss)  # may refuse, and then nothing is booked
        self.num_batches += 1
        hardest = each.topk(min(self.hard_size, len(each))).indices
        self.hard = (pool[0][hardest], pool[1][hardest])
        if found == "peak":
            self.peaks.append(number)
        if found != "plateau":
            return False
        self.plateaus.append(number)
        self.update(self.hard[0])
        return True

    def state_dict(self) -> dict[str, Tensor]:
        hard = {} if self.hard is None else {"hard.x": self.hard[0].clone(), "hard.y": self.hard[1].clone()}
        found = {n: torch.tensor(getattr(self, n), dtype=torch.int64) for n in ("num_batches", "plateaus", "peaks")}
        detector = {f"detector.{n}": t for n, t in self.detector.state_dict().items()}
        return {**super().state_dict(), **hard, **found, **detector}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.hard = (state["hard.x"].clone(), state["hard.y"].clone()) if "hard.x" in state else None
        self.num_batches = int(state["num_batches"])
        self.plateaus, self.peaks = state["plateaus"].tolist(), state["peaks"].tolist()
        prefix = "detector."
        self.detector.load_state_dict({n.removeprefix(prefix): t for n, t in state.items() if n.startswith(prefix)})
