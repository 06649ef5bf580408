"""Autoencoders for vectors and images, in five kinds: plain, denoising, sparse, contractive, variational.

Every loss is summed over a row's numbers and averaged over rows, so its weight against other terms does not
change with the batch.

Source: Li et al. 2018, arXiv 1710.04806, section 3 (the convolutional net); Vincent et al. 2008 (denoising);
Ng 2011 (sparse, KL to a target activation); Rifai et al. 2011 (contractive); Kingma & Welling 2014,
arXiv 1312.6114 (variational).
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from etude.layers.mlp import activation_by_name, mlp
from etude.layers.modes import evaluating

KINDS = ("plain", "denoising", "sparse", "contractive", "variational")
NETS = ("auto", "mlp", "conv")
CONV_FROM = 16  # pixels of the shorter side from which "auto" takes convolutions


class Reconstruction(NamedTuple):
    """What an autoencoder makes of rows: the reconstruction (B, *shape) and the codes (B, code_dim)."""

    output: Tensor
    code: Tensor


def dry_run(encoder: nn.Module, decoder: nn.Module, shape: Sequence[int]) -> int:
    """Send one row of zeros through both nets and return the code's width.

    Raises
    ------
    ValueError
        If the code is not (rows, width), or the decoder's output has another shape than the input.
    """
    where = next((p for p in encoder.parameters()), torch.zeros(()))
    x = torch.zeros(1, *shape, device=where.device, dtype=where.dtype)
    with evaluating(encoder, decoder), torch.no_grad():
        code = encoder(x)
        if not isinstance(code, Tensor) or code.ndim != 2 or len(code) != 1:
            got = tuple(code.shape) if isinstance(code, Tensor) else type(code).__name__
            raise ValueError(f"the encoder must return codes (rows, width); for input {tuple(x.shape)} it gave {got}")
        back = decoder(code)
    if tuple(back.shape) != tuple(x.shape):
        raise ValueError(
            f"the decoder's output has shape {tuple(back.shape[1:])}, but the input has shape {tuple(shape)}: "
            "they must agree"
        )
    return int(code.shape[1])


def reconstruction_error(output: Tensor, target: Tensor, *, likelihood: str = "gaussian") -> Tensor:
    """Squared error (``"gaussian"``) or cross-entropy of probabilities (``"bernoulli"``): sum over a row, mean of rows.

    Raises
    ------
    ValueError
        If the shapes differ or the likelihood is unknown.
    """
    if output.shape != target.shape:
        raise ValueError(f"reconstruction {tuple(output.shape)} and target {tuple(target.shape)} differ in shape")
    if likelihood == "gaussian":
        return (output - target).square().flatten(1).sum(1).mean()
    if likelihood == "bernoulli":
        return F.binary_cross_entropy(output, target, reduction="none").flatten(1).sum(1).mean()
    raise ValueError(f"unknown likelihood {likelihood!r}: choose gaussian or bernoulli")


class Autoencoder(nn.Module):
    """An encoder and a decoder with the loss of their kind.

    Parameters
    ----------
    encoder, decoder
        Any modules: (B, *shape) to (B, code_dim), for ``"variational"`` (B, 2 * code_dim); and back.
    kind
        ``"plain"``; ``"denoising"`` (inputs are corrupted, the clean ones are the target); ``"sparse"`` (codes in
        (0, 1), KL divergence of their mean to `sparsity`); ``"contractive"`` (squared Frobenius norm of the
        encoder's Jacobian); ``"variational"`` (KL of the code's Gaussian to the standard one).
    likelihood
        See `reconstruction_error`.
    weight
        Of the kind's own term.
    corruption
        Denoising: ``"mask"`` sets a share `noise` of the numbers to 0, ``"gaussian"`` adds noise of that
        standard deviation.
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        *,
        kind: str = "plain",
        likelihood: str = "gaussian",
        weight: float = 1.0,
        noise: float = 0.3,
        corruption: str = "mask",
        sparsity: float = 0.05,
    ) -> None:
        super().__init__()
        _choose("kind", kind, KINDS)
        _choose("likelihood", likelihood, ("gaussian", "bernoulli"))
        _choose("corruption", corruption, ("mask", "gaussian"))
        if noise < 0 or (corruption == "mask" and noise >= 1):
            raise ValueError(f"noise must be at least 0, and below 1 with corruption 'mask', got {noise}")
        if not 0 < sparsity < 1:
            raise ValueError(f"sparsity must lie in (0, 1), got {sparsity}")
        self.encoder, self.decoder, self.kind, self.likelihood = encoder, decoder, kind, likelihood
        self.weight, self.noise, self.corruption, self.sparsity = weight, noise, corruption, sparsity

    def encode(self, x: Tensor) -> Tensor:
        """Codes (B, code_dim); of a variational one the means."""
        code = self.encoder(x)
        return code.chunk(2, dim=1)[0] if self.kind == "variational" else code

    def decode(self, z: Tensor) -> Tensor:
        """Rows (B, *shape) from codes."""
        return self.decoder(z)

    def forward(self, x: Tensor) -> Reconstruction:
        code = self.encode(x)
        return Reconstruction(self.decoder(code), code)

    def reconstruction_errors(self, x: Tensor) -> Tensor:
        """Squared error of each row, (B,): the anomaly score of reconstruction methods."""
        return (self(x).output - x).square().flatten(1).sum(1)

    def loss(self, x: Tensor, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """The terms whose sum is minimised. `generator` draws the noise (None: torch's global generator)."""
        if self.kind == "variational":
            mean, log_variance = self.encoder(x).chunk(2, dim=1)
            code = mean + (0.5 * log_variance).exp() * _randn(mean, generator)
            kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1).mean()
            return {"reconstruction": self._error(self.decoder(code), x), "kl": self.weight * kl}
        if self.kind == "contractive" and torch.is_grad_enabled():
            seen = x.detach().requires_grad_()
            code = self.encoder(seen)
            return {
                "reconstruction": self._error(self.decoder(code), x),
                "contraction": self.weight * _slope(code, seen),
            }
        code = self.encoder(self._corrupt(x, generator) if self.kind == "denoising" else x)
        terms = {"reconstruction": self._error(self.decoder(code), x)}
        if self.kind == "sparse":
            terms["sparsity"] = self.weight * self._sparsity(code)
        return terms

    def _error(self, output: Tensor, x: Tensor) -> Tensor:
        return reconstruction_error(output, x, likelihood=self.likelihood)

    def _corrupt(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        if self.corruption == "gaussian":
            return x + self.noise * _randn(x, generator)
        return x * (_rand(x, generator) >= self.noise)

    def _sparsity(self, code: Tensor) -> Tensor:
        mean = code.mean(0).clamp(1e-6, 1 - 1e-6)
        rho = self.sparsity
        return (rho * (rho / mean).log() + (1 - rho) * ((1 - rho) / (1 - mean)).log()).sum()


def _randn(like: Tensor, generator: torch.Generator | None) -> Tensor:
    where = like.device if generator is None else generator.device
    return torch.randn(like.shape, generator=generator, device=where, dtype=like.dtype).to(like.device)


def _rand(like: Tensor, generator: torch.Generator | None) -> Tensor:
    where = like.device if generator is None else generator.device
    return torch.rand(like.shape, generator=generator, device=where).to(like.device)


def _slope(code: Tensor, x: Tensor) -> Tensor:
    """Mean over rows of the squared Frobenius norm of d code / d x, all code numbers in one batched backward pass."""
    width = code.shape[1]
    each = torch.eye(width, device=code.device, dtype=code.dtype)[:, None, :].expand(width, *code.shape)
    (jacobian,) = torch.autograd.grad(code, x, each, is_grads_batched=True, create_graph=True)
    return jacobian.square().flatten(2).sum((0, 2)).mean()


def _choose(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"unknown {name} {value!r}: choose one of {', '.join(choices)}")


def conv_encoder(in_shape: Sequence[int], channels: Sequence[int], *, activation: str = "relu") -> nn.Sequential:
    """3 x 3 convolutions of stride 2, an activation after each, then flat: (B, C, H, W) to (B, code).

    A side of n pixels becomes ceil(n / 2): 28 gives 14, 7, 4, 2.
    """
    parts: list[nn.Module] = []
    before = in_shape[0]
    for width in channels:
        parts += [nn.Conv2d(before, width, 3, stride=2, padding=1), activation_by_name(activation)]
        before = width
    return nn.Sequential(*parts, nn.Flatten())


def conv_decoder(out_shape: Sequence[int], channels: Sequence[int], *, output: str = "sigmoid") -> nn.Sequential:
    """The mirror of `conv_encoder` with the same arguments; `output` is the last activation.

    Transposed convolutions of stride 2 leave open whether 4 becomes 7 or 8 pixels: each layer's own output
    padding makes the sizes meet.
    """
    sizes = [(int(out_shape[1]), int(out_shape[2]))]
    for _ in channels:
        sizes.append((math.ceil(sizes[-1][0] / 2), math.ceil(sizes[-1][1] / 2)))
    widths = [int(out_shape[0]), *channels]
    parts: list[nn.Module] = [nn.Unflatten(1, (widths[-1], *sizes[-1]))]
    for i in range(len(channels), 0, -1):
        rest = (1 - sizes[i - 1][0] % 2, 1 - sizes[i - 1][1] % 2)
        parts.append(nn.ConvTranspose2d(widths[i], widths[i - 1], 3, stride=2, padding=1, output_padding=rest))
        parts.append(activation_by_name(output if i == 1 else "relu"))
    return nn.Sequential(*parts)


def autoencoder(
    shape: Sequence[int],
    code_dim: int,
    *,
    kind: str = "plain",
    net: str = "auto",
    hidden: Sequence[int] | None = None,
    code_activation: str | None = None,
    output: str = "identity",
    likelihood: str = "gaussian",
    weight: float = 1.0,
    noise: float = 0.3,
    corruption: str = "mask",
    sparsity: float = 0.05,
) -> Autoencoder:
    """An autoencoder for rows of `shape`.

    Parameters
    ----------
    shape
        (d,) or (C, H, W).
    code_dim
        Width of the code.
    net
        ``"mlp"``, ``"conv"``, or ``"auto"``: convolutions for images of at least 16 pixels a side. Of a
        1 x 28 x 28 image with `code_dim` 40 they are the net of Li et al.: 32, 32, 32 and 10 maps.
    hidden
        Widths of the layers before the code; default: one of 128 (mlp), or 32 maps each until two pixels are left.
    code_activation
        Applied to the code; default: identity, for ``"sparse"`` sigmoid.
    output
        Last activation of the decoder: ``"sigmoid"`` for numbers in [0, 1], ``"identity"`` otherwise.
    kind, likelihood, weight, noise, corruption, sparsity
        See `Autoencoder`.

    Raises
    ------
    ValueError
        For an impossible shape, width, name or number.
    """
    shape = tuple(int(s) for s in shape)
    _choose("net", net, NETS)
    _choose("kind", kind, KINDS)
    if not shape or min(shape) < 1:
        raise ValueError(f"shape must hold sizes of at least 1, got {shape}")
    if code_dim < 1:
        raise ValueError(f"code_dim must be at least 1, got {code_dim}")
    if net == "conv" and len(shape) != 3:
        raise ValueError(f"net 'conv' needs images (C, H, W), got shape {shape}")
    if net == "auto":
        net = "conv" if len(shape) == 3 and min(shape[1:]) >= CONV_FROM else "mlp"
    activation = code_activation or ("sigmoid" if kind == "sparse" else "identity")
    width = code_dim * (2 if kind == "variational" else 1)
    make: Callable[..., tuple[nn.Sequential, nn.Sequential]] = _conv if net == "conv" else _mlp
    encoder, decoder = make(shape, code_dim, width, hidden, activation, output)
    if net == "conv":  # about twice as quick on a CPU, same numbers
        for half in (encoder, decoder):
            half.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    dry = nn.Sequential(encoder, nn.Unflatten(1, (2, -1)), _First()) if kind == "variational" else encoder
    found = dry_run(dry, decoder, shape)
    assert found == code_dim
    return Autoencoder(
        encoder, decoder, kind=kind, likelihood=likelihood, weight=weight, noise=noise, corruption=corruption,
        sparsity=sparsity,
    )  # fmt: skip


class _First(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[:, 0]


def _mlp(
    shape: tuple[int, ...], code_dim: int, width: int, hidden: Sequence[int] | None, activation: str, output: str
) -> tuple[nn.Sequential, nn.Sequential]:
    size, middle = math.prod(shape), [128] if hidden is None else list(hidden)
    encoder = [*([nn.Flatten()] if len(shape) > 1 else []), *mlp([size, *middle, width])]
    decoder = [*mlp([code_dim, *reversed(middle), size]), activation_by_name(output)]
    if activation != "identity":
        encoder.append(activation_by_name(activation))
    if len(shape) > 1:
        decoder.append(nn.Unflatten(1, shape))
    return nn.Sequential(*encoder), nn.Sequential(*decoder)


def _conv(
    shape: tuple[int, ...], code_dim: int, width: int, hidden: Sequence[int] | None, activation: str, output: str
) -> tuple[nn.Sequential, nn.Sequential]:
    halvings = max(1, math.ceil(math.log2(min(shape[1:]) / 2))) if min(shape[1:]) > 2 else 1
    maps = [32] * (halvings - 1) if hidden is None else list(hidden)
    side = [math.ceil(s / 2 ** (len(maps) + 1)) for s in shape[1:]]
    pixels = side[0] * side[1]
    if width % pixels == 0 and width == code_dim:  # the last maps are the code
        channels = [*maps, width // pixels]
        encoder, decoder = conv_encoder(shape, channels), conv_decoder(shape, channels, output=output)
        encoder[-2] = activation_by_name(activation)
        return encoder, decoder
    channels = [*maps, 32]
    flat = channels[-1] * pixels
    encoder = nn.Sequential(*conv_encoder(shape, channels), nn.Linear(flat, width), activation_by_name(activation))
    decoder = nn.Sequential(nn.Linear(code_dim, flat), nn.ReLU(), *conv_decoder(shape, channels, output=output))
    return encoder, decoder
