"""What training through physics costs: rows run through boxes, and digital multiply-accumulates.

A linear layer of k outputs and q inputs costs kq multiply-accumulates (MACs) a row forwards and twice that backwards
(once for the weights, once for the inputs, where those are needed). Element-wise work is left out everywhere.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass
class Costs:
    """Running totals."""

    physical_training: int = 0
    """Rows through boxes."""
    physical_prediction: int = 0
    digital_training: int = 0
    digital_prediction: int = 0

    def run(self, rows: int, *, training: bool) -> None:
        """Rows through a box."""
        if training:
            self.physical_training += rows
        else:
            self.physical_prediction += rows

    def train(self, rows: int, k: int, q: int, inner_steps: int) -> None:
        """Local steps on a layer: forwards and the weights' gradient, then once forwards to the next layer."""
        self.digital_training += rows * k * q * (2 * inner_steps + 1)

    def predict(self, rows: int, k: int, q: int) -> None:
        """A layer's output for so many rows."""
        self.digital_prediction += rows * k * q

    def report(self) -> dict[str, int]:
        """The totals by name."""
        return {
            "physical_runs_training": self.physical_training,
            "physical_runs_prediction": self.physical_prediction,
            "digital_macs_training": self.digital_training,
            "digital_macs_prediction": self.digital_prediction,
        }


def backprop_macs(rows: int, widths: Sequence[int]) -> int:
    """MACs of one step of back-propagation through a chain of linear layers ``widths[0] -> widths[1] -> ...``.

    Forwards and both gradients, but the first layer's inputs need none.
    """
    sizes = [a * b for a, b in itertools.pairwise(widths)]
    return rows * (3 * sum(sizes) - sizes[0]) if sizes else 0
