"""Guidance as a loss of the engine: seeds, evaluation, saving, processes."""

import pickle

import pytest
import torch
from torch.nn import functional as F

from etude.data.randomness import seeded_build, stream
from etude.data.tasks import Split
from etude.errors import UsageError
from etude.layers import mlp
from etude.training import TrainConfig, cka, guided_loss, train


def made(build, seed=0):
    return seeded_build(build, stream(seed, "init"))


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=stream(seed, "x"))


def ce(model, batch):
    return F.cross_entropy(model(batch.x), batch.y)


@pytest.fixture
def guide():
    return made(lambda: mlp((6, 9, 7, 3)), 1)


def test_guided_training_makes_layers_alike_and_unguided_does_not(guide):
    x = normal(128, 6)
    data = (x, (x[:, 0] > 0).long())

    ends = {}
    for name, loss in (("plain", ce), ("guided", guided_loss(ce, guide))):
        (done,) = train(lambda s: mlp((6, 12, 12, 3)), data, loss=loss, config=TrainConfig(steps=60, lr=1e-2))
        ends[name] = float(cka(done.module[0](x), guide[0](x)).detach())
    assert ends["guided"] > ends["plain"] + 0.02
    report = loss.guidance_of(done.module).report()
    assert report.similarity[-1].mean() > report.similarity[0].mean()
    assert ((report.share > 0) & (report.share < 1)).all()


def test_seeds_have_guides_of_their_own_and_evaluation_is_the_task_alone():
    guides = [made(lambda: mlp((6, 9, 3)), s) for s in (5, 6)]
    given = []

    def guide_of(net):
        given.append(guides[len(given)])
        return given[-1]

    x = normal(32, 6)
    loss = guided_loss(ce, guide_of)
    data = (x, torch.arange(32) % 3)
    both = train(
        lambda s: mlp((6, 8, 3)),
        data,
        loss=loss,
        config=TrainConfig(steps=3),
        seeds=(0, 1),
        val=data,
        plan="sequential",
    )
    assert len(given) == 2
    with torch.no_grad():
        assert set(loss(both[0].module.eval(), Split(*data))) == {"task"}
    with pytest.raises(ValueError, match="sequential"):
        loss(lambda x: x, None)


def test_a_guided_net_can_be_saved_and_processes_are_refused_with_a_remedy(guide):
    guided, rows = guided_loss(ce, guide), (normal(40, 6), torch.arange(40) % 3)
    build = lambda s: mlp((6, 8, 3))
    (done,) = train(build, rows, loss=guided, config=TrainConfig(steps=2, batch_size=20), plan="sequential")
    assert torch.equal(pickle.loads(pickle.dumps(done.module))(rows[0]), done.module(rows[0]))
    guided.guidance_of(done.module).remove()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in done.module.modules())
    with pytest.raises(UsageError, match="train with plan='sequential'"):
        train(build, rows, loss=guided, config=TrainConfig(steps=2, batch_size=20), seeds=(0, 1), plan="processes")
