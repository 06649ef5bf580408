"""What the study of codebook features measures of a net that has learned a state machine."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from etude import trust
from etude.data import TokenMachine, stream
from etude.lab.study import Measurement
from etude.layers.surgery import Record
from etude.training import corrupt, lm_loss
from etude.trust import CodebookModel


def losses(arm: str, seed: int, machine: TokenMachine, net: Any, test: Tensor) -> Iterator[Measurement]:
    """Cross-entropy and accuracy on test rows, and how often written sequences make legal steps."""
    logits, y = net(test)[:, :-1], test[:, 1:]
    yield Measurement(arm, seed, "test_ce", float(lm_loss(net, corrupt(test))), "nats")
    yield Measurement(arm, seed, "accuracy", 100 * float((logits.argmax(-1) == y).float().mean()), "points")
    model, begin = getattr(net, "model", net), test[:, :1]
    written = model.generate(begin, test.shape[1] - 1, generator=stream(seed, "write"))
    steps = machine.legal(machine.read(written))
    yield Measurement(arm, seed, "legal_transitions", 100 * float(steps.float().mean()), "points")


def purities(net: Any, machine: TokenMachine, test: Tensor) -> dict[str, float]:
    """Share of pure detectors of states and of (state, next digit), by layer and of the better layer."""
    states, d = machine.read(test), machine.digits
    final = states.flatten()  # at tokens d, 2d, ...: a state is complete
    after = (states[:, :-1] * machine.base + test[:, d + 1 :: d]).flatten().unique(return_inverse=True)[1]
    spots = {"bigram": (slice(d, None, d), final), "trigram": (slice(d + 1, None, d), after)}
    found: dict[str, float] = {}
    kinds: dict[str, Any]
    if isinstance(net, CodebookModel):
        layers = [v[:, :, 0] for n, v in net.codes(test).items() if n.endswith("ffn")]
        kinds = {"": trust.code_purity}
    else:
        with Record(net, "*.ffn.up") as record:
            net(test)
        layers = list(record.features.values())
        share = 1 - 1 / len(machine.names)  # a neuron fires as often as a state comes; and a quarter as often
        kinds = {
            "": lambda v, y: trust.unit_purity(v, y, quantile=share),
            "_rare": lambda v, y: trust.unit_purity(v, y, quantile=(3 + share) / 4),
        }
    for kind, purity in kinds.items():
        for name, (at, labels) in spots.items():
            shares = [purity(values[:, at].flatten(0, 1), labels).share for values in layers]
            found |= {f"share_{name}_pure{kind} layer {i + 1}": share for i, share in enumerate(shares)}
            found[f"share_{name}_pure{kind}"] = max(shares)
    return found


def forced(arm: str, seed: int, machine: TokenMachine, cb: CodebookModel, device: str) -> Iterator[Measurement]:
    """One state is read; at its last digit the codes are exchanged for those of another state. "far": of four states
    the last one."""
    labels = torch.arange(len(machine.names))
    digits = torch.tensor([[machine.alphabet.index(digit) for digit in name] for name in machine.names])
    ids = torch.cat([torch.full((len(labels), 1), machine.begin), digits], 1).to(device)
    rows = machine.sample(2000, 1 + 4 * machine.digits, stream(seed, "pairs")).symbols
    last = machine.read(rows)[:, -1]
    one = torch.stack([(last == s).nonzero()[0, 0] for s in last.unique()])  # some states may have no way in
    mlp = [n for n in cb.names if n.endswith("ffn")]
    places = {"": mlp, "_attention": [n for n in cb.names if n not in mlp], "_all": list(cb.names)}
    places |= {f"_mlp_{i + 1}": [name] for i, name in enumerate(mlp)}
    if arm != "codebook_k1":
        places = {"": mlp}
    for name, chosen in places.items():
        effect = trust.forcing_effect(cb, ids, labels, chosen, stream(seed, "other"))
        if name in ("", "_attention"):
            far = trust.forcing_effect(cb, rows[one].to(device), last[one], chosen, stream(seed, "other"))
            yield Measurement(arm, seed, f"jsd_removed{name}_far", far.removed)
        yield Measurement(arm, seed, f"jsd_removed{name}", effect.removed)
        if not name:
            yield Measurement(arm, seed, "jsd_removed_other_state", effect.removed_other)
            if arm == "codebook_k1":
                yield Measurement("no_patch", seed, "jsd_removed", effect.removed_none)
