"""Reference learners against scikit-learn refits for every prefix (64 sequences, 40 prefixes, d = 20), and a
training step against the GPT-2 backbone that public code for in-context regression uses."""

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LinearRegression, Ridge
from sklearn.neighbors import KNeighborsRegressor

from etude.data.randomness import stream
from etude.incontext import SequenceModel, linear
from etude.lab.bench import Case


def _refits(X: np.ndarray, y: np.ndarray, make: Callable[[int], Any]) -> np.ndarray:
    out = np.zeros(y.shape)
    for b in range(len(X)):
        for n in range(1, y.shape[1]):
            out[b, n] = make(n).fit(X[b, :n], y[b, :n]).predict(X[b, n : n + 1])[0]
    return out


def _same(ours: torch.Tensor, peer: np.ndarray) -> bool:
    return bool(np.abs(ours.numpy() - peer).max() < 1e-6)


def cases() -> list[Case]:
    """Least squares, ridge and nearest neighbours."""
    X, y, _ = linear.regression_prompts(64, 40, 20, noise=0.5, generator=stream(0, "bench"))
    X, y = X.double(), y.double()
    arrays = X.numpy(), y.numpy()
    refs = linear.references(["ols", "ridge:0.25", "knn:3"])
    peers: dict[str, tuple[str, Callable[[int], Any]]] = {
        "ols": ("scikit-learn LinearRegression", lambda n: LinearRegression(fit_intercept=False)),
        "ridge:0.25": ("scikit-learn Ridge", lambda n: Ridge(alpha=0.25, fit_intercept=False)),
        "knn:3": ("scikit-learn KNeighborsRegressor", lambda n: KNeighborsRegressor(min(3, n))),
    }
    refits = [
        Case(
            name=f"{name}, all prefixes",
            ours=lambda name=name: refs[name].prefixes(X, y),  # type: ignore[misc]
            peer=lambda make=make: _refits(*arrays, make),  # type: ignore[misc]
            peer_name=peer,
            same=_same,
            target=50.0,
        )
        for name, (peer, make) in peers.items()
    ]
    return [*refits, _training_step()] if find_spec("transformers") else refits


def _training_step() -> Case:
    """Forward, backward and Adam at the size of the laptop study: 64 prompts of 6 pairs, width 64, 2 layers."""
    from transformers import GPT2Config, GPT2Model

    class Backbone(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.read, self.write = torch.nn.Linear(3, 64), torch.nn.Linear(64, 1)
            sizes: dict[str, Any] = {
                "n_embd": 64,
                "n_layer": 2,
                "n_head": 4,
                "n_positions": 14,
                "vocab_size": 1,
                "bos_token_id": 0,
                "eos_token_id": 0,
            }
            self.gpt2 = GPT2Model(GPT2Config(**sizes, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, use_cache=False))

        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            xs = torch.nn.functional.pad(x, (1, 0))
            ys = torch.nn.functional.pad(y.unsqueeze(-1), (0, x.shape[-1]))
            tokens = torch.stack([xs, ys], 2).flatten(1, 2)
            return self.write(self.gpt2(inputs_embeds=self.read(tokens)).last_hidden_state)[:, ::2, 0]

    prompts = linear.regression_prompts(64, 6, 2, generator=stream(1, "bench"))

    def steps(model: torch.nn.Module) -> Callable[[], None]:
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)

        def run() -> None:
            for _ in range(10):
                optimizer.zero_grad()
                linear.in_context_loss(model, prompts).backward()
                optimizer.step()

        return run

    ours = SequenceModel(2, num_layers=2, hidden_dim=64, max_points=7)
    return Case("ten training steps", steps(ours), steps(Backbone()), "transformers GPT2Model backbone", None, 1.0)
