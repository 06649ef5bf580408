"""Problems: batches and tests belong to the same task, by seed; text windows; bad input."""

import pytest
import torch

from etude.data import load_images
from etude.data.randomness import stream
from etude.data.sequence_problems import (
    adding_problem,
    copy_problem,
    image_pixels,
    image_rows,
    next_characters,
    recall_problem,
    temporal_order_problem,
    two_sided_problem,
)


def test_recall_draws_one_delay_a_batch_and_tests_by_name():
    problem = recall_problem(8, (2, 5), {3: "", 9: "_far", 4: None}, 16)
    generator = stream(0, "data")
    widths = set()
    for step in range(30):
        batch = problem.data.draw(generator, step)
        widths.add(batch.x.shape[1] - 2)
        assert torch.equal(batch.y[:, -1], batch.x[:, 0]) and int(batch.x.max()) < problem.num_inputs
    assert widths == {2, 3, 4, 5}
    tests = problem.tests(1)
    assert [(t.delay, t.name, len(t.rows.x)) for t in tests] == [(3, "", 16), (4, None, 16), (9, "_far", 16)]
    assert torch.equal(tests[2].rows.x, recall_problem(8, (2, 5), {9: ""}, 16).tests(1)[0].rows.x)
    assert not torch.equal(tests[0].rows.x, problem.tests(2)[0].rows.x)


def test_two_sided_and_copy():
    pair = two_sided_problem(8, 12, 16)
    assert (pair.num_inputs, pair.num_outputs) == (2, 4) and pair.data.draw(stream(0, "d"), 0).x.shape == (8, 12)
    assert two_sided_problem(8, 12, 16, label="xor").num_outputs == 2
    copy = copy_problem(8, (3, 6), 16)
    batch = copy.data.draw(stream(0, "d"), 0)
    assert torch.equal(batch.x, batch.y) and 3 <= batch.x.shape[1] <= 6
    (test,) = copy.tests(0)
    assert test.delay == 4 and test.rows.x.shape == (16, 4)


def test_image_rows():
    images = load_images("digits")
    problem = image_rows(images)
    train, (test,) = problem.data(3), problem.tests(3)
    assert train.x.shape[1:] == (8, 8) and problem.num_inputs == 8 and problem.num_outputs == 10
    task = images.task(3)
    assert torch.equal(train.x[5], task.train.x[5, 0]) and torch.equal(train.y[:, -1], task.train.y)
    assert bool((train.y[:, :-1] == -100).all()) and torch.equal(test.rows.y[:, -1], task.test.y)


def test_next_characters():
    text = "abcab" * 60 + "z" * 40
    problem = next_characters([text[:150], text[150:]], length=10, test_share=0.2)
    assert problem.num_inputs == 4  # a, b, c and the line break between documents; z stands in the test part only
    assert torch.equal(problem.data.x[:, 1:], problem.data.y[:, :-1])
    (test,) = problem.tests(0)
    assert int(test.rows.x.max()) == 3 and test.rows.x.shape[1] == 10


def test_adding_and_temporal_order_draw_fresh_batches_and_test_by_seed():
    for problem, length, classes in ((adding_problem(8, 20, 16), 20, 1), (temporal_order_problem(8, 30, 16), 31, 4)):
        one, two = (problem.data.draw(stream(0, "data", i), i) for i in range(2))
        assert one.x.shape[:2] == one.y.shape == (8, length) and not torch.equal(one.x, two.x)
        (test,), (again,), (other,) = (problem.tests(seed) for seed in (1, 1, 2))
        assert torch.equal(test.rows.x, again.rows.x) and not torch.equal(test.rows.x, other.rows.x)
        assert problem.num_outputs == classes and len(test.rows.x) == 16


def test_image_pixels_are_those_of_the_rows_in_one_order_for_all():
    images = load_images("digits")
    rows, plain, mixed = image_rows(images), image_pixels(images, order=None), image_pixels(images)
    a, b, c = (p.data(3) for p in (rows, plain, mixed))
    assert torch.equal(a.x.flatten(1), b.x.flatten(1)) and b.x.shape[1:] == (64, 1)
    order = torch.randperm(64, generator=stream(0, "pixels"))
    assert torch.equal(c.x, b.x[:, order]) and torch.equal(c.y, b.y) and torch.equal(b.y[:, -1], a.y[:, -1])
    assert bool((b.y[:, :-1] == -100).all()) and plain.tests(3)[0].rows.x.shape[1:] == (64, 1)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: recall_problem(8, (5, 2), {3: ""}, 4), "delays"),
        (lambda: copy_problem(8, (0, 2), 4), "lengths"),
        (lambda: next_characters(["short"]), "longer text"),
        (lambda: next_characters(["x" * 2000], test_share=1.0), "test_share"),
    ],
)
def test_bad_input(call, match):
    with pytest.raises(ValueError, match=match):
        call()
