import numpy as np
import pytest
import torch
from torch import nn

from etude.data.randomness import fork_global, stream
from etude.incontext.curves import Curve
from etude.incontext.sequence_model import SequenceModel


def build(**options):
    with fork_global(stream(0, "init")):
        return SequenceModel(**{"in_dim": 3, "num_layers": 2, "hidden_dim": 16, "max_points": 9, **options}).eval()


def pairs(n=6, m=4):
    g = stream(0, "pairs")
    return torch.randn(2, n, 3, generator=g), torch.randn(2, n, generator=g), torch.randn(2, m, 3, generator=g)


CAUSAL = [
    {"layout": layout, **more}
    for layout in ("interleaved", "shifted")
    for more in (
        {},
        {"mixer": "gru"},
        {"mixer": "lstm"},
        {"position": "rope"},
        {"position": "sinusoidal"},
        {"position": "none"},
    )
] + [{"shared_slot": True}]


@pytest.mark.parametrize("options", CAUSAL, ids=str)
def test_a_prediction_reads_earlier_pairs_and_its_own_x_only(options):
    model, (x, y, _) = build(**options), pairs()
    out = model(x, y)
    assert out.shape == (2, 6)
    torch.testing.assert_close(model(x, y[:, :5]), out)
    later_x, later_y = x.clone(), y.clone()
    later_x[:, 4:], later_y[:, 3:] = 7.0, 7.0
    moved = (model(later_x, later_y) - out).abs().amax(0)
    assert moved[:4].max() < 1e-5 and moved[4] > 1e-5
    own = y.clone()
    own[:, 2] += 1.0
    moved = (model(x, own) - out).abs().amax(0)
    assert moved[:3].max() < 1e-5 and moved[3] > 1e-5


@pytest.mark.parametrize("options", CAUSAL, ids=str)
def test_queries_behind_one_prefix_equal_one_prompt_a_query(options):
    model, (x, y, xq) = build(**options), pairs()
    side_by_side = model.predict(x, y, xq)
    for j in range(4):
        alone = model(torch.cat([x, xq[:, j : j + 1]], 1), y)[:, -1]
        torch.testing.assert_close(side_by_side[:, j], alone, atol=1e-5, rtol=1e-4)
    assert model.predict(x[:, :0], y[:, :0], xq).shape == (2, 4)


@pytest.mark.parametrize("layout", ["paired", "aligned"])
def test_context_and_queries(layout):
    model, (x, y, xq) = build(layout=layout), pairs()
    out = model(torch.cat([x, xq], 1), y)
    assert out.shape == (2, 4)
    torch.testing.assert_close(model.predict(x, y, xq), out)
    torch.testing.assert_close(model.predict(x, y, xq[:, 1:2])[:, 0], out[:, 1], atol=1e-6, rtol=1e-5)
    swapped = model.predict(x[:, [1, 0, 2, 3, 4, 5]], y[:, [1, 0, 2, 3, 4, 5]], xq)
    same = torch.allclose(swapped, out, atol=1e-6)
    assert same == (layout == "aligned")
    empty = model.predict(x[:, :0], y[:, :0], xq)
    assert empty.shape == (2, 4) and empty.isfinite().all()


@pytest.mark.parametrize("mixer", ["gru", "lstm"])
def test_a_recurrent_mixer_answers_several_queries_of_context_and_query(mixer):
    model, (x, y, xq) = build(layout="paired", mixer=mixer), pairs()
    side_by_side = model.predict(x, y, xq)
    for j in range(4):
        torch.testing.assert_close(side_by_side[:, j], model(torch.cat([x, xq[:, j : j + 1]], 1), y)[:, 0])


