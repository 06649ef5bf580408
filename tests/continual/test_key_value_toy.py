import pytest

from etude.continual.key_value_toy import SIDE, learn_toy


def test_the_bottleneck_keeps_what_a_linear_head_loses() -> None:
    found = {name: learn_toy(name, (0,), steps=120)[0] for name in ("bottleneck", "linear", "untrained")}
    assert found["bottleneck"].class_accuracy > 0.9
    assert found["linear"].class_accuracy < 0.6 and found["untrained"].class_accuracy < 0.5
    assert len(found["bottleneck"].regions) == 4 and len(found["bottleneck"].regions[0]) == SIDE**2
    # the region of class 0 is still there after the last task
    corner = round(0.25 * SIDE) * SIDE + round(0.25 * SIDE)
    assert found["bottleneck"].regions[0][corner] == found["bottleneck"].regions[3][corner] == 0


def test_unknown_learners_are_named() -> None:
    with pytest.raises(ValueError, match="unknown learner 'tree'"):
        learn_toy("tree", (0,))
