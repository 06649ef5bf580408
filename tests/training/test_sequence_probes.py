import pytest
import torch

from etude.data.randomness import stream
from etude.training.sequence_probes import probe_sequences


def states(n=600, positions=4, width=3):
    return torch.randn(n, positions, width, generator=stream(0, "states"))


def test_scores_find_the_position_that_holds_the_target():
    h = states()
    y = h[:, 1] @ torch.tensor([[1.0, 0.0], [2.0, 1.0], [0.0, -1.0]])
    table = probe_sequences({"all": h, "last": h[:, -1:]}, y, steps=400, lr=0.05)
    assert table["all"]["error"] < 0.02 and table["all"]["score"] > 0.98
    assert table["all"]["weights"][1] > 0.9 and sum(table["all"]["weights"]) == pytest.approx(1)
    assert table["last"]["error"] > 0.9
    assert table.best(by="error")["layer"] == "all"


def test_targets_may_be_numpy():
    h = states(n=50)
    found, wanted = (probe_sequences({"a": h}, y, steps=5)["a"] for y in (h[:, 0].double().numpy(), h[:, 0]))
    assert found == wanted


def test_a_net_of_two_layers_reads_what_a_line_cannot():
    h = states(positions=1)
    y = h[:, 0, 0] * h[:, 0, 1]
    line, net, again = (
        probe_sequences({"a": h}, y, hidden_size=size, steps=150, lr=0.03)["a"]["error"] for size in (None, 32, 32)
    )
    assert net < 0.3 < 0.8 < line
    assert again == net


@pytest.mark.parametrize(
    ("features", "text"),
    [
        ({}, "no layers"),
        ({"a": torch.zeros(5, 2)}, "'a' must be finite"),
        ({"a": torch.zeros(4, 1, 2)}, "'a' must be finite"),
        ({"a": torch.full((5, 1, 2), torch.nan)}, "'a' must be finite"),
    ],
)
def test_refusals(features, text):
    with pytest.raises(ValueError, match=text):
        probe_sequences(features, torch.zeros(5))
