"""Codebooks on networks of every kind: forward by hand, gradients by the book, interventions, bad input."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from etude.data.randomness import seeded_build, stream
from etude.layers import DecoderConfig, DecoderLM
from etude.layers.surgery import TargetError
from etude.trust import CodebookLayer, code_purity, codebook, finetuning_step, forcing_effect, unit_purity

IDS = torch.randint(11, (3, 9), generator=stream(0, "ids"))


def decoder(layers=2):
    config = DecoderConfig(num_layers=layers, hidden_dim=16, num_heads=2, vocab_size=11, position="rope")
    return seeded_build(lambda: DecoderLM(config), stream(0, "init")).eval()


def wrapped(model=None, **changes):
    options = {"num_codes": 40, "k": 1, "groups": {"*.merged": 2}, "generator": stream(0, "codes")} | changes
    return codebook.wrap(model or decoder(), ["*.ffn", "*.merged"], **options)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 999), groups=st.sampled_from([1, 2, 4]), k=st.integers(1, 4), cosine=st.booleans())
def test_a_layer_emits_the_mean_of_the_nearest_codes(seed, groups, k, cosine):
    g = stream(seed, "t")
    layer = CodebookLayer(8, 9, k, groups=groups, similarity="cosine" if cosine else "euclidean", generator=g).eval()
    a = torch.randn(5, 8, generator=g) * 3 + 1
    y = layer(a)
    d = 8 // groups
    for i in range(5):
        for j in range(groups):
            z = F.layer_norm(a[i, j * d : (j + 1) * d], (d,))
            codes = layer.quantizer.codes[j]
            score = codes @ z / codes.norm(dim=-1) if cosine else -(codes - z).square().sum(-1)
            by_hand = codes[score.topk(k).indices].mean(0)
            assert torch.allclose(y[i, j * d : (j + 1) * d], by_hand, atol=1e-5)
    assert int(layer.quantizer.usage.sum()) == 0


def test_gradients_of_aeloss_are_those_of_base_with_the_reconstruction_in_the_loss():
    """Straight-through to the input; codes learn from the task by 1 / k and from |y - z|^2."""
    g = stream(1, "t")
    a, w = torch.randn(6, 8, generator=g), torch.randn(6, 8, generator=g)
    grads = []
    for gradient in ("aeloss", "base"):
        layer = CodebookLayer(8, 5, 2, groups=2, gradient=gradient, generator=stream(0, "codes"))
        x = a.clone().requires_grad_()
        y = layer(x)
        loss = (y * w).sum() + (layer.calls[-1].loss if gradient == "base" else 0)
        loss.backward()
        grads.append((x.grad, layer.quantizer.codes.grad, layer.weight.grad))
        assert torch.allclose(layer.calls[-1].loss, (y - layer.normalize(a).flatten(-2)).square().sum(-1).mean())
    assert all(torch.allclose(p, q, atol=1e-5) for p, q in zip(*grads))
    z = a.clone().requires_grad_()
    (F.layer_norm(z.unflatten(-1, (2, 4)), (4,)).flatten(-2) * w).sum().backward()
    assert torch.allclose(grads[0][0], z.grad, atol=1e-6)


@pytest.mark.parametrize("gradient", ["vqvae", "fullaeloss"])
def test_beta_is_the_weight_of_the_pull_towards_the_codes(gradient):
    net = seeded_build(lambda: nn.Sequential(nn.Linear(4, 6)), stream(0, "net")).double()  # single rounds too coarsely
    x = torch.randn(5, 4, generator=stream(1, "x")).double()
    grads = []
    for beta in (0.0, 0.25, 1.0):
        cb = codebook.wrap(copy.deepcopy(net), "0", 7, gradient=gradient, commitment=beta, generator=stream(0, "c"))
        cb(x).sum().backward()
        grads.append(cb.model[0].weight.grad)
    assert torch.allclose(grads[1] - grads[0], 0.25 * (grads[2] - grads[0]), atol=1e-6)
    assert not torch.allclose(grads[0], grads[2])


def test_wrapping_replaces_states_and_unwrapping_restores_them_bit_for_bit():
    model = decoder()
    before, names = model(IDS), list(model.state_dict())
    cb = wrapped(model)
    assert cb.names == (
        "stack.blocks.0.ffn",
        "stack.blocks.1.ffn",
        "stack.blocks.0.mixer.merged",
        "stack.blocks.1.mixer.merged",
    )
    assert not torch.allclose(cb(IDS), before)
    assert list(model.state_dict()) == names
    cb.disable()
    assert torch.equal(cb(IDS), before)
    cb.enable()
    assert not torch.equal(cb(IDS), before)
    assert torch.equal(cb.unwrap()(IDS), before)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    with pytest.raises(RuntimeError, match="unwrapped"):
        cb.codes(IDS)
    wrapped(model)  # and again


def test_codes_have_one_set_a_token_and_group_and_counting_is_left_to_training():
    cb = wrapped(k=3)
    found = cb.codes(IDS)
    assert found["stack.blocks.0.ffn"].shape == (3, 9, 1, 3)
    assert found["stack.blocks.1.mixer.merged"].shape == (3, 9, 2, 3)
    assert all(int(layer.quantizer.usage.sum()) == 0 for layer in cb.layers.values())
    cb.train()
    cb(IDS)
    assert all(int(layer.quantizer.usage.sum()) == 3 * 9 * 3 * layer.groups for layer in cb.layers.values())
    assert cb.codes(IDS) and cb.training and cb.model.training  # the mode is what it was


def test_a_copy_is_a_model_of_its_own():
    cb = wrapped()
    other = copy.deepcopy(cb)
    with torch.no_grad():
        for layer in other.layers.values():
            layer.quantizer.codes.zero_()
    assert torch.equal(cb(IDS), wrapped()(IDS))
    assert not torch.equal(other(IDS), cb(IDS))
    with cb.force({"*.ffn": [3]}):
        assert not bool((other.codes(IDS)["stack.blocks.0.ffn"] == 3).all())


def test_training_moves_codes_and_dead_ones_are_replaced_with_their_moments():
    cb = wrapped(dead_after=2).train()
    optimizer = torch.optim.Adam(cb.parameters(), lr=1e-2)
    start = {n: layer.quantizer.codes.detach().clone() for n, layer in cb.layers.items()}
    for _ in range(3):
        optimizer.zero_grad()
        F.cross_entropy(cb(IDS).flatten(0, 1), IDS.flatten()).backward()
        optimizer.step()
    assert float(cb.reconstruction_loss()) > 0
    idle = {n: layer.quantizer.idle >= 2 for n, layer in cb.layers.items()}
    for layer in cb.layers.values():
        optimizer.state[layer.quantizer.codes]["exp_avg"].fill_(1.0)
    count = cb.replace_dead(stream(0, "dead"), optimizer)
    assert count == sum(int(i.sum()) for i in idle.values()) > 0
    for n, layer in cb.layers.items():
        moments = optimizer.state[layer.quantizer.codes]["exp_avg"]
        assert torch.equal(moments == 0, idle[n][..., None].expand_as(moments))
        moved = (layer.quantizer.codes != start[n]).any(-1)
        assert bool(moved[idle[n]].all())
        rows = layer.calls[-1].rows.flatten(0, 1)
        for g, c in idle[n].nonzero()[:5].tolist():
            assert bool((rows[:, g] == layer.quantizer.codes[g, c]).all(-1).any())


def test_weight_decay_leaves_the_codes_alone():
    from etude.training import parameter_groups

    cb = wrapped()
    decayed = {id(p) for g in parameter_groups(cb, 0.1) if g["weight_decay"] for p in g["params"]}
    assert decayed
    assert not any(id(layer.quantizer.codes) in decayed for layer in cb.layers.values())


def test_codes_start_at_activations_of_the_plain_network():
    cb = wrapped(num_codes=10)
    seen = {}
    cb.disable()
    for layer in cb.layers.values():
        layer.keep_rows = True
    cb(IDS)
    seen = {n: layer.calls[-1].rows.flatten(0, 1) for n, layer in cb.layers.items()}
    cb.enable()
    for layer in cb.layers.values():
        layer.keep_rows = False
    cb.initialize([IDS], generator=stream(0, "rows"))
    for n, layer in cb.layers.items():
        for g in range(layer.groups):
            assert (layer.quantizer.codes[g][:, None] - seen[n][:, g]).abs().amax(-1).amin(-1).max() < 1e-5
    assert all(layer.enabled and not layer.keep_rows for layer in cb.layers.values())
    cb.initialize([IDS], method="kmeans", generator=stream(0, "rows"))
    with pytest.raises(ValueError, match="no batch reached"):
        cb.initialize([])
    cb.disable()
    cb.initialize([IDS])
    assert not any(layer.enabled for layer in cb.layers.values())


def test_forcing_puts_a_code_where_it_is_asked_for():
    cb = wrapped(k=2)
    plain = cb(IDS)
    with cb.force({"stack.blocks.1.ffn": [7]}, positions=slice(-1, None)):
        found = cb.codes(IDS)["stack.blocks.1.ffn"]
        out = cb(IDS)
    assert bool((found[:, -1] == 7).any(-1).all())
    assert torch.equal(out[:, :-1], plain[:, :-1])
    assert not torch.allclose(out[:, -1], plain[:, -1])
    with cb.force({"*.merged": [[1, 2], [3, 4]]}):
        found = cb.codes(IDS)
    assert found["stack.blocks.0.mixer.merged"].unique(dim=0).flatten(0, 1).unique(dim=0).tolist() == [[[1, 2], [3, 4]]]
    with cb.force({"*.merged": [5]}, groups=[1]):
        found = cb.codes(IDS)["stack.blocks.0.mixer.merged"]
    assert bool((found[:, :, 1] == 5).any(-1).all())
    assert not bool((found[:, :, 0] == 5).any(-1).all())
    assert torch.equal(cb(IDS), plain)
    read = cb.codes(IDS)["stack.blocks.1.ffn"][0, 0, 0]  # as `codes` gives them, and the name's end
    with cb.force({"1.ffn": [read]}):
        assert cb.codes(IDS)["stack.blocks.1.ffn"].sort().values.flatten(0, 2).unique(dim=0).tolist() == [
            sorted(read.tolist())
        ]
    with cb.force({"1.ffn": [torch.tensor(7)]}):
        assert bool((cb.codes(IDS)["stack.blocks.1.ffn"] == 7).any(-1).all())


def test_forcing_steers_generation():
    cb = wrapped()
    with cb.force({"*": [0]}):
        a = cb.model.generate(IDS[:1, :3], 5)
        b = cb.model.generate(IDS[1:2, :3], 5)
    assert a.shape == (1, 8)
    assert torch.equal(a[:, 4:], b[:, 4:]) or not torch.equal(IDS[0, 2], IDS[1, 2])


def test_shuffled_codes_are_those_of_other_tokens():
    cb = wrapped()
    own = cb.codes(IDS)["stack.blocks.0.mixer.merged"]  # the first place in time: nothing before it is changed
    with cb.shuffled(stream(0, "s")):
        mixed = cb.codes(IDS)["stack.blocks.0.mixer.merged"]
    assert not torch.equal(own, mixed)
    assert torch.equal(own.flatten().sort().values, mixed.flatten().sort().values)
    assert torch.equal(cb.codes(IDS)["stack.blocks.0.mixer.merged"], own)


def test_state_is_kept_in_a_file_of_its_own(tmp_path):
    cb = wrapped()
    cb.initialize([IDS], generator=stream(3, "rows"))
    cb.train()(IDS)
    path = cb.eval().save(tmp_path)
    assert path.name == "codebooks.safetensors"
    fresh = wrapped(generator=stream(9, "codes"))
    assert torch.equal(fresh.load(tmp_path)(IDS), cb(IDS))
    assert all(torch.equal(a.quantizer.usage, b.quantizer.usage) for a, b in zip(fresh.codebooks, cb.codebooks))
    with pytest.raises(ValueError, match="this model has"):
        codebook.wrap(decoder(), "*.ffn", 40).load(tmp_path)
    with pytest.raises(ValueError, match="does not fit"):
        wrapped(num_codes=41).load(tmp_path)


class Pair(nn.Module):
    """Puts out a tuple, a mapping or nothing of use; a tied layer runs twice."""

    def __init__(self, kind="tuple"):
        super().__init__()
        self.kind, self.inner = kind, nn.Linear(6, 6)
        self.part = self.Part(self)

    class Part(nn.Module):
        def __init__(self, outer):
            super().__init__()
            self.kind, self.linear = outer.kind, nn.Linear(6, 6)

        def forward(self, *, x):
            y = self.linear(x)
            return {"tuple": (y, "kept"), "list": [y, "kept"], "dict": {"n": 3, "y": y}, "none": "words"}[self.kind]

    def forward(self, x):
        out = self.part(x=self.inner(self.inner(x)))
        return out


@pytest.mark.parametrize(
    ("kind", "pick"), [("tuple", lambda o: o[0]), ("list", lambda o: o[0]), ("dict", lambda o: o["y"])]
)
def test_the_first_tensor_of_what_a_module_puts_out_is_quantised(kind, pick):
    model, x = Pair(kind), torch.randn(4, 6, generator=stream(0, "x"))
    cb = codebook.wrap(model, "part", 5, generator=stream(0, "c")).eval()
    out = cb(x)
    codes = cb.layers["part"].quantizer.codes[0]
    assert torch.equal(pick(out), codes[cb.codes(x)["part"][:, 0, 0]])
    assert type(out) is type(model(x)) and (out["n"] == 3 if kind == "dict" else out[1] == "kept")


def test_inputs_by_keyword_and_layers_that_run_twice():
    x = torch.randn(4, 6, generator=stream(0, "x"))
    cb = codebook.wrap(Pair(), ["part:in", "inner"], 5, generator=stream(0, "c"))
    found = cb.codes(x)
    assert set(found) == {"part:in", "inner", "inner:1"}
    with pytest.raises(ValueError, match="part: puts out str"):
        codebook.wrap(Pair("none"), "part", 5)(x)


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "llama", "bert"])
def test_any_hugging_face_model(family, tmp_path):
    transformers = pytest.importorskip("transformers")
    make = {
        "gpt2": lambda: (
            transformers.GPT2LMHeadModel(
                transformers.GPT2Config(vocab_size=50, n_embd=16, n_layer=2, n_head=2, n_positions=32)
            ),
            ["*.mlp", "*.attn.c_proj:in"],
        ),
        "gpt_neox": lambda: (
            transformers.GPTNeoXForCausalLM(
                transformers.GPTNeoXConfig(
                    vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
                )
            ),
            ["*.mlp", "*.attention.dense:in"],
        ),
        "llama": lambda: (
            transformers.LlamaForCausalLM(
                transformers.LlamaConfig(
                    vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
                )
            ),
            ["*.mlp", "*.self_attn"],
        ),
        "bert": lambda: (
            transformers.BertForMaskedLM(
                transformers.BertConfig(
                    vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
                )
            ),
            ["*.attention.self", "*.output.dense"],
        ),
    }[family]
    model, targets = seeded_build(lambda: nn.ModuleList([make()[0]]), stream(0, "init"))[0].eval(), make()[1]
    batch = {
        "input_ids": torch.randint(50, (2, 7), generator=stream(0, "x")),
        "attention_mask": torch.ones(2, 7).long(),
    }
    before = model(**batch).logits
    groups = {t: 2 for t in targets if "attn" in t or t.endswith("dense:in")}
    cb = codebook.wrap(model, targets, num_codes=20, k=2, groups=groups, example=batch, generator=stream(0, "c"))
    assert len(cb.names) == {"bert": 6}.get(family, 4)
    out = cb(**batch, labels=batch["input_ids"])
    (out.loss + cb.reconstruction_loss()).backward()
    assert all(layer.quantizer.codes.grad.abs().sum() > 0 for layer in cb.codebooks)
    assert not torch.allclose(out.logits, before)
    found = cb.codes(batch)
    assert all(v.shape[:2] == (2, 7) and v.shape[-1] == 2 for v in found.values())
    if family != "bert":
        with cb.force({cb.names[0]: [4]}, positions=slice(-1, None)):
            assert model.generate(batch["input_ids"], max_new_tokens=3, do_sample=False).shape == (2, 10)
    model.save_pretrained(tmp_path)
    cb.save(tmp_path)
    again = type(model).from_pretrained(tmp_path).eval()
    assert torch.allclose(again(**batch).logits, before, atol=1e-6)
    assert torch.equal(cb.unwrap()(**batch).logits, before)


def test_widths_are_told_by_weights_or_asked_for():
    cb = codebook.wrap(decoder(), ["*.ffn.up:in", "*.ffn"], 5)
    assert {layer.dim for layer in cb.layers.values()} == {16}
    model = nn.Sequential(nn.Linear(6, 8), nn.Bilinear(1, 1, 1))
    with pytest.raises(ValueError, match="give dim= or example="):
        codebook.wrap(model, "1", 5)
    assert not any(m._forward_hooks for m in model.modules())
    assert codebook.wrap(model, "1", 5, dim=4).layers["1"].dim == 4
    wrong = codebook.wrap(nn.Sequential(nn.Linear(6, 8)), "0", 5, dim=4)
    with pytest.raises(ValueError, match=r"0: the activation is 8 wide.*made for 4"):
        wrong(torch.zeros(2, 6))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: wrapped(k=41), ValueError, r"k must lie in 1\.\.40"),
        (lambda: wrapped(groups=3), ValueError, "cannot be cut into 3 groups"),
        (lambda: wrapped(groups=2.0), ValueError, r"groups must be a whole number, got 2\.0"),
        (lambda: wrapped(num_codes=2.5), ValueError, r"num_codes must be a whole number, got 2\.5"),
        (lambda: wrapped(k=True), ValueError, "k must be a whole number, got True"),
        (lambda: codebook.wrap(decoder(), "*.mlp"), TargetError, "stack.blocks.0"),
        (lambda: codebook.wrap(decoder(), []), TargetError, "empty"),
        (lambda: wrapped(wrapped().model), ValueError, "carries a codebook already"),
        (lambda: wrapped().reconstruction_loss(), RuntimeError, "run the model"),
        (lambda: wrapped().replace_dead(stream(0)), ValueError, "needs dead_after="),
        (lambda: _forced(wrapped(), {"*.ffn": [40]}), IndexError, r"0\.\.39"),
        (lambda: _forced(wrapped(), {"*.ffn": [1.7]}), TypeError, "must be whole numbers, got torch.float32"),
        (lambda: _forced(wrapped(), {"*.ffn": [1]}, positions=[20]), IndexError, "out of bounds"),
        (lambda: _forced(wrapped(), {"*.ffn": [1]}, positions=slice(9, 20)), IndexError, "beyond a sequence of 9"),
        (lambda: wrapped(gradient="fullaeloss-0.5"), ValueError, "gradient 'fullaeloss-0.5': .*fullaeloss.*commitment"),
        (lambda: _disabled().codes(IDS), RuntimeError, r"enable\(\)"),
        (lambda: _disabled().search(IDS, IDS == 1), RuntimeError, r"enable\(\)"),
        (lambda: _disabled().reconstruction_loss(), RuntimeError, r"enable\(\)"),
        (lambda: _forced(wrapped(), {"*.ffn": [1, 2]}), ValueError, "do not fit into k = 1"),
        (lambda: _forced(wrapped(), {"*.mlp": [1]}), TargetError, "no codebook named"),
    ],
)
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


def _disabled():
    cb = wrapped()
    cb.disable()
    cb(IDS)
    return cb


def _forced(cb, codes, **options):
    with cb.force(codes, **options):
        cb(IDS)


def test_a_failed_wrap_leaves_the_model_as_it_was():
    model = decoder()
    with pytest.raises(ValueError, match="cannot be cut"):
        codebook.wrap(model, ["*.ffn", "*.merged"], 5, groups={"*.merged": 3})
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_zero_and_nan_activations():
    layer = CodebookLayer(6, 4, generator=stream(0, "c"), name="h.3.mlp")
    y = layer(torch.zeros(2, 6, requires_grad=True))
    assert torch.equal(y, layer.quantizer.codes[0, :1].expand(2, -1))  # the same distance to all: the first code
    y.sum().backward()
    assert all(bool(p.grad.isfinite().all()) for p in layer.parameters())
    with pytest.raises(ValueError, match=r"h\.3\.mlp"):
        layer(torch.full((2, 6), float("nan")))


def test_a_collapse_is_a_warning():
    layer = CodebookLayer(4, 500, generator=stream(0, "c"), name="h.0.mlp").train()
    x = torch.ones(1, 4).cumsum(-1)
    for _ in range(999):
        layer(x)
    with pytest.warns(UserWarning, match=r"h\.0\.mlp: 0\.20% of the codes"):
        layer(x)
    assert layer.live_fraction() == pytest.approx(1 / 500)


def test_half_precision_in_and_out():
    layer = CodebookLayer(8, 5, generator=stream(0, "c"))
    assert layer(torch.randn(3, 8, generator=stream(0, "x")).bfloat16()).dtype == torch.bfloat16


def test_wrapping_moves_no_global_generator_and_copies_need_no_graph():
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    state = torch.get_rng_state()
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    cb = codebook.wrap(net, "0", 10, 2, example=x, gradient="base", generator=torch.Generator().manual_seed(1))
    assert torch.equal(state, torch.get_rng_state())
    want = cb.train()(x)
    assert torch.equal(copy.deepcopy(cb)(x), want)


def test_names_of_options_must_match_and_double_models_get_double_codes():
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    with pytest.raises(TargetError, match="groups: '9' matches none of the places 0"):
        codebook.wrap(net, "0", 10, groups={"9": 2})
    cb = codebook.wrap(net.double(), "2:in", 10, groups={"2": 3})
    assert (cb.codebooks[0].groups, cb.codebooks[0].quantizer.codes.dtype) == (3, torch.float64)
    assert cb(torch.zeros(3, 4).double()).dtype == torch.float64


def test_a_collapse_is_seen_within_a_short_training():
    layer = CodebookLayer(4, 1000, generator=torch.Generator().manual_seed(0)).train()
    row = torch.ones(1, 4)
    for _ in range(99):
        layer(row)
    with pytest.warns(UserWarning, match="0.10% of the codes were chosen in the last 100 passes"):
        layer(row)


def test_forcing_effects_leave_every_mode_as_it_was():
    cb = wrapped().train()
    cb.model.stack.blocks[0].eval()
    modes = [m.training for m in cb.modules()]
    forcing_effect(cb, IDS[:2], torch.tensor([0, 1]), [cb.names[0]], stream(0, "other"))
    assert [m.training for m in cb.modules()] == modes


def test_idle_codes_are_replaced_in_the_first_updates_of_an_optimiser(monkeypatch):
    cb = wrapped(dead_after=1).train()
    cb(IDS)  # passes before the training do not count
    seen = []
    monkeypatch.setattr(cb, "replace_dead", lambda *_, **__: seen.append(len(seen)))
    step = finetuning_step(lambda model, ids: (model(ids) + model(ids)).square().mean(), replace_steps=2)
    for _ in range(2):
        optimizer = torch.optim.SGD(cb.parameters(), lr=1e-3)
        for _ in range(3):
            step(cb, optimizer, IDS, stream(0, "step"))
    assert len(seen) == 4


def test_a_file_that_does_not_fit_changes_nothing(tmp_path):
    wrapped(num_codes=39).save(tmp_path)
    cb = wrapped()
    with torch.no_grad():
        cb.codebooks[0].weight.fill_(7)
    with pytest.raises(ValueError, match="does not fit these codebooks: 0.quantizer.codes is"):
        cb.load(tmp_path)
    assert (cb.codebooks[0].weight == 7).all()


def test_purity_of_padding_and_of_labels_of_another_length_is_refused():
    codes = torch.tensor([[0], [1], [-1]])
    with pytest.raises(ValueError, match="-1, which stands for padding"):
        code_purity(codes, torch.zeros(3, dtype=torch.long))
    with pytest.raises(ValueError, match="3 rows and 1 labels"):
        code_purity(codes, torch.zeros(1, dtype=torch.long))


def test_purity_of_neurons_in_half_precision():
    values = torch.arange(200.0)[:, None]
    labels = (values[:, 0] > 150).long()
    assert unit_purity(values.half(), labels, quantile=0.9) == unit_purity(values, labels, quantile=0.9)


def test_a_mask_is_not_taken_for_codes():
    cb = wrapped()
    with pytest.raises(TypeError, match="must be whole numbers, got torch.bool"), cb.force({cb.names[0]: [True]}):
        cb(IDS)
