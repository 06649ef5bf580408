"""Two-stage fine-tuning, one student of many teachers, snapshots, and the gradient that the paper's argument needs."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from etude.data.randomness import seeded_build, stream
from etude.layers import mlp
from etude.training import (
    CatClassifier,
    CatRepresentation,
    MultiHead,
    Snapshots,
    TrainConfig,
    distill_representations,
    represent,
    train,
    two_stage_finetune,
    with_new_head,
)


def net(seed=0, sizes=(5, 16, 6, 3)):
    return seeded_build(lambda: mlp(sizes), stream(seed, "init"))


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=stream(seed, "x"))


def task(n=120):
    x = normal(n, 5)
    return x, (x[:, 0] > 0).long() + 2 * (x[:, 1] > 0).long()


def test_joined_heads_put_out_the_mean_of_the_logits():
    nets, x = [net(0), net(1), net(2)], normal(9, 5)
    mean = torch.stack([n(x) for n in nets]).mean(0)
    assert torch.allclose(CatClassifier(nets)(x), mean, atol=1e-6)
    assert CatClassifier(nets, 7)(x).abs().max() == 0
    with pytest.raises(ValueError, match="differ in their classes"):
        CatClassifier([net(0), net(1, (5, 16, 6, 4))])


def test_features_that_the_optimum_does_not_need_get_no_gradient():
    """Where the head on some features already is optimal, the loss has no slope towards copies of their span."""
    x = normal(400, 3).double()
    y = x @ torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    both = torch.cat([x, x @ normal(3, 4, seed=1).double()], 1)
    w = torch.cat(
        [torch.linalg.lstsq(x, y[:, None]).solution[:, 0], torch.zeros(4, dtype=torch.float64)]
    ).requires_grad_()
    ((both @ w - y) ** 2).mean().backward()
    assert w.grad.abs().max() < 1e-10


def test_a_ridge_spreads_its_weights_over_copies():
    x = normal(200, 1).double()
    copies = x.repeat(1, 4)
    w = torch.linalg.solve(copies.T @ copies + torch.eye(4, dtype=torch.float64), copies.T @ (2 * x[:, 0]))
    assert torch.allclose(w, w[0].expand(4), atol=1e-10)


def test_a_new_head_leaves_the_net_alone():
    old = net()
    made = with_new_head(old, 4)
    assert made(normal(2, 5)).shape == (2, 4)
    assert old(normal(2, 5)).shape == (2, 3)
    assert torch.equal(made[0].weight, old[0].weight)
    assert made[0].weight is not old[0].weight


def test_two_stages_tune_each_net_and_then_the_head():
    nets, data = [net(0), net(1)], task()
    before = [n[0].weight.clone() for n in nets]
    config = TrainConfig(steps=60, optimizer="sgd", momentum=0.9, lr=0.05)
    done = two_stage_finetune(nets, data, 4, config=config, second=TrainConfig(steps=5))
    again = two_stage_finetune(nets, data, 4, config=config, second=TrainConfig(steps=5))
    assert torch.equal(done.head.weight, again.head.weight)
    assert all(torch.equal(b, n[0].weight) for b, n in zip(before, nets))
    x, y = data
    with torch.no_grad():
        assert (done(x).argmax(1) == y).float().mean() > 0.8
    # the second stage moves the head only
    unmoved = two_stage_finetune(nets, data, 4, config=config, second=TrainConfig(steps=1, lr=0.0))
    assert torch.equal(done.body.nets[0][0].weight, unmoved.body.nets[0][0].weight)
    assert not torch.equal(done.head.weight, unmoved.head.weight)
    with torch.no_grad():
        mean = torch.stack([n(x) for n in unmoved.body.nets]).mean(0)
        assert torch.allclose(unmoved(x), mean, atol=1e-5)
    assert all(p.requires_grad for p in done.parameters())
    with pytest.raises(ValueError, match="no nets"):
        two_stage_finetune([], data, 4)


def test_length_by_epochs_where_the_configuration_has_none():
    done = two_stage_finetune([net(0)], task(64), 4, epochs=(2, 1))
    assert done.head.weight.shape == (4, 6)


def test_a_student_has_a_head_for_each_teacher_and_learns_all():
    teachers, x = [net(0), net(1)], normal(300, 5)
    labels = torch.zeros(300)
    student = distill_representations(
        teachers, lambda s: mlp((5, 32, 12, 3)), (x, labels), config=TrainConfig(steps=400, lr=5e-3), temperature=4.0
    )
    with torch.no_grad():
        out = student(x)
        assert out.shape == (300, 2, 3)
        for i, teacher in enumerate(teachers):
            assert (out[:, i].argmax(1) == teacher(x).argmax(1)).float().mean() > 0.9
    assert CatRepresentation([student.net]).fit(x).transform(x).shape == (300, 12)
    assert represent(student.net, x).shape == (300, 12)


def test_the_loss_is_a_sum_over_teachers_and_averaging_is_another_method():
    teachers, x = [net(0), net(1)], normal(50, 5)
    start = MultiHead(net(3), 2, 3)
    with torch.no_grad():
        heads = start(x)
        expected = sum(
            100 * F.kl_div((heads[:, i] / 10).log_softmax(-1), (t(x) / 10).softmax(-1), reduction="batchmean")
            for i, t in enumerate(teachers)
        )
    from etude.training import DistillationLoss, distillation_objective
    from etude.training.rich_finetuning import _Teachers

    losses = DistillationLoss({"logits": 2.0}, temperature=10.0)
    value = distillation_objective(_Teachers(teachers, False), losses)(start, (x, None))["logits"]
    assert float(value.detach()) == pytest.approx(float(expected), rel=1e-4)
    averaged = distill_representations(teachers, net(3), (x, x), heads="average", config=TrainConfig(steps=2))
    assert averaged(x).shape == (50, 1, 3)
    for bad, message in ((dict(nets=[]), "no teachers"), (dict(nets=teachers, heads="mean"), "heads must be")):
        with pytest.raises(ValueError, match=message):
            distill_representations(make_student=net(3), loader=(x, x), **bad)


def test_snapshots_are_copies_of_one_run():
    kept = Snapshots([2, 4, 6])
    (done,) = train(
        lambda s: mlp((5, 8, 4)), task(), loss=lambda m, b: F.cross_entropy(m(b.x), b.y),
        config=TrainConfig(steps=6, lr=1e-2), callbacks=[kept],
    )  # fmt: skip
    assert len(kept.nets) == 3
    assert torch.equal(kept.nets[2][0].weight, done.module[0].weight)
    assert not torch.equal(kept.nets[0][0].weight, kept.nets[1][0].weight)
    assert isinstance(kept.nets[0], nn.Module)
    with pytest.warns(UserWarning, match=r"after 2 updates: no snapshot of \[4, 9\]"):
        train(
            net(0), task(), loss=lambda m, b: F.cross_entropy(m(b.x), b.y % 3), config=TrainConfig(steps=2),
            callbacks=[Snapshots([9, 1, 4])],
        )  # fmt: skip
    for bad in ([], [0]):
        with pytest.raises(ValueError, match="updates to keep"):
            Snapshots(bad)


@pytest.mark.parametrize("plan", ["sequential", "stacked"])
def test_snapshots_of_two_seeds_are_refused(plan):
    with pytest.raises(ValueError, match="of seed 0: give seed 1|one seed at a time"):
        train(
            lambda s: mlp((5, 8, 4)), task(), loss=lambda m, b: F.cross_entropy(m(b.x), b.y), seeds=(0, 1), plan=plan,
            config=TrainConfig(steps=2), callbacks=[Snapshots([2])],
        )  # fmt: skip


def test_classes_are_read_off_the_labels_and_double_nets_stay_double():
    x, y = torch.randn(24, 4, generator=stream(0, "x")), torch.arange(24) % 3
    nets = [seeded_build(lambda: mlp((4, 6, 2)), stream(i, "net")) for i in range(2)]
    assert two_stage_finetune(nets, (x, y), epochs=(1, 1))(x).shape == (24, 3)
    double = [net.double() for net in nets]
    assert two_stage_finetune(double, (x.double(), y), 3, epochs=(1, 1))(x.double()).dtype == torch.float64


@pytest.mark.parametrize(("labels", "classes", "words"), [
    (torch.tensor([0, 1, 3, 1]), 3, r"label 3 lies outside 0\.\.2"), (torch.tensor([0, -1, 1, 1]), None, "label -1"),
    (torch.tensor([0.0, 1.0, 1.0, 0.0]), 2, "make them integers"), (None, 2, "no labels"),
    (torch.zeros(0, dtype=torch.long), None, "no labels"),
])  # fmt: skip
def test_labels_that_name_no_class_are_refused(labels, classes, words):
    with pytest.raises(ValueError, match=words):
        two_stage_finetune([net(0)], (normal(4, 5), labels), classes, epochs=(1, 1))


def test_rows_may_be_left_out_and_labels_may_be_probabilities():
    y = torch.tensor([0, 1, -100, 1])
    assert two_stage_finetune([net(0)], (normal(4, 5), y), epochs=(1, 1)).head.out_features == 2
    soft = normal(4, 3).softmax(1)
    assert two_stage_finetune([net(0)], (normal(4, 5), soft), 3, epochs=(1, 1)).head.out_features == 3


class Rows(torch.utils.data.Dataset):
    """Counts the rows that are drawn of it."""

    def __init__(self):
        (self.x, self.y), self.drawn = task(60), 0

    def __len__(self):
        return 60

    def __getitem__(self, i):
        self.drawn += 1
        return self.x[i], self.y[i]


def test_a_loader_is_drawn_anew_each_epoch_and_an_iterator_once():
    rows = Rows()
    loader = torch.utils.data.DataLoader(rows, batch_size=20, shuffle=True, generator=stream(0, "order"))
    two_stage_finetune([net(0)], loader, epochs=(3, 1))
    assert rows.drawn == 60 * (1 + 3 + 1)  # once for the labels
    assert two_stage_finetune([net(0)], iter([task(20)] * 2), epochs=(1, 1)).head.out_features == 4


def test_teachers_keep_the_mode_of_every_part_and_must_agree_in_their_classes():
    teacher = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)).train()
    teacher[1].eval()
    config = TrainConfig(steps=2)
    distill_representations([teacher], net(3), task(), config=config)
    assert [m.training for m in teacher] == [True, False, True]
    with pytest.raises(ValueError, match=r"teachers differ in what they put out: \[\(64, 3\), \(64, 4\)\]"):
        distill_representations([net(0), net(1, (5, 16, 6, 4))], net(3), task(), config=config)
