"""Guidance: the loss against its formula, the layer map, what is frozen, and every bad input of the card."""

import copy
import pickle
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from etude.data.randomness import seeded_build, stream
from etude.layers import DecoderConfig, DecoderLM, TargetError, convnet, make_rnn, mlp
from etude.training import Guidance, cka, cka_matrix, even_map, ridge_similarity, rsa, svcca
from etude.training.similarity import centred_gram, unit_grams


def made(build, seed=0):
    return seeded_build(build, stream(seed, "init"))


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=stream(seed, "x"))


@pytest.fixture
def nets():
    return made(lambda: mlp((6, 12, 12, 12, 3), norm="batch")), made(lambda: mlp((6, 9, 7, 3)), 1)


def test_even_map_spreads_from_first_to_last():
    assert even_map(3, 10) == [0, 5, 9]
    assert even_map(5, 2) == [0, 0, 1, 1, 1]
    assert even_map(4, 4) == [0, 1, 2, 3]
    assert even_map(1, 6) == [5]
    for s in range(2, 9):
        for m in range(1, 9):
            mapped = even_map(s, m)
            assert (mapped[0], mapped[-1], sorted(mapped)) == (0, m - 1, mapped)
    with pytest.raises(ValueError, match="at least one layer"):
        even_map(0, 3)


@pytest.mark.parametrize("debiased", [False, True])
def test_the_loss_is_the_papers_formula_on_the_pass_of_the_task(nets, debiased):
    target, guide = nets
    x = normal(40, 6)
    g = Guidance(target, guide, alpha=0.7, debiased=debiased)
    target(x)
    value = g.loss(x)
    # the target's linear layers but the logits; the guide's two first ones, mapped to first and last
    hidden = x
    seen = {}
    for name, layer in target.named_children():
        hidden = layer(hidden)
        seen[name] = hidden
    first = guide[0](x)
    second = guide[2](guide[1](first))
    assert g.pairs == (("0", "0"), ("6", "2"))
    pairs = [(seen["0"], first), (seen["6"], second)]
    expected = 0.7 * sum(1 - cka(a, b, debiased=debiased) for a, b in pairs)
    assert torch.isclose(value, expected, atol=1e-5)
    report = g.report()
    assert report.similarity.shape == (1, 2)
    assert report.records()[1]["target"] == "6"


def test_gradients_go_into_the_target_only_and_are_those_of_the_formula(nets):
    target, guide = nets
    x = normal(40, 6)
    g = Guidance(target, guide, map=[("0", "2")])
    target(x)
    g.loss(x).backward()
    assert all(p.grad is None for p in guide.parameters())
    ours = target[0].weight.grad.clone()
    target.zero_grad()
    (1 - cka(target[0](x), guide[2](guide[1](guide[0](x))).detach())).backward()
    assert torch.allclose(ours, target[0].weight.grad, atol=1e-6)


def test_grams_in_a_batch_are_those_one_by_one():
    layers = [normal(9, 4), normal(9, 3, 5, seed=1) + 2, normal(9, 4, seed=2).double(), torch.full((9, 4), 0.3)]
    for debiased in (False, True):
        many = unit_grams(layers, debiased=debiased)
        for X, K in zip(layers, many):
            assert torch.allclose(K, centred_gram(X, debiased=debiased).to(K.dtype), atol=1e-5)
    X = normal(6, 3).double().requires_grad_()
    weights = normal(1, 6, 6, seed=4).double()
    assert torch.autograd.gradcheck(lambda x: (unit_grams([x]) * weights).sum(), (X,))


def test_until_step_takes_the_hooks_off(nets):
    target, guide = nets
    g = Guidance(target, guide, until_step=2)
    x = normal(16, 6)
    values = []
    for _ in range(4):
        target(x)
        values.append(float(g.loss(x)))
    assert values[0] > 0
    assert values[1] > 0
    assert values[2:] == [0, 0]
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in target.modules())
    assert g.report().steps == (0, 1)


def test_the_guide_is_put_into_eval_mode_and_does_not_move(nets):
    target, _ = nets
    guide = made(lambda: mlp((6, 9, 7, 3), norm="batch", dropout=0.5), 1).train()
    before = copy.deepcopy(guide.state_dict())
    g = Guidance(target, guide)
    x = normal(16, 6)
    target(x)
    first = g.loss(x)
    target(x)
    assert torch.equal(first, g.loss(x)) or target.training
    assert not guide.training
    assert all(torch.equal(v, guide.state_dict()[k]) for k, v in before.items())

    class Moving(nn.Linear):
        def __init__(self):
            super().__init__(6, 6)
            self.register_buffer("count", torch.zeros(()))

        def forward(self, x):
            self.count += 1
            return super().forward(x)

    g = Guidance(target, Moving(), map=[("0", "")])
    target(x)
    with pytest.raises(ValueError, match=r"its own buffers in eval mode \(count\)"):
        g.loss(x)


