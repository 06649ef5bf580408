"""Distillation: the loss against scipy and torch, its terms, the frozen teacher, the loop."""

import numpy as np
import pytest
import torch
from scipy.special import rel_entr, softmax
from torch import nn
from torch.nn import functional as F

from etude.data.randomness import seeded_build, stream
from etude.layers import TargetError, mlp
from etude.training import DistillationLoss, TrainConfig, distill, distillation_kl, distillation_objective, train
from etude.training.distillation import Outputs, logits_of, relation_loss


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=stream(seed, "x"))


def net(seed=0, sizes=(4, 16, 3)):
    return seeded_build(lambda: mlp(sizes), stream(seed, "init"))


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_kl_is_of_the_teacher_summed_over_classes(temperature):
    s, t = normal(6, 5), 3 * normal(6, 5, seed=1)
    p, q = softmax(t.numpy() / temperature, -1), softmax(s.numpy() / temperature, -1)
    expected = rel_entr(p, q).sum(-1).mean() * temperature**2
    assert float(distillation_kl(s, t, temperature=temperature)) == pytest.approx(expected, rel=1e-5)
    assert float(distillation_kl(t, t, temperature=temperature)) == pytest.approx(0, abs=1e-6)


def test_any_leading_axes_are_rows_and_a_mask_chooses():
    s, t = normal(2, 3, 5), normal(2, 3, 5, seed=1)
    assert torch.isclose(distillation_kl(s, t), distillation_kl(s.flatten(0, 1), t.flatten(0, 1)))
    mask = torch.tensor([[True, False, False], [True, True, False]])
    assert torch.isclose(distillation_kl(s, t, mask=mask), distillation_kl(s[mask], t[mask]))


def test_top_k_renormalises_on_the_teachers_best():
    s, t = normal(4, 6), normal(4, 6, seed=1)
    best = t.topk(2, -1).indices
    assert torch.isclose(distillation_kl(s, t, top_k=2), distillation_kl(s.gather(1, best), t.gather(1, best)))
    assert torch.isclose(distillation_kl(s, t, top_k=6), distillation_kl(s, t), atol=1e-6)


def test_gradient_reaches_the_student_only_and_keeps_its_size():
    s, t = normal(6, 5).requires_grad_(), normal(6, 5, seed=1).requires_grad_()
    distillation_kl(s, t).backward()
    assert t.grad is None
    assert torch.allclose(s.grad, (s.softmax(-1) - t.softmax(-1)) / 6, atol=1e-6)
    hot = normal(6, 5).requires_grad_()
    distillation_kl(hot, t, temperature=1000.0).backward()  # -> least squares on centred logits, T drops out
    difference = (s - t).detach()
    assert torch.allclose(hot.grad, (difference - difference.mean(1, keepdim=True)) / 5 / 6, atol=1e-3)


@pytest.mark.parametrize("options, message", [
    ({"temperature": 0.0}, "temperature must be positive"), ({"top_k": 9}, r"1\.\.5"),
    ({"mask": torch.zeros(6, dtype=torch.bool)}, "at least one True"),
])  # fmt: skip
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        distillation_kl(normal(6, 5), normal(6, 5), **options)
    with pytest.raises(ValueError, match="one shape"):
        distillation_kl(normal(6, 5), normal(6, 4))
    with pytest.raises(ValueError, match=r"no rows to compare: .*\(0, 5\)"):
        distillation_kl(normal(0, 5), normal(0, 5))


def test_a_class_that_the_teacher_rules_out_adds_nothing():
    s, t, less = normal(6, 5), normal(6, 5, seed=1), torch.tensor([0, 1, 3, 4])
    t[:, 2] = -torch.inf
    both = s.index_fill(1, torch.tensor([2]), -torch.inf).requires_grad_()
    found = distillation_kl(both, t, temperature=2.0)
    torch.testing.assert_close(found, distillation_kl(s[:, less], t[:, less], temperature=2.0))
    (grad,) = torch.autograd.grad(found, both)
    assert not grad[:, 2].any() and bool(grad[:, less].all())
    assert torch.isfinite(distillation_kl(s, t))  # the student alone still allows it


def test_relations_are_blind_to_size_and_rotation():
    X = normal(8, 4)
    Q = torch.linalg.qr(normal(4, 4, seed=1))[0]
    assert float(relation_loss(X, 5 * X @ Q)) == pytest.approx(0, abs=1e-9)
    assert float(relation_loss(X, normal(8, 4, seed=2))) > 0.01
    with pytest.raises(ValueError, match="the same rows"):
        relation_loss(X, X[:5])


