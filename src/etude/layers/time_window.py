"""A feed-forward net over a window of time: what a recurrent state is compared with."""

import torch.nn.functional as F
from torch import Tensor, nn


class TimeWindow(nn.Module):
    """y_t = relu(W [x_{t-w+1} .. x_t] + b), zeros before the first step: a Markov model of order w - 1.

    Called like a recurrent module, ``y, None = net(x (batch, time, input))``; it keeps no state.
    """

    def __init__(self, input_size: int, hidden_size: int, window: int) -> None:
        super().__init__()
        if min(input_size, hidden_size, window) < 1:
            raise ValueError(f"sizes must be at least 1, got {input_size}, {hidden_size} and window {window}")
        self.input_size, self.hidden_size, self.window = input_size, hidden_size, window
        self.linear = nn.Linear(window * input_size, hidden_size)

    def forward(self, x: Tensor, state: None = None, lengths: Tensor | None = None) -> tuple[Tensor, None]:
        """(batch, time, hidden), None. `lengths` changes nothing: no step sees a later one."""
        padded = F.pad(x, (0, 0, self.window - 1, 0)).unfold(1, self.window, 1)  # (batch, time, input, window)
        return self.linear(padded.flatten(2)).relu(), None