def test_class_labels_and_own_mixers():
    model = build(out_dim=5, layout="shifted")
    x, _, _ = pairs()
    labels = nn.functional.one_hot(torch.arange(12).reshape(2, 6) % 5, 5)
    assert model(x, labels).shape == (2, 6, 5) and model.predict(x[:, :5], labels[:, :5], x).shape == (2, 6, 5)

    class Mean(nn.Module):
        def forward(self, h):
            return h.cumsum(1) / torch.arange(1, h.shape[1] + 1)[:, None]

    model, (x, y, xq) = build(mixer=lambda dim: Mean()), pairs()
    torch.testing.assert_close(
        model.predict(x, y, xq)[:, 2], model(torch.cat([x, xq[:, 2:3]], 1), y)[:, -1], atol=1e-5, rtol=1e-4
    )


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"layout": "stacked"}, "layout must be one of"),
        ({"in_dim": 0}, "positive"),
        ({"layout": "aligned", "mixer": "gru"}, "needs attention"),
        ({"mixer": "mamba"}, "unknown mixer 'mamba'"),
        ({"position": "alibi"}, "position must be"),
        ({"shared_slot": True, "out_dim": 4}, "shared_slot"),
        ({"hidden_dim": 10}, "not a multiple"),
    ],
)
def test_settings_that_do_not_fit(options, text):
    with pytest.raises(ValueError, match=text):
        build(**options)


def test_data_that_do_not_fit():
    model, (x, y, _) = build(), pairs()
    for bad_x, bad_y, text in [
        (x[..., :2], y, r"x must be \(B, n, 3\)"),
        (x, y[:1], "y must be"),
        (x, y[:, :3], "6 inputs and 3 labels"),
        (torch.zeros(1, 10, 3), torch.zeros(1, 10), "longer than max_points=9"),
    ]:
        with pytest.raises(ValueError, match=text):
            model(bad_x, bad_y)


@pytest.mark.parametrize("options", [{}, {"mixer": "gru"}, {"layout": "shifted"}, {"layout": "paired"}], ids=str)
def test_queries_that_do_not_fit(options):
    model, (x, y, xq) = build(**options), pairs()
    for bad_y, bad_q, text in [
        (y, xq[..., :2], r"Xq must be \(2, m, 3\)"),
        (y, xq[:1], r"Xq must be \(2, m, 3\)"),
        (y, xq[:, 0], "Xq must be"),
        (y[:, :5], xq, "6 inputs and 5 labels"),
    ]:
        with pytest.raises(ValueError, match=text):
            model.predict(x, bad_y, bad_q)


def test_learned_positions_without_a_place_for_the_query():
    (x, y, xq), full = pairs(n=9), build(max_points=10)
    with pytest.raises(ValueError, match="no place for a query: build the model with max_points=10"):
        build().predict(x, y, xq)
    assert full.predict(x, y, xq).shape == build(position="none").predict(x, y, xq).shape == (2, 4)


def test_curve():
    curve = Curve([1, 2], [[0.0, 1.0], [2.0, 3.0], [4.0, 2.0]])
    np.testing.assert_allclose(curve.mean, [2.0, 2.0])
    low, high = curve.ci
    np.testing.assert_allclose(high[0] - 2.0, 4.302653 * 2 / np.sqrt(3), rtol=1e-5)
    assert curve.to_rows(arm="a")[1] == {"arm": "a", "position": 2, "value": 2.0, "low": low[1], "high": high[1]}
    assert np.isinf(Curve([1], [[1.0]]).ci).all()
    with pytest.raises(ValueError, match="one column a position"):
        Curve([1, 2, 3], [[1.0, 2.0]])
    for level in (0.0, 1.0, 95):
        with pytest.raises(ValueError, match=f"level must lie between 0 and 1, got {level}"):
            curve.interval(level)


@pytest.mark.parametrize("options", [*CAUSAL, {"layout": "paired"}, {"layout": "aligned"}], ids=str)
def test_no_prompts_give_no_predictions(options):
    model = build(**options)
    assert model.predict(torch.zeros(0, 4, 3), torch.zeros(0, 4), torch.zeros(0, 2, 3)).shape == (0, 2)