def test_terms_are_weighted_and_named():
    losses = DistillationLoss({"logits": 2.0, "hidden": 0.5, "relation": 1.0}, layer_map=[("a", "b")], temperature=2.0)
    s = Outputs(normal(6, 3), {"a": normal(6, 4, seed=2)})
    t = Outputs(normal(6, 3, seed=1), {"b": normal(6, 4, seed=3)})
    made = losses(s, t)
    assert torch.isclose(made["logits"], 2 * distillation_kl(s.logits, t.logits, temperature=2.0))
    assert torch.isclose(made["hidden"], 0.5 * F.mse_loss(s.features["a"], t.features["b"]))
    assert torch.isclose(made["relation"], relation_loss(s.features["a"], t.features["b"]))
    with pytest.raises(ValueError, match="set project=True"):
        losses(s, Outputs(t.logits, {"b": normal(6, 9)}))
    for terms, message in ((("logit",), "must be some of"), ((), "none"), (("hidden",), "needs layer_map")):
        with pytest.raises(ValueError, match=message):
            DistillationLoss(terms)
    with pytest.raises(ValueError, match="needs attention_map"):
        DistillationLoss(("attention",))


def test_attention_maps_are_compared():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.attend = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x):
            return self.attend(x, x, x)[0].mean(1)

    teacher, student = (seeded_build(Block, stream(s, "init")) for s in (0, 1))
    losses = DistillationLoss(("attention",), attention_map=[("attend", "attend")])
    x = normal(5, 6, 8)
    made = distillation_objective(teacher, losses)(student, (x, None))
    maps = [m.attend(x, x, x)[1] for m in (student, teacher)]
    assert torch.isclose(made["attention"], F.mse_loss(*maps))


def test_a_student_learns_the_teachers_answers_without_labels():
    teacher = net(0).train()
    x = normal(200, 4, seed=5)
    before = {k: v.clone() for k, v in teacher.state_dict().items()}
    config = TrainConfig(steps=300, lr=1e-2)
    done = distill(teacher, lambda s: net(s), (x, torch.zeros(200)), config=config, seed=3)
    with torch.no_grad():
        agree = (done.module(x).argmax(1) == teacher(x).argmax(1)).float().mean()
        untrained = (net(3)(x).argmax(1) == teacher(x).argmax(1)).float().mean()
    assert agree > 0.95 > untrained
    assert teacher.training
    assert all(torch.equal(before[k], v) for k, v in teacher.state_dict().items())
    assert all(p.grad is None for p in teacher.parameters())


def test_projections_are_trained_along_and_layers_checked():
    teacher, student = net(0), net(1, (4, 7, 3))
    losses = DistillationLoss({"hidden": 1.0}, layer_map=[("0", "0")], project=True)
    with pytest.raises(ValueError, match="use distill"):
        distillation_objective(teacher, losses)
    x = normal(100, 4)
    done = distill(teacher, student, (x, x), losses=losses, config=TrainConfig(steps=60, lr=1e-2))
    assert done.module is student
    assert losses.maps[0].weight.shape == (16, 7)
    assert done.curve[-1]["loss"] < 0.5 * done.curve[0]["loss"]
    wrong = DistillationLoss({"hidden": 1.0}, layer_map=[("nine", "0")])
    with pytest.raises(TargetError, match="nine"):
        distill(teacher, student, (x, x), losses=wrong, config=TrainConfig(steps=1))


def test_many_seeds_and_the_task_in_one_objective():
    x, y = normal(64, 4), torch.arange(64) % 3
    teachers = {}

    def build(seed):
        made = mlp((4, 8, 3))
        teachers[made] = net(seed + 10)
        return made

    loss = distillation_objective(
        lambda model: teachers[model], DistillationLoss(temperature=2.0), task_loss=F.cross_entropy, task_weight=0.3
    )
    both = train(build, (x, y), loss=loss, config=TrainConfig(steps=5), seeds=(0, 1), plan="sequential")
    (alone,) = train(build, (x, y), loss=loss, config=TrainConfig(steps=5), seeds=(1,))
    assert torch.equal(both[1].module[0].weight, alone.module[0].weight)
    student = next(iter(teachers))
    made = loss(student, (x, y))
    assert torch.isclose(made["task"], 0.3 * F.cross_entropy(student(x), y))


def test_logits_are_found():
    class WithLogits:
        logits = torch.ones(1)

    t = torch.ones(2)
    assert logits_of(t) is t
    assert logits_of(WithLogits()) is WithLogits.logits
    assert logits_of({"logits": t}) is t
    assert logits_of((t, None)) is t
    with pytest.raises(ValueError, match="no logits in str"):
        logits_of("x")
    assert np.isfinite(float(distillation_kl(t[None] * 1e4, -t[None] * 1e4)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_compared_in_single(dtype):
    teacher = (3 * normal(6, 5)).to(dtype)
    student = (teacher + 0.05 * normal(6, 5, seed=1)).to(dtype)
    wanted = distillation_kl(student.double(), teacher.double(), temperature=10.0)
    found = distillation_kl(student, teacher, temperature=10.0)
    assert float(found) == pytest.approx(float(wanted), rel=1e-2)


def test_losses_with_maps_may_be_used_again():
    losses = DistillationLoss(("hidden",), layer_map=[("0", "0")], project=True)
    data = (normal(32, 4), torch.zeros(32, dtype=torch.long))
    a, b = (
        distill(net(1, (4, 20, 3)), lambda s: mlp((4, 8, 3)), data, losses=losses, config=TrainConfig(steps=5)).module
        for _ in range(2)
    )
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters()))
