import math

import pytest
import torch
from torch import nn

from etude.data.randomness import fork_global, stream
from etude.layers.blocks import Block, FeedForward, TransformerConfig, TransformerStack
from etude.layers.decoder import DecoderConfig, DecoderLM


def build(**options):
    base = {"num_layers": 2, "hidden_dim": 16, "num_heads": 4, "vocab_size": 11, "max_length": 12}
    with fork_global(stream(0, "init")):
        return DecoderLM(DecoderConfig(**{**base, **options})).eval()


def some_ids(rows=2, length=9, seed=0):
    return torch.randint(11, (rows, length), generator=stream(seed, "ids"))


VARIANTS = [
    {"position": p, "ffn": f, "norm": n, "placement": w, "num_kv_heads": kv, "share_layers": s, "tie": t}
    for p, f, n, w, kv, s, t in [
        ("learned", "gelu", "layer", "pre", None, False, True),
        ("sinusoidal", "relu", "layer", "post", 2, False, False),
        ("rope", "swiglu", "rms", "pre", 1, False, True),
        ("alibi", "geglu", "rms", "deepnorm", 4, True, True),
        ("none", "silu", "layer", "parallel", 2, True, False),
    ]
] + [{"window": 3, "position": "rope"}, {"embedding_dim": 6}, {"embedding_dim": 6, "tie": False}]


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_causal_cached_and_trainable(options):
    lm, ids = build(**options), some_ids()
    full = lm(ids)
    changed = ids.clone()
    changed[:, 5] = (changed[:, 5] + 1) % 11
    other = lm(changed)
    torch.testing.assert_close(other[:, :5], full[:, :5])
    assert (other[:, 5] - full[:, 5]).abs().max() > 1e-6
    with torch.no_grad():
        cache = lm.new_cache()
        parts = [lm(ids[:, a:b], cache=cache) for a, b in ((0, 4), (4, 5), (5, 9))]
    torch.testing.assert_close(torch.cat(parts, 1), full, atol=1e-5, rtol=1e-5)
    full.logsumexp(-1).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in lm.parameters())


