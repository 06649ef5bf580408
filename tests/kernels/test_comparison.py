"""What the comparisons measure, on cases where the answer is known."""

import numpy as np
import pytest
import torch

from etude.data import Split, Task, dirichlet_on_sphere, load_images
from etude.kernels import (
    DeepKernelClassifier,
    SphereRules,
    compare_on_rows,
    comparison,
    dual_activation,
    kernel_profile,
)

PAIR = ([3, 1, 2], [1, 2, 2])


@pytest.fixture(scope="module")
def rules():
    return SphereRules(2)


def test_the_bayes_rule_has_no_regret_and_its_opposite_has_all_of_it():
    drawn = dirichlet_on_sphere(400, PAIR, 0.4, 0)
    assert comparison.regret(drawn.bayes, drawn) == 0
    expected = float((2 * drawn.posterior.max(1).values - 1).mean())
    assert comparison.regret(1 - drawn.bayes, drawn) == pytest.approx(expected)


def test_regret_is_the_excess_error_in_expectation():
    drawn = dirichlet_on_sphere(60_000, PAIR, 0.4, 1)
    always = torch.zeros(drawn.n, dtype=torch.long)
    excess = comparison.agreement(drawn.bayes, drawn.y) - comparison.agreement(always, drawn.y)
    assert comparison.regret(always, drawn) == pytest.approx(excess, abs=0.01)


def test_rules_predict_what_they_are_named_after(rules):
    drawn = dirichlet_on_sphere(300, PAIR, 0.4, 0)
    found = rules.predictions(drawn.take(slice(0, 200)), drawn.x[200:])
    assert set(found) == {"optimal", "erf", "sin", "nearest", "square", "hilbert", "majority"}
    assert comparison.agreement(found["square"], found["nearest"]) == 1
    assert comparison.agreement(found["optimal"], found["hilbert"]) > 0.98
    assert found["majority"].unique().tolist() == [int(drawn.y[:200].double().mean() > 0.5)]


def test_learning_curves(rules):
    drawn = dirichlet_on_sphere(700, PAIR, 0.4, 0)
    scores = list(comparison.learning_curves(rules, drawn, (50, 200, 400), 200))
    table = {(s.arm, s.metric, s.step): s.value for s in scores}
    assert len(table) == len(scores)
    assert table["majority", "slope", None] == 0
    assert table["nearest", "disagreement_nearest", None] == 0
    curve = [table["optimal", "regret", n] for n in (50, 200, 400)]
    assert table["optimal", "slope", None] == pytest.approx(np.polyfit(np.log([50, 200, 400]), np.log(curve), 1)[0])
    assert 0.5 < table["optimal", "accuracy", None] < 1


def test_a_rectifier_net_turns_into_the_majority(rules):
    drawn = dirichlet_on_sphere(400, ([3, 1, 2, 1, 1], [1, 2, 2, 2, 3]), 0.4, 0)
    layers = {"shallow": 2, "deep": 1000}
    scores = comparison.rectifier_majority(SphereRules(4), drawn, layers, counts=(15, 35), n_test=50)
    found = {s.arm: s.value for s in scores}
    assert found["deep"] > 0.98
    assert found["shallow"] < 0.85
    assert found["optimal"] < 0.85


def test_unbalanced_takes_as_many_as_it_says():
    labels = torch.tensor([0, 1, 1, 0, 1, 1])
    assert comparison.unbalanced(labels, (1, 3)).tolist() == [0, 1, 2, 4]
    with pytest.raises(ValueError, match=r"there are \[2, 4\] rows of the classes, \[3, 1\] were asked for"):
        comparison.unbalanced(labels, (3, 1))


def test_regression_dies_with_depth():
    true, shuffled = comparison.regression_by_depth(dual_activation("optimal", 4), 150, 4, (1, 60), 0, ridge=1e-6)
    assert true[1] > 0.98
    assert true[60] < 0
    assert shuffled[1] < true[1] - 0.5


def test_r_squared():
    y = torch.tensor([0.0, 1.0, 2.0])
    assert comparison.r_squared(y, y) == 1
    assert comparison.r_squared(torch.ones(3), y) == 0


def test_profile_gives_the_order():
    assert kernel_profile(dual_activation("optimal", 4), np.logspace(-4, -2, 30)).order == pytest.approx(4, rel=1e-3)
    assert kernel_profile(dual_activation("erf"), np.logspace(-4, -2, 30)).order == pytest.approx(0.888, rel=1e-2)


@pytest.mark.parametrize("lift", [False, True])
def test_real_rows(lift):
    task = load_images("digits").task(0, (300, 0, 200))
    found = compare_on_rows(task, lift=lift, depths={"one": 1}, ridges=(1e-6, 1e-1))
    assert set(found) == {"optimal", "erf", "one", "nearest", "hilbert", "majority"}
    assert found["majority"] < 0.2
    assert min(found["optimal"], found["nearest"], found["one"]) > 0.85


def test_names_of_classes_survive_on_real_rows():
    x = torch.eye(4, dtype=torch.float32)
    task = Task("t", "table", Split(x, torch.tensor([3, 3, 7, 7])), None, Split(x, torch.tensor([3, 3, 7, 7])), 2)
    found = compare_on_rows(task, lift=True, depths={}, ridges=())
    assert found["optimal"] == found["nearest"] == 1
    assert found["majority"] == 0.5


def test_a_finite_net_gets_a_dimension_and_a_ridge_of_its_own():
    """Leave-one-out by refitting, as for the infinite net; a finite net with that net's dimension is worse here."""
    task = load_images("digits").task(0, (60, 0, 0))
    X, y = task.train.x.flatten(1).numpy(), task.train.y.numpy()
    net = DeepKernelClassifier("optimal").fit(X, y)
    ridges = (1e-6, 1e-1)

    def left_out(dim, ridge):
        one = DeepKernelClassifier(dim=dim, depth=1, ridge=ridge)
        return sum(one.fit(np.delete(X, i, 0), np.delete(y, i)).predict(X[i : i + 1])[0] == y[i] for i in range(len(X)))

    found = comparison.finite_net(net, 1, ridges)
    scores = {(d, r): left_out(d, r) for d in net.candidate_dims() for r in ridges}
    assert (found.dim, found.ridge) == max(scores, key=scores.get)
    assert scores[found.dim, found.ridge] > scores[net.dim_, 1e-6]
