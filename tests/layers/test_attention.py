import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from etude.data.randomness import stream
from etude.layers.attention import MultiHeadAttention, attention, attention_weights, make_mask
from etude.layers.cache import KVCache, LayerCache
from etude.layers.positions import RotaryPositions


def randn(*shape, seed=0, name="x"):
    return torch.randn(*shape, generator=stream(seed, name))


def test_attention_is_softmax_of_scaled_products():
    q, k, v = randn(2, 3, 5, 4, name="q"), randn(2, 3, 6, 4, name="k"), randn(2, 3, 6, 4, name="v")
    by_hand = (q @ k.transpose(-1, -2) / 2.0).softmax(-1) @ v
    torch.testing.assert_close(attention(q, k, v), by_hand)
    bias = randn(3, 5, 6, name="b")
    by_hand = (q @ k.transpose(-1, -2) / 2.0 + bias).softmax(-1) @ v
    torch.testing.assert_close(attention(q, k, v, bias=bias), by_hand)


def test_grouped_heads_serve_neighbouring_queries():
    q, k = randn(1, 4, 3, 2, name="q"), randn(1, 2, 3, 2, name="k")
    full = k[:, [0, 0, 1, 1]]
    torch.testing.assert_close(attention(q, k, k), attention(q, full, full))
    with pytest.raises(ValueError, match="4 query heads are not a multiple of 3"):
        attention(q, randn(1, 3, 3, 2), randn(1, 3, 3, 2))


@pytest.mark.parametrize("with_bias", [False, True])
def test_row_with_nothing_allowed_gives_zeros_and_finite_gradients(with_bias):
    q, k = randn(1, 2, 3, 4).requires_grad_(), randn(1, 2, 3, 4, name="k").requires_grad_()
    mask = torch.tensor([[True, False, False], [False, False, False], [True, True, True]])
    bias = randn(2, 3, 3, name="b") if with_bias else None
    y = attention(q, k, k, mask=mask, bias=bias)
    assert (y[:, :, 1] == 0).all() and y.isfinite().all()
    y.sum().backward()
    assert q.grad.isfinite().all() and k.grad.isfinite().all() and (q.grad[:, :, 1] == 0).all()
    assert (attention_weights(q, k, mask=mask, bias=bias)[:, :, 1] == 0).all()


def test_float_mask_and_unknown_mask_are_refused():
    q = randn(1, 1, 2, 2)
    with pytest.raises(ValueError, match="True = may be used"):
        attention(q, q, q, mask=torch.zeros(2, 2))
    with pytest.raises(ValueError, match="'causal'"):
        attention(q, q, q, mask="full")


def test_masks_by_hand():
    tri = torch.ones(4, 4).tril().bool()
    assert torch.equal(make_mask("causal", 4), tri)
    assert torch.equal(make_mask("causal", 2, 4), tri[2:])
    prefix = tri.clone()
    prefix[:2, :2] = True
    assert torch.equal(make_mask("prefix", 4, n_context=2), prefix)
    assert make_mask("window", 4, window=2).int().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1]]
    assert make_mask("window", 3, window=2, causal=False).int().tolist() == [[1, 1, 0], [1, 1, 1], [0, 1, 1]]
    both = make_mask("global_local", 4, window=1, n_context=1, causal=False).int().tolist()
    assert both == [[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 1, 0], [1, 0, 0, 1]]
    assert make_mask("context_query", 3, n_context=2).int().tolist() == [[1, 1, 0]] * 3
    padded = make_mask("padding", 2, lengths=torch.tensor([1, 2]))
    assert padded.shape == (2, 1, 2, 2) and padded[0, 0].int().tolist() == [[1, 0], [1, 0]]
    assert make_mask("causal", 2, lengths=torch.tensor([1]))[0, 0].int().tolist() == [[1, 0], [1, 0]]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("causal", 3, 2), "0 <= T <= S"),
        (("window", 3), "window of at least 1"),
        (("prefix", 3), "n_context"),
        (("padding", 3), "needs lengths"),
        (("diagonal", 3), "unknown mask 'diagonal'"),
    ],
)
def test_bad_masks_are_named(arguments, text):
    with pytest.raises(ValueError, match=text):
        make_mask(*arguments)


@settings(max_examples=20, deadline=None)
@given(t=st.integers(1, 6), extra=st.integers(0, 4), window=st.integers(1, 9))
def test_no_causal_mask_looks_ahead_and_cached_rows_are_the_last_ones(t, extra, window):
    full = t + extra
    for kind, options in [
        ("causal", {}), ("window", {"window": window}), ("global_local", {"window": window, "n_context": 2}),
    ]:  # fmt: skip
        mask = make_mask(kind, full, **options)
        assert not mask.triu(1).any() and mask.diagonal().all()
        assert torch.equal(make_mask(kind, t, full, **options), mask[extra:])


def test_equals_torch_multi_head_attention_on_copied_weights():
    ours = MultiHeadAttention(12, 3)
    peer = torch.nn.MultiheadAttention(12, 3, batch_first=True)
    peer.in_proj_weight.data = torch.cat([ours.q_proj.weight, ours.kv_proj.weight]).data
    peer.in_proj_bias.data = torch.cat([ours.q_proj.bias, ours.kv_proj.bias]).data
    peer.out_proj.load_state_dict(ours.out_proj.state_dict())
    x, real = randn(2, 5, 12), torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]], dtype=torch.bool)
    y, weights = ours(x, mask=real[:, None, None], need_weights=True)
    expected, expected_weights = peer(x, x, x, key_padding_mask=~real, average_attn_weights=False)
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(weights, expected_weights)