@pytest.mark.parametrize("position", ["learned", "sinusoidal", "rope", "alibi", "none"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(position, side):
    lm, ids = build(position=position), some_ids(1, 6)
    fill = torch.zeros(1, 3, dtype=torch.long)
    padded = torch.cat([fill, ids] if side == "left" else [ids, fill], 1)
    real = torch.ones_like(padded, dtype=torch.bool)
    real[:, : 3 if side == "left" else 0] = False
    if side == "right":
        real[:, 6:] = False
    out = lm(padded, real)
    assert out.isfinite().all()
    torch.testing.assert_close(out[real], lm(ids)[0], atol=1e-5, rtol=1e-5)
    if side == "left":
        with torch.no_grad():
            cache = lm.new_cache()
            lm(padded[:, :7], real[:, :7], cache)
            torch.testing.assert_close(lm(padded[:, 7:], cache=cache), lm(ids)[:, 4:], atol=1e-5, rtol=1e-5)


def test_window_and_prefix_reach():
    lm, ids = build(window=2, num_layers=1), some_ids(1)
    changed = ids.clone()
    changed[:, 3] = (changed[:, 3] + 1) % 11
    moved = (lm(changed) - lm(ids)).abs().amax(-1)[0] > 1e-7
    assert moved.nonzero().flatten().tolist() == [3, 4]
    lm = build(prefix=True, num_layers=1)
    lengths = torch.tensor([4])
    moved = (lm(changed, prefix_lengths=lengths) - lm(ids, prefix_lengths=lengths)).abs().amax(-1)[0] > 1e-7
    assert moved.nonzero().flatten().tolist() == list(range(9))
    torch.testing.assert_close(lm(ids, prefix_lengths=torch.tensor([0])), lm(ids))
    with pytest.raises(ValueError, match="prefix=True"):
        build()(ids, prefix_lengths=lengths)


def test_head_mask_of_zeros_leaves_the_feed_forward_path():
    lm, ids = build(num_layers=1, bias=False), some_ids(1)
    changed = ids.clone()
    changed[:, 2] = (changed[:, 2] + 1) % 11
    none = torch.zeros(1, 4)
    moved = (lm(changed, head_mask=none) - lm(ids, head_mask=none)).abs().amax(-1)[0] > 1e-7
    assert moved.nonzero().flatten().tolist() == [2]


def test_gated_nets_have_as_many_parameters_as_plain_ones():
    def count(kind):
        return sum(p.numel() for p in TransformerStack(config(kind)).parameters())

    def config(kind):
        return TransformerConfig(num_layers=1, hidden_dim=96, ffn=kind, bias=False)

    assert count("swiglu") == pytest.approx(count("gelu"), rel=0.01)
    x = torch.randn(3, 4, generator=stream(0, "x"))
    net = FeedForward(4, 5, "swiglu")
    torch.testing.assert_close(net(x), net.down(nn.functional.silu(net.gate(x)) * net.up(x)))


def test_deepnorm_constants():
    stack = TransformerStack(TransformerConfig(num_layers=8, hidden_dim=64, placement="deepnorm", init="torch"))
    assert stack.blocks[0].alpha == pytest.approx(2.0) and isinstance(stack.norm, nn.Identity)
    kv = stack.blocks[0].mixer.kv_proj.weight
    ratio = kv[64:].std() / kv[:64].std()
    assert ratio.item() == pytest.approx(64**-0.25, rel=0.05)


def test_shared_layers_hold_one_block_and_tied_heads_one_table():
    lm = build(share_layers=True, num_layers=5)
    assert len(lm.stack.blocks) == 1 and len(lm.stack.layers()) == 5 and len(lm.new_cache()) == 5
    assert lm.head.weight is lm.embed.weight
    assert build(tie=False).head.weight is not build().embed.weight


def test_gpt2_init_scales():
    with fork_global(stream(0, "init")):
        lm = DecoderLM(DecoderConfig(num_layers=8, hidden_dim=128, vocab_size=500))
    assert lm.embed.weight.std().item() == pytest.approx(0.02, rel=0.03)
    assert lm.stack.blocks[0].mixer.out_proj.weight.std().item() == pytest.approx(0.005, rel=0.05)


def test_own_mixer_and_cross_attention():
    class Shift(nn.Module):
        def forward(self, x):
            return nn.functional.pad(x, (0, 0, 1, 0))[:, :-1]

    config = TransformerConfig(num_layers=2, hidden_dim=8, mixer=lambda c, layer: Shift())
    stack = TransformerStack(config)
    assert stack(torch.zeros(1, 3, 8)).shape == (1, 3, 8)
    with pytest.raises(ValueError, match="mixer of its own"):
        stack.new_cache()
    block = Block(TransformerConfig(num_layers=1, hidden_dim=8, cross_attention=True))
    with pytest.raises(ValueError, match="context="):
        block(torch.zeros(1, 3, 8))
    x, memory = torch.randn(1, 3, 8, generator=stream(0, "x")), torch.randn(1, 5, 8, generator=stream(0, "m"))
    hidden = torch.tensor([True, True, True, False, False])
    memory_2 = memory.clone()
    memory_2[:, 3:] = 9.0
    torch.testing.assert_close(
        block(x, context=memory, context_mask=hidden), block(x, context=memory_2, context_mask=hidden)
    )
    assert (block(x, context=memory) - block(x, context=memory_2)).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"hidden_dim": 18}, "hidden_dim=18 is not a multiple of num_heads=4"),
        ({"num_kv_heads": 3}, "num_kv_heads=3"),
        ({"hidden_dim": 12, "position": "rope"}, "even head size"),
        ({"ffn": "tanh"}, "ffn must be one of"),
        ({"norm": "batch"}, "norm must be one of"),
        ({"placement": "middle"}, "placement must be one of"),
        ({"position": "relative"}, "position must be one of"),
        ({"num_layers": 0}, "num_layers"),
        ({"vocab_size": 0}, "vocab_size"),
        ({"dropout": 1.0}, "dropout"),
        ({"causal": False}, "prefix=True"),
        ({"window": 0}, "window"),
        ({"mixer": "fourier"}, "fourier"),
    ],
)
def test_configurations_that_do_not_fit_are_refused_when_made(options, text):
    with pytest.raises(ValueError, match=text):
        build(**options)


def test_bad_calls_are_named():
    lm = build()
    with pytest.raises(ValueError, match="ids run from 3 to 42, but the vocabulary has 11"):
        lm(torch.tensor([[3, 42]]))
    with pytest.raises(ValueError, match="max_length=12"):
        lm(some_ids(1, 13))
    with pytest.raises(ValueError, match="mask must be"):
        lm(some_ids(), torch.ones(2, 3))
    with pytest.raises(ValueError, match="ids must be"):
        lm(torch.zeros(3, dtype=torch.long))
    with pytest.warns(UserWarning, match="1.08 times"):
        build(position="rope")(some_ids(1, 13))


