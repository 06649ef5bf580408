"""Weights of `transformers` decoders in `DecoderLM`: proof that the block is the published one."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from etude.layers.blocks import FFN
from etude.layers.positions import LearnedPositions

if TYPE_CHECKING:
    from etude.layers.decoder import DecoderLM

_LLAMA_LIKE = ("llama", "mistral", "qwen2", "smollm")
_ACTIVATIONS: dict[str, FFN] = {
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu": "gelu",
    "relu": "relu",
    "silu": "silu",
}


def decoder_from_hf(model: Any, cls: "type[DecoderLM]") -> "DecoderLM":
    """Build `cls` with the weights of a LLaMA-like or GPT-2-like model; see `DecoderLM.from_hf`."""
    kind = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
    if kind in _LLAMA_LIKE:
        lm = _from_llama(model, cls)
    elif kind == "gpt2":
        lm = _from_gpt2(model, cls)
    else:
        raise ValueError(f"cannot carry over a model of type {kind!r}; known: {', '.join((*_LLAMA_LIKE, 'gpt2'))}")
    return lm.train(model.training)


def _copy(linear: nn.Linear, weight: Tensor, bias: Tensor | None) -> None:
    linear.weight.data.copy_(weight)
    if linear.bias is not None:
        linear.bias.data.copy_(torch.zeros_like(linear.bias) if bias is None else bias)


def _rope(config: Any) -> tuple[float, float]:
    """Base and scale of the rotary positions, from either generation of configurations."""
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    base = rope.get("rope_theta") or getattr(config, "rope_theta", None) or 10000.0
    if kind == "default":
        return float(base), 1.0
    if kind == "linear":
        return float(base), 1.0 / float(rope["factor"])
    raise ValueError(f"rotary positions of kind {kind!r} are not carried over; known: default, linear")


def _from_llama(model: Any, cls: "type[DecoderLM]") -> "DecoderLM":
    from etude.layers.decoder import DecoderConfig

    c = model.config
    if c.hidden_act != "silu":
        raise ValueError(f"the gated net must use silu, got {c.hidden_act!r}")
    head_dim = getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads
    if head_dim * c.num_attention_heads != c.hidden_size:
        raise ValueError(f"heads of {head_dim} features do not make up hidden_size={c.hidden_size}")
    base, scale = _rope(c)
    layers = model.model.layers
    window = getattr(c, "sliding_window", None)
    if c.model_type == "qwen2" and not getattr(c, "use_sliding_window", False):
        window = None
    lm = cls(
        DecoderConfig(
            num_layers=len(layers), hidden_dim=c.hidden_size, num_heads=c.num_attention_heads,
            num_kv_heads=c.num_key_value_heads, ffn_dim=c.intermediate_size, ffn="swiglu", norm="rms",
            norm_eps=c.rms_norm_eps, position="rope", rope_base=base, position_scale=scale, window=window,
            max_length=c.max_position_embeddings, bias=layers[0].mlp.up_proj.bias is not None,
            attention_bias=layers[0].self_attn.q_proj.bias is not None,
            vocab_size=c.vocab_size, tie=bool(c.tie_word_embeddings),
        )
    )  # fmt: skip
    lm.embed.weight.data.copy_(model.model.embed_tokens.weight)
    lm.stack.norm.load_state_dict(model.model.norm.state_dict())
    if not c.tie_word_embeddings:
        lm.head.weight.data.copy_(model.lm_head.weight)
    block: Any  # its parts are typed as modules of any kind
    for block, old in zip(lm.stack.layers(), layers, strict=True):
        a, m = old.self_attn, old.mlp
        kv_bias = None if a.k_proj.bias is None else torch.cat([a.k_proj.bias, a.v_proj.bias])
        _copy(block.mixer.q_proj, a.q_proj.weight, a.q_proj.bias)
        _copy(block.mixer.kv_proj, torch.cat([a.k_proj.weight, a.v_proj.weight]), kv_bias)
        _copy(block.mixer.out_proj, a.o_proj.weight, a.o_proj.bias)
        _copy(block.ffn.gate, m.gate_proj.weight, m.gate_proj.bias)
        _copy(block.ffn.up, m.up_proj.weight, m.up_proj.bias)
        _copy(block.ffn.down, m.down_proj.weight, m.down_proj.bias)
        block.mixer_norm.weight.data.copy_(old.input_layernorm.weight)
        block.ffn_norm.weight.data.copy_(old.post_attention_layernorm.weight)
    return lm


def _from_gpt2(model: Any, cls: "type[DecoderLM]") -> "DecoderLM":
    from etude.layers.decoder import DecoderConfig

    c = model.config
    if c.activation_function not in _ACTIVATIONS:
        raise ValueError(f"activation {c.activation_function!r} is not known; known: {sorted(_ACTIVATIONS)}")
    lm = cls(
        DecoderConfig(
            num_layers=c.n_layer, hidden_dim=c.n_embd, num_heads=c.n_head, ffn_dim=c.n_inner or 4 * c.n_embd,
            ffn=_ACTIVATIONS[c.activation_function], norm="layer", norm_eps=c.layer_norm_epsilon,
            position="learned", max_length=c.n_positions, vocab_size=c.vocab_size,
            tie=bool(c.tie_word_embeddings),
        )
    )  # fmt: skip
    old = model.transformer
    lm.embed.weight.data.copy_(old.wte.weight)
    assert isinstance(lm.positions, LearnedPositions)
    lm.positions.table.weight.data.copy_(old.wpe.weight)
    lm.stack.norm.load_state_dict(old.ln_f.state_dict())
    if not c.tie_word_embeddings:
        lm.head.weight.data.copy_(model.lm_head.weight)
    block: Any
    for block, h in zip(lm.stack.layers(), old.h, strict=True):
        weight, bias, D = h.attn.c_attn.weight.T, h.attn.c_attn.bias, c.n_embd  # Conv1D holds the transpose
        _copy(block.mixer.q_proj, weight[:D], bias[:D])
        _copy(block.mixer.kv_proj, weight[D:], bias[D:])
        _copy(block.mixer.out_proj, h.attn.c_proj.weight.T, h.attn.c_proj.bias)
        _copy(block.ffn.up, h.mlp.c_fc.weight.T, h.mlp.c_fc.bias)
        _copy(block.ffn.down, h.mlp.c_proj.weight.T, h.mlp.c_proj.bias)
        block.mixer_norm.load_state_dict(h.ln_1.state_dict())
        block.ffn_norm.load_state_dict(h.ln_2.state_dict())
    return lm