def test_rotary_scores_depend_on_the_distance_only_and_values_are_not_rotated():
    rope = RotaryPositions(8)
    q, k = randn(1, 1, 1, 8, name="q"), randn(1, 1, 1, 8, name="k")

    def score(t, s):
        a, _ = rope(q, q, torch.tensor([t]))
        b, _ = rope(k, k, torch.tensor([s]))
        return float((a * b).sum())

    assert score(3, 1) == pytest.approx(score(12, 10), abs=1e-5)
    assert score(3, 1) != pytest.approx(score(3, 2), abs=1e-3)
    mha = MultiHeadAttention(8, 1, position="rope")
    x = randn(1, 4, 8).requires_grad_()
    uniform = torch.zeros_like(mha.q_proj.weight)
    mha.q_proj.weight.data, mha.q_proj.bias.data = uniform, torch.zeros(8)
    mean = mha.out_proj(mha.kv_proj(x)[..., 8:].mean(1, keepdim=True)).expand(1, 4, 8)
    torch.testing.assert_close(mha(x).y, mean)


def test_alibi_bias_reaches_the_scores():
    mha = MultiHeadAttention(8, 2, position="alibi")
    mha.q_proj.weight.data.zero_()
    mha.q_proj.bias.data.zero_()
    weights = mha(randn(1, 3, 8), mask="causal", need_weights=True).weights
    expected = torch.tensor([math.exp(-2 * 2**-4), math.exp(-(2**-4)), 1.0])
    torch.testing.assert_close(weights[0, 0, 2], expected / expected.sum())


def test_head_mask_removes_a_head_and_equality_bias_marks_pairs():
    mha = MultiHeadAttention(8, 2, equality_bias=True)
    x, same = randn(2, 3, 8), torch.eye(3, dtype=torch.bool)
    with pytest.raises(ValueError, match="same="):
        mha(x)
    mha.equality.data = torch.tensor([50.0, 0.0])
    weights = mha(x, same=same, need_weights=True).weights
    torch.testing.assert_close(weights[:, 0], torch.eye(3).expand(2, 3, 3))
    off = mha(x, same=same, head_mask=torch.tensor([0.0, 0.0])).y
    torch.testing.assert_close(off, mha.out_proj.bias.expand_as(off))


def test_cross_attention_with_cache_computes_the_memory_once():
    mha, cache = MultiHeadAttention(8, 2, context_dim=5), LayerCache()
    x, memory = randn(2, 4, 8), randn(2, 6, 5, name="m")
    full = mha(x, memory).y
    with torch.no_grad():
        first = mha(x[:, :1], memory, cache=cache).y
        rest = mha(x[:, 1:], torch.full_like(memory, math.nan), cache=cache).y
    torch.testing.assert_close(torch.cat([first, rest], 1), full)
    assert cache.length == 6


def test_cache_has_the_gradient_of_the_uncached_pass():
    mha, x = MultiHeadAttention(8, 2), randn(1, 5, 8).requires_grad_()
    (full,) = torch.autograd.grad(mha(x, mask="causal").y.square().sum(), x)
    cache = LayerCache()
    parts = [mha(part, mask="causal", cache=cache).y for part in (x[:, :2], x[:, 2:4], x[:, 4:])]
    (cached,) = torch.autograd.grad(torch.cat(parts, 1).square().sum(), x)
    torch.testing.assert_close(cached, full)


def test_cache_rows_are_selected_and_a_wrong_number_is_refused():
    mha, cache = MultiHeadAttention(4, 1), KVCache(1)
    with torch.no_grad():
        mha(randn(2, 3, 4), mask="causal", cache=cache[0])
        chosen = cache.select(torch.tensor([1, 1, 0]))
        assert chosen.length == 3 and torch.equal(chosen[0].view()[0][0], cache[0].view()[0][1])
        assert chosen.nbytes == cache.nbytes * 3 // 2
        with pytest.raises(ValueError, match="holds 2 rows"):
            mha(randn(3, 1, 4), cache=cache[0])
    with pytest.raises(ValueError, match="empty"):
        LayerCache().view()


def test_masks_that_mean_nothing_are_refused():
    q = randn(1, 2, 3, 4)
    for call in (lambda: attention(q, q, q, mask="prefix"), lambda: attention_weights(q, q, mask="prefix")):
        with pytest.raises(ValueError, match="'prefix'"):
            call()
    with pytest.raises(ValueError, match="head_mask needs one number a head"):
        MultiHeadAttention(8, 4)(randn(2, 3, 8), head_mask=torch.ones(3))


@pytest.mark.parametrize(
    ("sizes", "options", "text"),
    [
        ((10, 3), {}, "hidden_dim=10 is not a multiple of num_heads=3"),
        ((12, 4), {"num_kv_heads": 3}, "num_heads=4 is not a multiple of num_kv_heads=3"),
        ((9, 3), {"position": "rope"}, "even head size"),
        ((8, 2), {"position": "spiral"}, "spiral"),
        ((8, 0), {}, "positive"),
        ((8, 2), {"dropout": 1.5}, "dropout"),
    ],
)
def test_sizes_that_do_not_fit_are_named(sizes, options, text):
    with pytest.raises(ValueError, match=text):
        MultiHeadAttention(*sizes, **options)