def test_loads_llama_weights_with_equal_logits():
    transformers = pytest.importorskip("transformers", reason="optional: transformers")
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    common = {
        "vocab_size": 11,
        "num_key_value_heads": 2,
        "max_position_embeddings": 32,
        "bos_token_id": 0,
        "eos_token_id": 1,
    }
    ids = some_ids()
    for config, kind in [
        (transformers.LlamaConfig(**sizes, **common), transformers.LlamaForCausalLM),
        (transformers.LlamaConfig(**sizes, **common, tie_word_embeddings=True), transformers.LlamaForCausalLM),
        (transformers.Qwen2Config(**sizes, **common), transformers.Qwen2ForCausalLM),
    ]:
        model = kind(config).eval()
        torch.testing.assert_close(DecoderLM.from_hf(model)(ids), model(ids).logits, atol=1e-4, rtol=1e-4)


def test_loads_gpt2_weights_with_equal_logits():
    transformers = pytest.importorskip("transformers", reason="optional: transformers")
    config = transformers.GPT2Config(
        vocab_size=11, n_embd=32, n_head=4, n_layer=2, n_positions=32, bos_token_id=0, eos_token_id=1
    )
    model = transformers.GPT2LMHeadModel(config).eval()
    ids, real = some_ids(), torch.ones(2, 9, dtype=torch.bool)
    real[0, :4] = False
    places = (real.cumsum(-1) - 1).clamp_min(0)
    expected = model(ids, attention_mask=real.long(), position_ids=places).logits
    torch.testing.assert_close(DecoderLM.from_hf(model)(ids, real)[real], expected[real], atol=1e-4, rtol=1e-4)


def test_an_unknown_kind_is_named():
    with pytest.raises(ValueError, match="Linear"):
        DecoderLM.from_hf(nn.Linear(2, 2))


def test_one_more_token_costs_no_full_pass():
    lm, ids = build(), some_ids(1, 8)
    with torch.no_grad():
        cache = lm.new_cache()
        lm(ids, cache=cache)
        seen = []
        hook = lm.stack.blocks[0].mixer.kv_proj.register_forward_hook(lambda m, i, o: seen.append(o.shape[1]))
        lm(ids[:, :1], cache=cache)
        hook.remove()
    assert seen == [1] and cache.nbytes == 2 * 2 * 9 * 16 * 4


def test_loss_of_an_untrained_model_is_near_the_uniform_one():
    logits = build()(some_ids())
    loss = nn.functional.cross_entropy(logits.flatten(0, 1), some_ids(seed=1).flatten())
    assert loss.item() == pytest.approx(math.log(11), abs=0.1)


def test_greedy_generation_equals_repeated_full_passes():
    lm, ids = build(), some_ids(2, 3)
    out = lm.generate(ids, 5)
    slow = ids
    for _ in range(5):
        slow = torch.cat([slow, lm(slow)[:, -1:].argmax(-1)], 1)
    assert torch.equal(out, slow)
    padded = torch.cat([torch.zeros(2, 2, dtype=torch.long), ids], 1)
    real = torch.ones_like(padded, dtype=torch.bool)
    real[:, :2] = False
    assert torch.equal(lm.generate(padded, 5, mask=real)[:, 2:], slow)
    with pytest.raises(ValueError, match="pad on the left"):
        lm.generate(padded, 5, mask=real.flip(1))


def test_sampled_generation():
    lm, ids = build().train(), some_ids(2, 3)
    one, two = (lm.generate(ids, 4, top_p=0.9, generator=stream(5, "draw")) for _ in range(2))
    assert torch.equal(one, two) and one.shape == (2, 7) and lm.training
    many = lm.generate(ids[:1], 1, num_samples=4000, generator=stream(6, "draw"))
    assert many.shape == (1, 4000, 4)
    share = torch.bincount(many[0, :, -1], minlength=11) / 4000
    torch.testing.assert_close(share, lm.eval()(ids[:1])[0, -1].softmax(-1), atol=0.03, rtol=0)
    assert lm.generate(ids, 3, temperature=0.5).shape == (2, 6)
    assert lm.generate(ids[:, :1], 2, beam_size=3).shape == (2, 3)
