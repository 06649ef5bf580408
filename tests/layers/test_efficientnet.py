import pytest
import torch
from torch.nn import functional as F

from etude.data.randomness import seeded_build, stream
from etude.errors import SourceUnavailable
from etude.layers.efficientnet import EfficientNetLite0, SameConv2d, image_features
from etude.layers.pretrained import load_pretrained


def small() -> EfficientNetLite0:
    return seeded_build(lambda: EfficientNetLite0(num_classes=7), stream(0, "init")).eval()


@pytest.mark.parametrize(("size", "stride", "kernel"), [(8, 2, 3), (7, 2, 3), (8, 2, 5), (9, 1, 5), (5, 2, 1)])
def test_same_padding_is_tensorflows(size: int, stride: int, kernel: int) -> None:
    conv = SameConv2d(1, 1, kernel, stride, bias=False)
    torch.nn.init.ones_(conv.weight)
    out = conv(torch.ones(1, 1, size, size)).detach()
    assert out.shape[-1] == -(-size // stride)
    # the extra row of zeros goes behind: the last window sees fewer ones than the first, never the other way round
    assert float(out[0, 0, 0, 0]) >= float(out[0, 0, -1, -1])
    total = max(0, (out.shape[-1] - 1) * stride + kernel - size)
    padded = F.pad(torch.ones(1, 1, size, size), (total // 2, total - total // 2) * 2)
    assert torch.equal(out, F.conv2d(padded, conv.weight, stride=stride))


def test_shapes_and_sizes() -> None:
    net = small()
    assert sum(p.numel() for p in EfficientNetLite0().parameters()) == 4_652_008  # as published
    x = torch.rand(3, 3, 32, 48, generator=stream(0, "x"))
    assert net.features(x).shape == (3, 1280) and net(x).shape == (3, 7)
    assert torch.allclose(net(x), net.classifier(net.features(x)))
    batched = image_features(net, x, batch_size=2)
    assert torch.allclose(batched, net.features(x), atol=1e-5) and not batched.requires_grad
    assert image_features(net, x, size=32).shape == (3, 1280)
    for wrong in (torch.zeros(3, 32, 32), torch.zeros(1, 1, 32, 32), torch.zeros(1, 3, 16, 32)):
        with pytest.raises(ValueError, match="at least 32 x 32"):
            net.features(wrong)


def test_published_names_are_understood() -> None:
    net = small()
    units = {"expand.0": "_expand_conv", "expand.1": "_bn0", "depthwise.0": "_depthwise_conv", "depthwise.1": "_bn1",
             "project.0": "_project_conv", "project.1": "_bn2"}  # fmt: skip
    published = {}
    for name, value in net.state_dict().items():
        for ours, theirs in units.items():
            name = name.replace(f".{ours}.", f".{theirs}.")
        for ours, theirs in (("stem.0.", "_conv_stem."), ("stem.1.", "_bn0."), ("head.0.", "_conv_head."),
                             ("head.1.", "_bn1."), ("classifier.", "_fc."), ("blocks.", "_blocks.")):  # fmt: skip
            name = theirs + name.removeprefix(ours) if name.startswith(ours) else name
        published[name] = value
    x = torch.rand(2, 3, 32, 32, generator=stream(0, "x"))
    assert torch.equal(EfficientNetLite0.from_published(published)(x), net(x))
    del published["_conv_stem.weight"]
    with pytest.raises(ValueError, match="not the weights"):
        EfficientNetLite0.from_published(published)


def test_unknown_models_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    with pytest.raises(ValueError, match="no pretrained model 'efficientnet-lite9'.*did you mean"):
        load_pretrained("efficientnet-lite9")
    monkeypatch.setenv("ETUDE_OFFLINE", "1")
    monkeypatch.setenv("ETUDE_CACHE", str(tmp_path))
    monkeypatch.delenv("ETUDE_DATA", raising=False)
    with pytest.raises(SourceUnavailable, match="efficientnet"):
        load_pretrained("efficientnet-lite0")
