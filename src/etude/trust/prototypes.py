"""Prototype network: a classifier whose logits are a linear function of distances to prototypes it can draw.

    z = f(x)    D_j = |z - p_j|^2    logits = D W    loss = l E + l_ae R + l_1 R1 + l_2 R2

Source: Li, Liu, Chen & Rudin 2018, arXiv 1710.04806, sections 3 and 4.
Names: `encoder` is the paper's f, `decoder` g, `layer.prototypes` p_1 ... p_m, `head.weight` the transpose of W.
Differs from the paper: weights of convolutions and linear layers start by Kaiming's rule (``init="paper"`` has
the authors' N(0, 0.01), which needs many more epochs); inputs may be scaled to [0, 1] inside the network.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from etude.data.transforms import elastic
from etude.layers.autoencoders import autoencoder, dry_run, reconstruction_error
from etude.layers.distances import squared_distances
from etude.layers.prototypes import PrototypeLayer, prototype_regularizers

INITS = ("kaiming", "paper")
ROWS = 1024


@dataclass(frozen=True)
class Lambdas:
    """Weights of the four terms of the loss; those of the authors' code (20 : 1 : 1 : 1)."""

    classify: float = 20.0
    reconstruct: float = 1.0
    r1: float = 1.0
    r2: float = 1.0


class PrototypeOutput(NamedTuple):
    """Everything that a forward pass computes."""

    logits: Tensor  # (B, K), in eval mode float64
    distances: Tensor  # (B, m), squared Euclidean
    code: Tensor  # (B, q)


class PrototypeNetwork(nn.Module):
    """Encoder, decoder, prototypes and a linear head without bias over the squared distances.

    Parameters
    ----------
    encoder, decoder
        (B, *shape) to (B, q) and back, for inputs that `scaled` has brought to their range.
    shape
        Shape of one input, without the batch.
    num_classes, num_prototypes
        K and m.
    low, span
        Inputs become ``(x - low) / span`` before the encoder; numbers, or one for each feature.

    Raises
    ------
    ValueError
        If the decoder's output has another shape than the input (both are named), or a count is below 1.
    """

    low: Tensor
    span: Tensor

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        shape: Sequence[int],
        num_classes: int,
        num_prototypes: int = 15,
        *,
        low: float | Tensor = 0.0,
        span: float | Tensor = 1.0,
    ) -> None:
        super().__init__()
        if num_prototypes < 1 or num_classes < 1:
            raise ValueError(
                f"num_prototypes and num_classes must be at least 1, got {num_prototypes} and {num_classes}"
            )
        self.encoder, self.decoder, self.shape = encoder, decoder, tuple(shape)
        self.layer = PrototypeLayer(num_prototypes, dry_run(encoder, decoder, shape))
        self.head = nn.Linear(num_prototypes, num_classes, bias=False)
        nn.init.uniform_(self.head.weight)
        self.register_buffer("low", torch.as_tensor(low, dtype=torch.float32))
        self.register_buffer("span", torch.as_tensor(span, dtype=torch.float32))

    def scaled(self, x: Tensor) -> Tensor:
        """Inputs in the range of encoder and decoder."""
        return (x - self.low) / self.span

    def evidence(self, x: Tensor) -> PrototypeOutput:
        """Logits with the distances that they are made of."""
        return self._from_scaled(self.scaled(x))

    def _from_scaled(self, x: Tensor) -> PrototypeOutput:
        code = self.encoder(x)
        distances = self.layer(code)
        if self.training or distances.device.type == "mps":
            return PrototypeOutput(self.head(distances), distances, code)
        # a small product in float32 can round a row by where it stands in the batch: sum the evidence in float64
        return PrototypeOutput(F.linear(distances.double(), self.head.weight.double()), distances, code)

    def forward(self, x: Tensor) -> Tensor:
        out = self.evidence(x)
        return out.logits.to(out.distances.dtype)

    def decode_prototypes(self) -> Tensor:
        """g(P) in the unit of the inputs, (m, *shape)."""
        return self.decoder(self.layer.prototypes) * self.span + self.low

    def prototype_classes(self) -> Tensor:
        """(m,) the class whose logit a small distance raises most: the most negative weight of each prototype."""
        return self.head.weight.argmin(0)

    def encode(self, x: Tensor) -> Tensor:
        """Codes (n, q), some rows at a time, without gradient."""
        with torch.no_grad():
            return torch.cat([self.encoder(self.scaled(part)) for part in x.split(ROWS)])


