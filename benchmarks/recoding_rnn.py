"""Recoding by surprise (2 layers of 650, batch 64, vocabulary 10,000) against the plain form of the official code
(linear modules gate by gate, gradients by autograd) and against torch.nn.LSTM without steps.

The official repository is a set of scripts for another Python and cannot be installed beside ours, so its form was
written anew from the thesis' formulas.
"""

from typing import Any

import torch
from torch import Tensor, nn

from etude.data.randomness import seeded_build, stream
from etude.lab.bench import Case
from etude.layers import Recoder, make_rnn

LAYERS, HIDDEN, BATCH, STEPS, VOCAB = 2, 650, 64, 10, 10_000
ALPHA = 0.1


class GateByGate(nn.Module):
    """One linear module a gate and input, a Python loop over time and layers, `autograd.grad` at every step."""

    def __init__(self, ours: Recoder) -> None:
        super().__init__()
        self.decoder, self.gates = ours.decoder, nn.ModuleList()
        for layer in range(LAYERS):
            for kind in ("ih", "hh"):
                weight, bias = (getattr(ours.rnn, f"{name}_{kind}_l{layer}").detach() for name in ("weight", "bias"))
                for w, b in zip(weight.chunk(4), bias.chunk(4), strict=True):
                    linear = nn.Linear(w.shape[1], w.shape[0])
                    linear.load_state_dict({"weight": w, "bias": b})
                    self.gates.append(linear)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        states = [(x.new_zeros(len(x), HIDDEN),) * 2 for _ in range(LAYERS)]
        outputs = []
        for t in range(x.shape[1]):
            with torch.enable_grad():
                states = [(h.detach().requires_grad_(), c.detach().requires_grad_()) for h, c in states]
                new, below = [], x[:, t]
                for layer, (h, c) in enumerate(states):
                    a, r = (self.gates[8 * layer + 4 * k : 8 * layer + 4 * k + 4] for k in (0, 1))
                    z: list[Tensor] = [m(below) + n(h) for m, n in zip(a, r, strict=True)]
                    c = torch.sigmoid(z[1]) * c + torch.sigmoid(z[0]) * torch.tanh(z[2])
                    below = torch.sigmoid(z[3]) * torch.tanh(c)
                    new.append((below, c))
                logits = self.decoder(below)
                delta = -logits.log_softmax(-1).gather(-1, y[:, t, None]).sum()
                flat = [p for parts in new for p in parts]
                grads = torch.autograd.grad(delta, flat)
            moved = [(p - ALPHA * g).detach() for p, g in zip(flat, grads, strict=True)]
            states = [(moved[2 * k], moved[2 * k + 1]) for k in range(LAYERS)]
            outputs.append(logits.detach())
        return torch.stack(outputs, 1)


def _close(a: Any, b: Any) -> bool:
    return bool(torch.allclose(a, b, atol=1e-4))


def cases() -> list[Case]:
    """Tokens a second, as times of the same ten steps."""
    rnn = make_rnn("lstm", HIDDEN, HIDDEN, num_layers=LAYERS, generator=stream(0, "rnn"))
    decoder = seeded_build(lambda: nn.Linear(HIDDEN, VOCAB), stream(0, "decoder"))
    x = torch.randn(BATCH, STEPS, HIDDEN, generator=stream(0, "x"))
    y = torch.randint(VOCAB, (BATCH, STEPS), generator=stream(0, "y"))
    ours = Recoder(rnn, decoder, step_size=ALPHA, track=False)
    tiny = Recoder(rnn, decoder, step_size=ALPHA, track=False)
    official, net = GateByGate(ours), Recoder(rnn, decoder, step_size=0.0)

    def recode() -> Tensor:
        with torch.no_grad():
            return ours(x, targets=y)[0]

    def loop() -> Tensor:
        """nn.LSTM step by step, as a reader that gets its tokens one at a time must."""
        with torch.no_grad():
            state, outputs = None, []
            for t in range(STEPS):
                logits, state = net(x[:, t : t + 1], state)
                outputs.append(logits)
            return torch.cat(outputs, 1)

    def whole() -> Tensor:
        with torch.no_grad():
            return net(x)[0]

    def still() -> Tensor:
        with torch.no_grad():
            return tiny(x, targets=y, recode=torch.arange(STEPS) == STEPS - 1)[0]

    steps = "torch.nn.LSTM, step by step"
    rewritten = "official code rewritten: it is no package"
    return [
        Case("surprise, ten steps", recode, lambda: official(x, y), "gate by gate, autograd", _close, 3.0, rewritten),
        Case("surprise against stepping (0.25: 4 times its time)", recode, loop, steps, None, 0.25),
        Case("surprise against the whole sequence at once", recode, whole, "torch.nn.LSTM", None, None),
        Case("our loop with one recoded step", still, loop, steps, _close, None),
    ]
