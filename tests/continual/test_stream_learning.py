import pytest
import torch
from torch import nn
from torch.nn import functional as F

from etude.continual.key_value import KeyValueBottleneck
from etude.continual.stream_learning import StreamRecorder, learn_key_values, learn_stream
from etude.data.gaussians import gaussian_stream
from etude.data.randomness import stream
from etude.data.streams import in_turn
from etude.training import TrainConfig, train


def run(model: nn.Module, predict, loss, **config) -> StreamRecorder:
    segments = gaussian_stream(0, per_class=20, test_per_class=20)
    recorder = StreamRecorder({7: segments}, 30, predict)
    options = {"steps": 120, "eval_every": 30, **config}
    train(model, lambda seed: in_turn(segments, 30), loss=loss, config=TrainConfig(**options), seeds=(7,),
          callbacks=(recorder,), plan="sequential")  # fmt: skip
    return recorder


def bottleneck() -> KeyValueBottleneck:
    kv = KeyValueBottleneck(2, 1, 100, 2, 8, projection="chunk", generator=stream(0, "init"))
    return kv.initialize_keys(torch.rand(2000, 2, generator=stream(0, "keys")), epochs=2).freeze_keys()


def test_plain_sgd_moves_fetched_cells_only() -> None:
    record = run(bottleneck(), lambda m, x: m.vote(x), lambda m, b: m.loss(b.x, b.y), optimizer="sgd", lr=1.0)
    record = record.records[7]
    assert record.change == 0.0
    assert len(record.by_class) == 4 and len(record.by_class[0]) == 8
    assert all(0 < share < 0.5 for share in record.touched)
    assert record.by_arrival[0][:2] == [record.by_class[0][0], record.by_class[0][4]]
    assert record.class_accuracy > 0.9 and sum(record.by_class[0]) < 3  # classes that have not come are not known


def test_adam_moves_cells_of_earlier_segments() -> None:
    record = run(bottleneck(), lambda m, x: m.vote(x), lambda m, b: m.loss(b.x, b.y), lr=0.1).records[7]
    assert record.change > 0


def test_a_linear_head_moves_everything() -> None:
    head = nn.Linear(2, 8)
    record = run(head, lambda m, x: m(x), lambda m, b: F.cross_entropy(m(b.x), b.y), optimizer="sgd", lr=1.0).records[7]
    assert record.change > 0.01 and record.touched == [0.25] * 4
    assert record.class_accuracy < 0.5


def test_learning_streams_of_several_seeds() -> None:
    segments = {s: gaussian_stream(s, per_class=20, test_per_class=20) for s in (3, 4)}
    options = {"loss": lambda m, b: m.loss(b.x, b.y), "predict": lambda m, x: m.vote(x)}
    config = TrainConfig(steps=30, batch_size=16, optimizer="sgd", lr=1.0)
    both = learn_stream(lambda seed: bottleneck(), segments, config=config, **options)
    alone = learn_stream(lambda seed: bottleneck(), {4: segments[4]}, config=config, **options)
    assert list(both) == [3, 4] and both[4].by_class == alone[4].by_class and both[3].by_class != both[4].by_class
    with pytest.raises(ValueError, match="one number of segments"):
        learn_stream(lambda seed: bottleneck(), segments | {5: segments[3][:2]}, config=config, **options)


def test_kept_cells_learn_what_embeddings_do() -> None:
    segments = {3: gaussian_stream(3, per_class=20, test_per_class=20)}
    config = TrainConfig(steps=30, batch_size=16, optimizer="sgd", lr=1.0)
    looked_up = learn_stream(lambda seed: bottleneck(), segments, loss=lambda m, b: m.loss(b.x, b.y),
                             predict=lambda m, x: m.vote(x), config=config)  # fmt: skip
    kv = bottleneck()
    kept = learn_key_values({3: kv}, segments, config=config)
    assert kept[3].by_class == looked_up[3].by_class and kept[3].touched == looked_up[3].touched
    assert kv.values.any()  # trained in place
    loose = KeyValueBottleneck(2, 1, 100, 2, 8, projection="chunk")
    with pytest.raises(ValueError, match="freeze_keys"):
        learn_key_values({3: loose}, segments, config=config)


def test_regions_of_a_plane_are_recorded() -> None:
    grid = torch.tensor([[0.25, 0.25], [0.75, 0.25]])
    config = TrainConfig(steps=200, optimizer="sgd", lr=5.0)
    record = learn_stream(lambda seed: bottleneck(), {0: gaussian_stream(0)}, loss=lambda m, b: m.loss(b.x, b.y),
                          predict=lambda m, x: m.vote(x), config=config, whole_segments=True, grid=grid)[0]  # fmt: skip
    assert [r[0] for r in record.regions] == [0, 0, 0, 0] and record.regions[-1][1] == 1


def test_other_points_of_the_curve_are_ignored() -> None:
    record = run(nn.Linear(2, 8), lambda m, x: m(x), lambda m, b: F.cross_entropy(m(b.x), b.y), eval_every=10)
    assert len(record.records[7].by_class) == 4 and record.records[7].class_accuracy == pytest.approx(
        sum(record.records[7].by_class[-1]) / 8
    )