def prototype_loss(
    network: PrototypeNetwork,
    x: Tensor,
    y: Tensor,
    weights: Lambdas | None = None,
    *,
    deform: bool = False,
) -> dict[str, Tensor]:
    """The four weighted terms: ``class``, ``reconstruction``, ``r1`` and ``r2``; their sum is the loss.

    E is the mean cross-entropy, R the squared error summed over an input and averaged over the batch, R1 and R2 are
    those of `prototype_regularizers`: R1 looks for the nearest row in *this batch*, so batches should be large.
    A term of weight 0 is left out and costs nothing.

    Parameters
    ----------
    deform
        Elastic deformation of the images first (drawn from torch's global generator, which the training engine
        sets to the seed's own stream).
    """
    weights = weights or Lambdas()
    x = network.scaled(x)
    if deform:
        x = deformed(x)
    out = network._from_scaled(x)
    terms = {}
    if weights.classify:
        terms["class"] = weights.classify * F.cross_entropy(out.logits, y)
    if weights.reconstruct:
        terms["reconstruction"] = weights.reconstruct * reconstruction_error(network.decoder(out.code), x)
    if weights.r1 or weights.r2:
        r = prototype_regularizers(out.distances)
        terms |= {name: w * term for name, w, term in zip(("r1", "r2"), (weights.r1, weights.r2), r, strict=True) if w}
    return terms


def deformed(x: Tensor) -> Tensor:
    """Images (B, C, H, W) under the authors' elastic deformation, drawn from torch's global generator."""
    number = int(torch.randint(2**62, (1,)))
    return elastic(x, generator=torch.Generator(x.device).manual_seed(number))


def prototype_network(
    shape: Sequence[int],
    num_classes: int,
    num_prototypes: int = 15,
    *,
    code_dim: int | None = None,
    init: str = "kaiming",
    output: str = "sigmoid",
    low: float | Tensor = 0.0,
    span: float | Tensor = 1.0,
) -> PrototypeNetwork:
    """A prototype network with a plain autoencoder that fits `shape`.

    Images of at least 16 pixels get the paper's convolutions (32, 32, 32 and 10 maps for 28 pixels, q = 40),
    everything else one hidden layer of 128 (q = 16).

    Parameters
    ----------
    init
        ``"kaiming"``, or ``"paper"``: N(0, 0.01) for the autoencoder's weights, biases 0.
    output
        Last activation of the decoder, ``"sigmoid"`` for inputs scaled to [0, 1].
    """
    if init not in INITS:
        raise ValueError(f"unknown init {init!r}: choose one of {', '.join(INITS)}")
    conv = len(shape) == 3 and min(shape[1:]) >= 16
    net = autoencoder(
        shape, code_dim or (40 if conv else 16), code_activation="relu" if conv else "identity", output=output
    )
    for module in net.modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
            if init == "paper":
                nn.init.normal_(module.weight, std=0.01)
            else:
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            assert module.bias is not None
            nn.init.zeros_(module.bias)
    return PrototypeNetwork(net.encoder, net.decoder, shape, num_classes, num_prototypes, low=low, span=span)


class PrototypeReport(NamedTuple):
    """How much the prototypes look like data. Distances are Euclidean, not squared; a median of an even number is the
    lower of the two in the middle, as torch's."""

    latent_ratio: float
    """Median distance of a prototype to the nearest code, over the codes' median nearest-neighbour distance."""
    pixel_ratio: float
    """The same for decoded prototypes and inputs."""
    classes_covered: int
    """Number of classes among the rows whose codes are nearest to the prototypes."""
    own_class: float
    """Share of prototypes whose most negative weight belongs to the class of the input nearest to their picture."""
    usage: Tensor
    """(m,) rows that have this prototype as their nearest; 0: a dead prototype."""
    nearest: Tensor
    """(m,) row whose code is nearest to the prototype."""


