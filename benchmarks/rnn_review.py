"""Recurrent modules against torch.nn and loops over cells; BLEU and edit distance against the usual packages."""

import random
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from etude.data.randomness import stream
from etude.lab.bench import Case
from etude.layers import make_rnn
from etude.training.metrics import bleu, edit_distance

SHAPE = (64, 50, 32)  # batch, time, input
HIDDEN = 64


def _round(module: nn.Module, x: Tensor, lengths: Tensor | None = None) -> Tensor:
    """Forward and backward; returns the outputs."""
    module.zero_grad()
    y = module(x)[0] if lengths is None else module(x, None, lengths)[0]
    y.sum().backward()
    return y.detach()


def _close(a: Tensor, b: Tensor) -> bool:
    return bool(torch.allclose(a, b, atol=1e-5))


class PeepholeLoop(nn.Module):
    """The plain form of an LSTM with peepholes: everything computed anew at every step, one matrix a gate."""

    def __init__(self, ours: nn.Module) -> None:
        super().__init__()
        weights = {n: p.detach().clone() for n, p in ours.named_parameters()}
        gates = range(4)
        self.w = nn.ParameterList([weights["weight_ih_l0"].chunk(4)[i] for i in gates])
        self.u = nn.ParameterList([weights["weight_hh_l0"].chunk(4)[i] for i in gates])
        self.b = nn.ParameterList([(weights["bias_ih_l0"] + weights["bias_hh_l0"]).chunk(4)[i] for i in gates])
        self.see = nn.ParameterList(list(weights["weight_ch_l0"].chunk(3)))

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        h = c = x.new_zeros(len(x), HIDDEN)
        out = []
        for t in range(x.shape[1]):
            z = [x[:, t] @ w.T + h @ u.T + b for w, u, b in zip(self.w, self.u, self.b, strict=True)]
            i, f = torch.sigmoid(z[0] + self.see[0] * c), torch.sigmoid(z[1] + self.see[1] * c)
            c = f * c + i * torch.tanh(z[2])
            h = torch.sigmoid(z[3] + self.see[2] * c) * torch.tanh(c)
            out.append(h)
        return torch.stack(out, dim=1), None


def _bleu_sacre(candidates: Sequence[str], references: Sequence[str]) -> float:
    import sacrebleu

    return sacrebleu.corpus_bleu(candidates, [references], smooth_method="none", tokenize="none").score / 100


def _distances_nltk(pairs: Sequence[tuple[str, str]]) -> list[int]:
    import nltk

    return [nltk.edit_distance(a, b) for a, b in pairs]


def _text(rows: int) -> tuple[list[str], list[str]]:
    words = [f"w{i}" for i in range(200)]
    rng = random.Random(0)
    references = [" ".join(rng.choices(words, k=rng.randint(10, 30))) for _ in range(rows)]
    candidates = [" ".join(w if rng.random() < 0.8 else rng.choice(words) for w in r.split()) for r in references]
    return candidates, references


def _installed(name: str) -> bool:
    import importlib.util

    return importlib.util.find_spec(name) is not None


def cases() -> list[Case]:
    """Wrapper overhead (at most 5 %), lengths, peepholes; metrics where the peers are installed."""
    x = torch.randn(*SHAPE, generator=stream(0, "x"))
    out = []
    for cell, kind in (("lstm", nn.LSTM), ("gru", nn.GRU), ("elman", nn.RNN)):
        ours: Any = make_rnn(cell, SHAPE[2], HIDDEN, generator=stream(0, cell))
        theirs: Any = kind(SHAPE[2], HIDDEN, batch_first=True)
        theirs.load_state_dict(ours.state_dict())
        out.append(
            Case(f"{cell}, forward and backward", lambda m=ours: _round(m, x), lambda m=theirs: _round(m, x),
                 f"torch.nn.{kind.__name__}", _close, 0.95)
        )  # fmt: skip
    ours = make_rnn("lstm", SHAPE[2], HIDDEN, peephole=True, generator=stream(0, "peephole"))
    loop = PeepholeLoop(ours)
    out.append(
        Case("LSTM with peepholes", lambda: _round(ours, x), lambda: _round(loop, x), "loop over gates", _close, 1.5)
    )
    candidates, references = _text(300)
    if _installed("sacrebleu"):
        out.append(
            Case("BLEU of 300 sentences", lambda: bleu(candidates, references),
                 lambda: _bleu_sacre(candidates, references), "sacrebleu", lambda a, b: abs(a - b) < 1e-9, 1.0)
        )  # fmt: skip
    if _installed("nltk"):
        pairs = [(a[:120], b[:120]) for a, b in zip(candidates[:20], references[:20], strict=True)]
        out.append(
            Case("edit distance, 20 pairs of 120 characters", lambda: [edit_distance(a, b) for a, b in pairs],
                 lambda: _distances_nltk(pairs), "nltk", lambda a, b: a == b, 2.0)
        )  # fmt: skip
    return out
