"""Autoencoders: shapes that meet, and the loss of every kind against its formula."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from etude.data.randomness import stream
from etude.layers import Autoencoder, autoencoder, conv_decoder, conv_encoder, dry_run, reconstruction_error


@given(
    st.sampled_from([(5,), (1, 8, 8), (1, 28, 28), (3, 32, 32), (2, 17, 30), (1, 16, 16)]),
    st.integers(1, 41),
    st.sampled_from(["plain", "denoising", "sparse", "contractive", "variational"]),
)
def test_shapes_meet_for_every_kind(shape, code_dim, kind):
    net = autoencoder(shape, code_dim, kind=kind, output="sigmoid")
    x = torch.rand(3, *shape)
    back = net(x)
    assert back.output.shape == x.shape
    assert back.code.shape == (3, code_dim)
    assert torch.equal(net.decode(net.encode(x)), back.output)
    terms = net.loss(x, stream(0, "noise"))
    assert all(t.ndim == 0 and bool(torch.isfinite(t)) for t in terms.values())


def test_the_papers_net_for_28_pixels():
    net = autoencoder((1, 28, 28), 40, code_activation="relu", output="sigmoid")
    convs = [m for m in net.encoder if isinstance(m, nn.Conv2d)]
    assert [c.out_channels for c in convs] == [32, 32, 32, 10]
    sides, x = [], torch.zeros(1, 1, 28, 28)
    for m in net.encoder:
        x = m(x)
        if isinstance(m, nn.Conv2d):
            sides.append(x.shape[-1])
    assert sides == [14, 7, 4, 2]
    ups, z = [], torch.zeros(1, 40)
    for m in net.decoder:
        z = m(z)
        if isinstance(m, nn.ConvTranspose2d):
            ups.append(z.shape[-1])
    assert ups == [4, 7, 14, 28]
    assert net.encode(torch.rand(2, 1, 28, 28)).min() >= 0
    assert isinstance(net.decoder[-1], nn.Sigmoid)


def test_conv_mirror():
    x = torch.zeros(2, 3, 21, 10)
    z = conv_encoder((3, 21, 10), (4, 5))(x)
    assert conv_decoder((3, 21, 10), (4, 5))(z).shape == x.shape


def test_reconstruction_is_summed_over_a_row_and_averaged_over_rows():
    target = torch.zeros(2, 1, 2, 2)
    assert reconstruction_error(torch.ones(2, 1, 2, 2), target).item() == 4
    half = torch.full((2, 4), 0.5)
    assert reconstruction_error(half, torch.ones(2, 4), likelihood="bernoulli").item() == pytest.approx(4 * math.log(2))
    with pytest.raises(ValueError, match="differ in shape"):
        reconstruction_error(half, torch.ones(2, 3))
    with pytest.raises(ValueError, match="unknown likelihood 'l1'"):
        reconstruction_error(half, half, likelihood="l1")


def linear(kind, **options) -> tuple[Autoencoder, torch.Tensor]:
    encoder = nn.Linear(3, 4 if kind == "variational" else 2)
    net = Autoencoder(encoder, nn.Linear(2, 3), kind=kind, **options)
    return net, torch.randn(6, 3, generator=stream(0, "x"))


def test_contraction_of_a_linear_encoder_is_its_weights_norm():
    net, x = linear("contractive", weight=0.5)
    terms = net.loss(x)
    assert terms["contraction"].item() == pytest.approx(0.5 * net.encoder.weight.square().sum().item(), rel=1e-5)
    terms["contraction"].backward()
    assert torch.allclose(net.encoder.weight.grad, net.encoder.weight, atol=1e-6)


def test_contraction_of_a_sigmoid_layer_is_the_closed_form():
    layer = nn.Linear(3, 2)
    net = Autoencoder(nn.Sequential(layer, nn.Sigmoid()), nn.Linear(2, 3), kind="contractive")
    x = torch.randn(6, 3, generator=stream(0, "x"))
    h = net.encode(x)
    wanted = ((h * (1 - h)).square() @ layer.weight.square().sum(1)).mean()
    assert net.loss(x)["contraction"].item() == pytest.approx(wanted.item(), rel=1e-5)


def test_kl_of_the_variational_kind():
    net, x = linear("variational")
    mean, log_variance = net.encoder(x).chunk(2, 1)
    own = torch.distributions.Normal(mean, (0.5 * log_variance).exp())
    wanted = torch.distributions.kl_divergence(own, torch.distributions.Normal(0.0, 1.0)).sum(1).mean()
    assert net.loss(x, stream(1, "noise"))["kl"].item() == pytest.approx(wanted.item(), rel=1e-5)
    assert torch.equal(net.encode(x), mean)


def test_sparsity_is_zero_on_its_target_and_grows_away_from_it():
    net = Autoencoder(nn.Identity(), nn.Identity(), kind="sparse", sparsity=0.2)
    at = net.loss(torch.full((4, 3), 0.2))["sparsity"].item()
    off = net.loss(torch.full((4, 3), 0.4))["sparsity"].item()
    assert at == pytest.approx(0, abs=1e-6)
    assert off == pytest.approx(3 * (0.2 * math.log(0.5) + 0.8 * math.log(0.8 / 0.6)), rel=1e-4)


@pytest.mark.parametrize("corruption", ["mask", "gaussian"])
def test_denoising_corrupts_the_input_and_aims_at_the_clean_one(corruption):
    net = Autoencoder(nn.Identity(), nn.Identity(), kind="denoising", noise=0.25, corruption=corruption)
    x = torch.ones(4000, 5)
    error = net.loss(x, stream(0, "noise"))["reconstruction"].item()
    assert error == pytest.approx(5 * (0.25 if corruption == "mask" else 0.0625), rel=0.05)
    assert error == net.loss(x, stream(0, "noise"))["reconstruction"].item()
    assert net.reconstruction_errors(x).abs().max() == 0


def test_dry_run_names_both_shapes_and_leaves_the_modes():
    encoder, decoder = nn.Sequential(nn.Flatten(), nn.Linear(4, 2), nn.Dropout()), nn.Linear(2, 5)
    decoder.eval()
    with pytest.raises(ValueError, match=r"output has shape \(5,\), but the input has shape \(1, 2, 2\)"):
        dry_run(encoder, decoder, (1, 2, 2))
    assert encoder[2].training
    assert not decoder.training
    with pytest.raises(ValueError, match=r"codes \(rows, width\)"):
        dry_run(nn.Identity(), decoder, (1, 2, 2))
    assert dry_run(nn.Linear(4, 3), nn.Linear(3, 4), (4,)) == 3


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (((), 3), {}, "shape must hold"),
        (((4,), 0), {}, "code_dim must be at least 1"),
        (((4,), 2), {"net": "conv"}, r"needs images \(C, H, W\)"),
        (((4,), 2), {"net": "rnn"}, "unknown net"),
        (((4,), 2), {"kind": "deep"}, "unknown kind 'deep'"),
        (((4,), 2), {"output": "cube"}, "unknown activation"),
        (((4,), 2), {"noise": 1.0}, "noise must be"),
        (((4,), 2), {"sparsity": 0.0}, "sparsity must lie"),
    ],
)
def test_bad_input_is_named(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        autoencoder(*arguments, **options)