def test_in_place_activations_and_recurrent_tuples():
    target = nn.Sequential(nn.Linear(5, 8), nn.ReLU(inplace=True), nn.Linear(8, 2))
    rnn = make_rnn("elman", 5, 7)
    g = Guidance(target, rnn, map=[("0", "")], guide_input=lambda x: x[:, None].expand(-1, 3, -1))
    x = normal(12, 5)
    target(x)
    value = g.loss(x)
    expected = 1 - cka(target[0](x), rnn(x[:, None].expand(-1, 3, -1))[0])
    assert torch.isclose(value, expected, atol=1e-6)
    value.backward()
    assert target[0].weight.grad.abs().sum() > 0


def test_padding_is_left_out():
    target, guide = nn.Sequential(nn.Embedding(9, 4)), nn.Sequential(nn.Embedding(9, 6))
    ids = torch.randint(0, 9, (10, 5), generator=stream(0, "ids"))
    other = ids.clone()
    mask = torch.ones(10, 5, dtype=torch.bool)
    mask[:, 3:] = False
    other[:, 3:] = torch.randint(0, 9, (10, 2), generator=stream(1, "ids"))
    values = []
    for batch in (ids, other):
        g = Guidance(target, guide, map=[("0", "0")])
        target(batch)
        values.append(float(g.loss(batch, mask=mask)))
        g.remove()
    assert values[0] == pytest.approx(values[1])


@pytest.mark.parametrize("mask, message", [
    (torch.ones(10, 4, dtype=torch.bool), r"mask \(10, 4\) fits no guided layer"),
    (torch.ones(6, 5, dtype=torch.bool), r"'0' \(10, 5, 4\)"),
    (torch.ones(10, 5, dtype=torch.long), "int64"),
])  # fmt: skip
def test_a_mask_that_would_mask_nothing_is_refused(mask, message):
    ids = torch.randint(0, 9, (10, 5), generator=stream(0, "ids"))
    g = Guidance(nn.Sequential(nn.Embedding(9, 4)), nn.Sequential(nn.Embedding(9, 6)), map=[("0", "0")])
    g.target(ids)
    with pytest.raises(ValueError, match=message):
        g.loss(ids, mask=mask)