@torch.no_grad()
def prototype_report(network: PrototypeNetwork, x: Tensor, y: Tensor) -> PrototypeReport:
    """Compare prototypes with data: codes and inputs (n, *shape) with their classes (n,), usually the training rows.

    Rows that stand there twice count once in the distances of rows to each other, which would be 0 otherwise.

    Raises
    ------
    ValueError
        For fewer than two different rows: they have no distance to each other to measure by.
    """
    distinct = _distinct(x)
    if len(distinct) < 2:
        raise ValueError(f"a report needs at least two different rows, got {len(distinct)} among {len(x)}")
    codes, prototypes = network.encode(x), network.layer.prototypes
    to_codes = squared_distances(prototypes, codes)
    nearest = to_codes.argmin(1)
    pictures, inputs = network.decode_prototypes().flatten(1), x.flatten(1)
    to_inputs = squared_distances(pictures, inputs)
    shown = y[to_inputs.argmin(1)]
    latent = to_codes.min(1).values.sqrt().median() / _spacing(codes[distinct])
    pixel = to_inputs.min(1).values.sqrt().median() / _spacing(inputs[distinct])
    return PrototypeReport(
        float(latent),
        float(pixel),
        int(y[nearest].unique().numel()),
        float((network.prototype_classes() == shown).float().mean()),
        to_codes.argmin(0).bincount(minlength=len(prototypes)),
        nearest,
    )


def _distinct(rows: Tensor) -> Tensor:
    """The first row of each kind, in the order in which they stand."""
    kinds, place = rows.flatten(1).unique(dim=0, return_inverse=True)
    numbers = torch.arange(len(rows), device=rows.device)
    first = numbers.new_full((len(kinds),), len(rows)).scatter_reduce_(0, place, numbers, "amin")
    return first.sort().values


def _spacing(rows: Tensor) -> Tensor:
    """Median distance of a row to its nearest neighbour."""
    smallest = []
    for start in range(0, len(rows), ROWS):
        d = squared_distances(rows[start : start + ROWS], rows)
        d[torch.arange(len(d)), torch.arange(start, start + len(d))] = torch.inf
        smallest.append(d.min(1).values)
    return torch.cat(smallest).sqrt().median()


class Explanation(NamedTuple):
    """Why one input got its logits: one entry a prototype, the nearest first."""

    prototype: NDArray[np.int64]  # (m,) its number
    distance: NDArray[np.float64]  # (m,) squared distance to the input's code
    weight: NDArray[np.float64]  # (m, K) row of the head
    contribution: NDArray[np.float64]  # (m, K) distance * weight
    nearest: NDArray[np.int64]  # (m,) training row nearest to the prototype

    @property
    def logits(self) -> NDArray[np.float64]:
        """(K,) the network's logits: the sum of the contributions, nothing else."""
        return self.contribution.sum(0)

    def records(self, label: int) -> list[dict[str, float]]:
        """One record a prototype, with its contribution to the logit of class number `label`."""
        rows = zip(self.prototype.tolist(), self.distance.tolist(), self.contribution[:, label].tolist())
        return [{"prototype": p, "distance": d, "contribution": c} for p, d, c in rows]


def explanations(distances: Tensor, weight: Tensor, cases: Tensor) -> list[Explanation]:
    """What each prototype adds to each logit, row by row.

    Parameters
    ----------
    distances
        (n, m) squared distances.
    weight
        (K, m), the head's.
    cases
        (m,) training row nearest to each prototype.
    """
    table, cases_ = weight.detach().double().cpu().numpy().T, cases.cpu().numpy()
    found = []
    for row in distances.detach().double().cpu().numpy():
        order = np.argsort(row, kind="stable")
        contribution = row[order, None] * table[order]
        found.append(Explanation(order, row[order], table[order], contribution, cases_[order]))
    return found


@torch.no_grad()
def explanation_error(network: PrototypeNetwork, x: Tensor) -> tuple[float, float]:
    """Largest difference between the logits (in float64) and sums of explained contributions, over rows and classes.

    Returns it for all contributions, and for those without the farthest prototype's (which must be noticed).
    """
    out = network.evidence(x)
    found = explanations(out.distances, network.head.weight, torch.zeros(out.distances.shape[1]))
    logits = out.logits.cpu().double().numpy()
    whole = np.array([e.logits for e in found])
    partial = np.array([e.contribution[:-1].sum(0) for e in found])
    return float(np.abs(whole - logits).max()), float(np.abs(partial - logits).max())
