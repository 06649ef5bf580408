"""Codebook features against a straight port of the official layer, and one quantiser against vector-quantize-pytorch.

Not installed here: the official package (it pulls in transformer_lens, hydra and wandb) and sae-lens (sparse
autoencoders, another method). The port computes what the official layer computes, in its way: similarities of all
tokens with all codes at once, one codebook a head in a Python loop.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from etude.data.randomness import seeded_build, stream
from etude.lab.bench import Case
from etude.layers import DecoderConfig, DecoderLM, VectorQuantizer
from etude.trust import CodebookLayer, codebook

NUM_CODES, K = 10_000, 8


class _Port(nn.Module):
    """One head's codebook as the official code reads."""

    def __init__(self, layer: CodebookLayer, group: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(layer.dim // layer.groups)
        self.codes = nn.Parameter(layer.quantizer.codes[group].detach().clone())

    def forward(self, a: Tensor) -> Tensor:
        z = self.norm(a)
        logits = z.detach() @ self.codes.detach().T / self.codes.detach().norm(dim=-1)
        chosen = F.embedding(logits.topk(K).indices, self.codes).mean(-2)
        missing = (chosen - z.detach()).square().sum(-1).mean()
        return chosen + z - z.detach() + (missing - missing.detach())


class _Heads(nn.Module):
    def __init__(self, layer: CodebookLayer) -> None:
        super().__init__()
        self.heads = nn.ModuleList(_Port(layer, g) for g in range(layer.groups))

    def forward(self, a: Tensor) -> Tensor:
        parts = a.chunk(len(self.heads), -1)
        return torch.cat([head(part) for head, part in zip(self.heads, parts)], -1)


def cases() -> list[Case]:
    """A transformer of 4 layers and width 128, 256 tokens, a codebook of 10,000 codes a head, 8 chosen."""
    config = DecoderConfig(num_layers=4, hidden_dim=128, num_heads=4, vocab_size=500, position="rope", max_length=64)
    model = seeded_build(lambda: DecoderLM(config), stream(0, "init"))
    ids = torch.randint(500, (4, 64), generator=stream(0, "ids"))
    theirs = copy.deepcopy(model)
    cb = codebook.wrap(model, "*.mixer.merged", NUM_CODES, K, groups=4, example=ids, generator=stream(0, "codes"))
    for block, layer in zip(theirs.stack.blocks, cb.codebooks):
        block.mixer.merged = _Heads(layer)  # type: ignore[union-attr,assignment,arg-type]

    def step(net: nn.Module) -> Any:
        net.zero_grad(set_to_none=True)
        loss = F.cross_entropy(net(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()
        return loss.detach()

    def same(a: Any, b: Any) -> bool:
        return abs(float(a) - float(b)) < 1e-3

    out = [
        Case(
            f"forward and backward, {NUM_CODES} codes a head, k = {K}", lambda: step(cb), lambda: step(theirs),
            "port of the official layer", same, 2.0,
        )
    ]  # fmt: skip
    try:
        from vector_quantize_pytorch import VectorQuantize
    except ImportError:
        return out
    peer = VectorQuantize(dim=128, codebook_size=NUM_CODES, use_cosine_sim=True).eval()
    ours = VectorQuantizer(NUM_CODES, 128, similarity="cosine", generator=stream(0, "codes")).eval()
    x = torch.randn(4, 64, 128, generator=stream(0, "x"))
    return [
        *out,
        Case(
            f"one codebook of {NUM_CODES}, k = 1, eval mode", lambda: ours(x.unsqueeze(-2)).values, lambda: peer(x)[0],
            "vector-quantize-pytorch", None, 1.0, "the peer has no top-k",
        ),
    ]  # fmt: skip