def test_positions_are_asked_of_every_layer_and_time_first_is_noticed():
    x = normal(10, 6, 4)
    guide = nn.Sequential(nn.Flatten(), nn.Linear(24, 3))
    g = Guidance(nn.Sequential(nn.Linear(4, 5)), guide, map=[("0", "1")], per_position=True)
    g.target(x)
    with pytest.raises(ValueError, match=r"'1' is \(10, 3\)"):
        g.loss(x)

    class TimeFirst(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = nn.RNN(4, 5)

        def forward(self, x):
            return self.rnn(x.transpose(0, 1))[0]

    g = Guidance(made(TimeFirst), made(TimeFirst, 1), map=[("rnn", "rnn")])
    g.target(x)
    with pytest.warns(UserWarning, match=r"'rnn' puts out \(6, 10, 5\), time first"):
        g.loss(x)
    g.target(x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        g.loss(x)


def test_per_position_is_the_mean_over_positions():
    target, guide = nn.Sequential(nn.Linear(4, 5)), nn.Sequential(nn.Linear(4, 3))
    x = normal(10, 6, 4)
    for index, compare in (("cka", cka), ("rsa", rsa)):
        g = Guidance(target, guide, map=[("0", "0")], per_position=True, index=index)
        target(x)
        expected = 1 - torch.stack([compare(target(x)[:, t], guide(x)[:, t]) for t in range(6)]).mean()
        target(x)
        assert torch.isclose(g.loss(x), expected, atol=1e-5)
        g.remove()


def test_other_indices(nets):
    target, guide = nets
    x = normal(20, 6)

    def compare(X, Y):
        return (X.mean() - Y.mean()).abs()

    for index, function in (("rsa", rsa), ("svcca", svcca), ("ridge", ridge_similarity), (compare, compare)):
        g = Guidance(target, guide, map=[("0", "0")], index=index)
        target(x)
        assert torch.isclose(g.loss(x), 1 - function(target[0](x), guide[0](x)), atol=1e-5)
        g.remove()


def test_layers_by_name_in_both_models(nets):
    target, guide = nets
    image = made(lambda: convnet((1, 4, 4), (4, 6), 3), 2)
    x = normal(16, 6)
    g = Guidance(target, guide, layers=("0", "3"), guide_layers="[02]")
    target(x)
    g.loss(x)
    assert g.pairs == (("0", "0"), ("3", "2"))
    g.remove()
    g = Guidance(target, image, layers=["0", "*.conv"], guide_input=lambda x: x[:, :1, None, None].expand(-1, -1, 4, 4))
    target(x)
    g.loss(x)
    assert g.pairs == (("0", "0.conv"), ("0", "0"), ("0", "1.conv"))  # in the order of the calls
    g.remove()
    with pytest.raises(TargetError, match="zap"):
        Guidance(target, guide, layers=("0", "zap*"))
    with pytest.raises(TargetError, match="nine"):
        Guidance(target, guide, map=[("0", "nine")])
    with pytest.raises(TargetError, match="name some"):
        Guidance(nn.ReLU(), guide)


def test_a_named_layer_that_is_not_called_is_named():
    class Idle(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.idle = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            return self.used(x)

    net, x = Idle(), normal(8, 4)
    g = Guidance(net, nn.Linear(4, 2), map=[("used", ""), ("idle", "")])
    net(x)
    with pytest.raises(TargetError, match=r"the target does not call \['idle'\]; it called \['used'\]"):
        g.loss(x)
    g.remove()
    g = Guidance(net, nn.Linear(4, 2), guide_layers="")  # found by kind: what is not called is left out
    net(x)
    g.loss(x)
    assert g.pairs == (("used", ""),)


def test_bad_batches(nets):
    target, guide = nets
    g = Guidance(target, guide)
    with pytest.raises(ValueError, match="has not run on this batch"):
        g.loss(normal(8, 6))
    target(normal(3, 6))
    with pytest.raises(ValueError, match="at least 4 rows"):
        g.loss(normal(3, 6))
    target(normal(8, 6))
    with pytest.raises(ValueError, match=r"batch_first=True"):
        g.loss(normal(9, 6))
    g.remove()
    constant = nn.Linear(6, 4)
    nn.init.zeros_(constant.weight)
    g = Guidance(target, constant, map=[("0", "")])
    target(normal(8, 6))
    with pytest.warns(UserWarning, match="constant activations"):
        value = g.loss(normal(8, 6))
    assert float(value) == 1
    value.backward()
    assert target[0].weight.grad.isfinite().all()


@pytest.mark.parametrize("options, message", [
    ({"alpha": -1.0}, "alpha"), ({"alpha": float("inf")}, "finite"), ({"until_step": 2.5}, "whole number"),
    ({"max_samples": 2}, "max_samples"), ({"index": "pca"}, "'svcca', 'ridge'"),
    ({"until_step": 0}, "until_step"), ({"map": "odd"}, "map must be"), ({"map": []}, "map must be"),
    ({"map": [("0", "0")], "layers": "0"}, "leave layers"),
    ({"guide_input": lambda x: x, "noise": stream(0, "n")}, "not both"),
    ({"map": [("0",)]}, "map must be"), ({"map": ["00"]}, "map must be"), ({"index": "rsa", "debiased": True}, "CKA"),
])  # fmt: skip
def test_bad_settings(nets, options, message):
    with pytest.raises(ValueError, match=message):
        Guidance(*nets, **options)


def test_models_whose_hooks_would_not_be_seen(nets):
    target, guide = nets
    with pytest.raises(ValueError, match="DataParallel"):
        Guidance(nn.DataParallel(target), guide)
    with pytest.raises(ValueError, match="compiled"):
        Guidance(torch.compile(target), guide)
    with pytest.raises(ValueError, match="one module"):
        Guidance(target, target)


def test_noise_kept_grams_rows_and_state(nets):
    target, guide = nets
    x = normal(20, 6)
    g = Guidance(target, guide, map=[("0", "0")], noise=stream(3, "noise"), max_samples=16)
    target(x)
    noise = torch.randn(20, 6, generator=stream(3, "noise"))
    expected = 1 - cka(target[0](x)[:16], guide[0](noise)[:16])
    target(x)
    assert torch.isclose(g.loss(x), expected, atol=1e-5)
    assert g.state_dict() == {"alpha": 1.0, "step": 1, "pairs": [["0", "0"]]}
    g.remove()
    g = Guidance(target, guide)
    calls = []
    handle = guide.register_forward_hook(lambda *_: calls.append(1))
    values = []
    for _ in range(2):
        target(x)
        values.append(float(g.loss(x, key="first")))
    handle.remove()
    assert len(calls) == 1
    assert values[0] == pytest.approx(values[1])
    ids = Guidance(nn.Sequential(nn.Embedding(3, 4)), nn.Embedding(3, 4), map=[("0", "")], noise=stream(0, "n"))
    ids.target(torch.zeros(5, dtype=torch.long))
    with pytest.raises(ValueError, match="not ids"):
        ids.loss()
    again = Guidance(made(lambda: mlp((6, 12, 3))), guide, until_step=5)
    again.load_state_dict({"alpha": 0.5, "step": 5, "pairs": []})
    again.target(x)
    assert float(again.loss(x)) == 0


def test_an_earlier_state_puts_the_hooks_back_and_one_of_other_layers_changes_nothing(nets):
    target, guide = nets
    x = normal(20, 6)
    g = Guidance(target, guide, map=[("0", "0")], until_step=1)
    start = g.state_dict()
    target(x)
    first = float(g.loss(x))
    assert not target[0]._forward_hooks
    g.load_state_dict(start)
    target(x)
    assert float(g.loss(x)) == pytest.approx(first)
    with pytest.raises(TargetError, match="pairs '9' of the guide"):
        g.load_state_dict({"alpha": 2.0, "step": 0, "pairs": [["0", "9"]]})
    assert (g.alpha, g.step, g.pairs) == (1.0, 1, (("0", "0"),))


def test_an_evaluation_is_not_guided_by_a_wrapped_loss(nets):
    g = Guidance(*nets)
    loss = g.wrap(F.cross_entropy)
    with torch.no_grad():
        out = g.target(normal(3, 6))  # a last batch too small for any similarity
        assert torch.equal(loss(out, torch.arange(3)), F.cross_entropy(out, torch.arange(3)))
    assert g.step == 0


def test_a_language_model_and_a_loss_of_another_trainer():
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=30, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16, num_labels=2
    )
    target = made(lambda: transformers.BertForSequenceClassification(config))
    guide = made(lambda: transformers.BertModel(config), 1)
    ids = torch.randint(0, 30, (8, 6), generator=stream(0, "ids"))
    g = Guidance(target, guide, map=[("bert.encoder.layer.1", "encoder.layer.1")])
    loss = g.wrap(lambda outputs, labels: F.cross_entropy(outputs.logits, labels))
    labels = torch.arange(8) % 2
    out = target(input_ids=ids, attention_mask=torch.ones_like(ids))
    value = loss(out, labels)
    assert value > F.cross_entropy(out.logits, labels)
    value.backward()
    assert target.bert.encoder.layer[0].output.dense.weight.grad.abs().sum() > 0
    assert float(g.report().share[0]) > 0


def test_half_precision_is_compared_in_single(nets):
    target, guide = nets
    x = normal(32, 6)
    g = Guidance(target, guide, map=[("0", "0")])
    with torch.autocast("cpu", torch.bfloat16):
        target(x)
        value = g.loss(x)
    assert value.dtype == torch.float32
    exact = 1 - cka(target[0](x), guide[0](x))
    assert torch.isclose(value, exact, atol=0.02)
    g.remove()
    g = Guidance(target, guide, map=[("0", "0")], index="rsa")
    with torch.autocast("cpu", torch.bfloat16):
        target(x)
        assert g.loss(x).dtype == torch.float32


def test_layers_without_rows_are_left_out_where_none_was_named():
    config = DecoderConfig(num_layers=1, hidden_dim=8, num_heads=2, vocab_size=9, max_length=6)
    target, guide = made(lambda: DecoderLM(config)), made(lambda: DecoderLM(config), 1)
    ids = torch.randint(0, 9, (10, 6), generator=stream(0, "ids"))
    g = Guidance(target, guide)
    target(ids)
    assert g.loss(ids).isfinite()
    names = {n for pair in g.pairs for n in pair}
    assert "embed" in names
    assert not any("positions" in n for n in names)
    assert not any("positions" in n for n in cka_matrix(target, guide, [ids]).rows)


def test_constant_activations_are_warned_of_once(nets):
    target, guide = nets
    nn.init.zeros_(guide[2].weight)
    g, x = Guidance(target, guide), normal(40, 6)
    target(x)
    with pytest.warns(UserWarning, match="constant activations"):
        assert torch.isfinite(g.loss(x))
    target(x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        g.loss(x)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda made: pickle.loads(pickle.dumps(made))])
def test_a_copy_of_the_guidance_guides_the_copy_of_the_target(nets, duplicate):
    target, guide = nets
    guidance = Guidance(target, guide, until_step=3)
    x = normal(8, 6)
    target(x)
    first = float(guidance.loss(x))
    other = duplicate(guidance)
    other.target(x)
    assert float(other.loss()) == pytest.approx(first, abs=1e-6)
    assert (guidance.step, other.step, len(other.report().steps)) == (1, 2, 2)
    target(x)
    assert float(guidance.loss()) == pytest.approx(first, abs=1e-6)
    other.remove()
    assert float(duplicate(other).loss(x)) == 0.0


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))])
def test_a_copy_of_the_target_takes_no_part(nets, duplicate):
    target, guide = nets
    g, x = Guidance(target, guide, map=[("0", "0")]), normal(20, 6)
    target(x)
    other = duplicate(target)  # after a pass, too: what is kept of it has a graph
    other(normal(20, 6, seed=1))
    g.loss().backward()
    assert target[0].weight.grad.abs().sum() > 0
    assert all(p.grad is None for p in other.parameters())
