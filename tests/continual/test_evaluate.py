import numpy as np
import pytest
import torch
from torch import nn

from etude.continual.evaluate import StreamResult, evaluate_stream
from etude.data.streams import Segment, class_stream
from etude.data.tasks import Split, Task


def stream_of(classes: int = 4, rows: int = 5) -> list[Segment]:
    y = torch.arange(classes).repeat_interleave(rows)
    task = Task("toy", "table", Split(y.float()[:, None], y), None, Split(y.float()[:, None], y), classes)
    return class_stream(task, 1, seed=0, order=range(classes))


class LastClass:
    """Remembers one class: what it was taught last."""

    label = 0

    def learn(self, segment: Segment) -> None:
        self.label = segment.classes[0]

    def predict(self, x: torch.Tensor) -> np.ndarray:
        return np.full(len(x), self.label)


def test_a_learner_that_forgets_everything() -> None:
    learner = LastClass()
    found = evaluate_stream(learner, stream_of(), learn=learner.learn)
    assert np.array_equal(found.R, np.eye(4)) and np.array_equal(found.by_class, np.eye(4))
    assert found.average == found.class_average == 0.25
    assert found.learned == 1.0 and found.forgetting == 1.0 and found.bwt == -1.0


def test_a_learner_that_forgets_nothing() -> None:
    known: set[int] = set()
    found = evaluate_stream(
        lambda x: torch.tensor([v if v in known else -1 for v in x[:, 0].int().tolist()]).clamp_min(0),
        stream_of(),
        learn=lambda s: known.update(s.classes),
    )
    assert np.array_equal(np.tril(found.R), np.tril(np.ones((4, 4))))
    assert found.average == 1.0 and found.forgetting == 0.0 and found.bwt == 0.0


def test_measures_of_a_given_matrix() -> None:
    R = np.array([[0.9, 0.1, 0.0], [0.5, 0.8, 0.2], [0.6, 0.2, 0.7]])
    found = StreamResult(R, R)
    assert found.average == pytest.approx(0.5) and found.learned == pytest.approx(0.8)
    assert found.forgetting == pytest.approx((0.3 + 0.6) / 2) and found.bwt == pytest.approx((-0.3 - 0.6) / 2)


def test_unequal_classes_and_one_predictor_a_segment() -> None:
    y = torch.tensor([0, 0, 0, 1])
    task = Task("toy", "table", Split(torch.zeros(4, 1), y), None, Split(torch.zeros(4, 1), y), 3)
    segments = class_stream(task, (2,), seed=0, order=(0, 1))
    found = evaluate_stream([lambda x: torch.zeros(len(x), dtype=torch.long)], segments)
    assert found.average == 0.75 and found.class_average == 0.5 and np.isnan(found.by_class[0, 2])
    with pytest.raises(ValueError, match=r"one predictor a segment \(1\)"):
        evaluate_stream([len, len], segments)


def test_without_learning_only_the_end_is_known() -> None:
    found = evaluate_stream(lambda x: x[:, 0].long(), stream_of())
    assert found.R.shape == (1, 4) and found.average == 1.0
    with pytest.raises(ValueError, match="learn"):
        _ = found.forgetting


class Draws(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.drop = nn.BatchNorm1d(1), nn.Dropout(0.5)
        self.norm.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        noise = torch.rand(len(x), 4)  # a predictor that draws
        return self.drop(self.norm(x)) * 0 + noise


def test_evaluating_changes_nothing() -> None:
    net = Draws()
    before = {n: t.clone() for n, t in net.state_dict().items()}
    state = torch.get_rng_state()
    a, b = (evaluate_stream(net, stream_of()) for _ in range(2))
    assert np.array_equal(a.R, b.R)
    assert torch.equal(state, torch.get_rng_state())
    assert net.training and net.drop.training and not net.norm.training
    assert all(torch.equal(before[n], t) for n, t in net.state_dict().items())


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match="no segments"):
        evaluate_stream(len, [])
    with pytest.raises(ValueError, match="NaN"):
        evaluate_stream(lambda x: torch.full((len(x), 4), torch.nan), stream_of())


@pytest.mark.parametrize("say", [lambda n: torch.rand(n, 1), lambda n: np.ones((n, 1), dtype=np.int64)])
def test_one_column_is_neither_labels_nor_scores_of_several_classes(say) -> None:
    with pytest.raises(ValueError, match=r"shape \(5, 1\) score one of 4 classes"):
        evaluate_stream(lambda x: say(len(x)), stream_of())


def test_a_head_of_one_class_scores_it_in_one_column() -> None:
    y = torch.arange(3).repeat_interleave(5)
    task = Task("toy", "table", Split(y.float()[:, None], y), None, Split(y.float()[:, None], y), 3)
    segments = class_stream(task, 1, seed=0, relabel=True)
    assert evaluate_stream(lambda x: torch.rand(len(x), 1), segments).average == 1.0


def test_words_are_no_class_numbers() -> None:
    with pytest.raises(ValueError, match="must be class numbers or scores, got <U1"):
        evaluate_stream(lambda x: np.array(["a"] * len(x)), stream_of())
