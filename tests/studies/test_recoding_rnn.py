"""The study at the quick tier: the signal falls, random steps do not lower it, every claim is measured."""

import json

import numpy as np
import pytest
import torch

from etude.data import TextDataset
from etude.lab.registry import study
from etude.lab.runner import run_study
from etude.lab.study import Job, Results
from etude.studies import _recoding_nets as nets
from etude.studies import _recoding_problems as problems
from etude.studies.recoding_rnn import RecodingConfig


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    return run_study("recoding-rnn", ledger=tmp_path_factory.mktemp("ledger") / "l.sqlite", jobs=1)


def values(result, arm, metric):
    rows = [r for r in result.rows if (r["arm"], r["metric"]) == (arm, metric) and r["step"] is None]
    assert len(rows) == 3
    return np.array([r["value"] for r in sorted(rows, key=lambda r: r["seed"])])


def test_every_claim_is_measured(result):
    assert result.errors == []
    verdicts = {v.claim: v for v in result.verdicts}
    assert set(verdicts) == {"R1", "R1b", "R2", "R3", "R3b", "R3c", "R4", "R4b", "R4c", "R5", "R6"}
    assert verdicts["R1b"].verdict == "holds" and verdicts["R6"].verdict == "holds"


def test_steps_lower_the_signal_and_random_ones_do_not(result):
    for alpha in ("001", "01", "1"):
        assert values(result, f"nll_gold_alpha_{alpha}", "share_of_steps_lowered").min() > 95
        assert (values(result, f"nll_gold_alpha_{alpha}", "signal_change") < 0).all()
    random = values(result, "random_direction_alpha_01", "share_of_steps_lowered")
    assert random.min() > 30 and random.max() < 70


def test_larger_steps_move_more_and_the_net_without_them_is_itself(result):
    small, large = (values(result, f"nll_gold_alpha_{a}", "signal_change") for a in ("001", "1"))
    assert (large < 10 * small).all()
    assert (values(result, "trained_with_tested_without", "perplexity_change") == 0).all()
    assert (values(result, "entropy_alpha_1", "confidence_on_errors")
            > values(result, "plain", "confidence_on_errors")).all()  # fmt: skip


def test_plots_are_drawn(result):
    the_study = study("recoding-rnn")
    artifact = {"protocol": "topics", "arm": "nll_gold_alpha_1", "seed": 1000, "name": "sentence"}
    plots = the_study.plots(Results(result.rows, [artifact | {"value": [["a", "b"], [1.0, 2.0], [1.0, 1.5]]}]))
    assert {p.name for p in plots} == {
        "signal", "step-size", "two-by-two", "sentence", "later-nll", "garden-path-nll"
    }  # fmt: skip
    assert all(json.dumps(p.spec) for p in plots)


def test_the_thesis_settings_and_the_users_documents_run():
    the_study = study("recoding-rnn")
    config = the_study.configs["quick"].model_copy(update={"train_tokens": 600, "twin_tokens": 400, "test_steps": 8})
    texts = TextDataset([f"the word {i % 7} of sentence {i % 11} is here" for i in range(200)])
    task = the_study.user_task(texts, config)
    assert len(task.test) == config.test_rows * 8 + 1
    for arm in ("grid_ensemble", "grid_mc_dropout"):
        found = list(the_study.measure(Job("trained", arm, (1,), config, task)))
        assert {m.arm for m in found} <= set(the_study.arms)
        assert {m.metric for m in found if m.arm == arm} >= {"perplexity", "perplexity_change", "signal_change"}


def test_the_thesis_settings_reach_the_training(monkeypatch):
    """The ensemble is pulled to its anchors, the net of dropped masks decays."""
    from etude.studies import _recoding_measures as measures
    from etude.studies._recoding_arms import GRID

    asked = []
    monkeypatch.setattr(measures, "train", lambda *_, **options: asked.append(options) or [])
    the_study = study("recoding-rnn")
    config = the_study.configs["quick"]
    task = problems.Corpus(torch.arange(90), torch.arange(90), 90, ())
    for arm in ("grid_nll", "grid_mc_dropout", "grid_ensemble"):
        measures.trained(Job("trained", arm, (1,), config, task), 90, **GRID[arm])
    plain, decayed, pulled = asked
    assert plain["penalty"] is decayed["penalty"] is None
    assert (plain["config"].weight_decay, decayed["config"].weight_decay) == (0.0, 4.8e-5)
    lm = nets.language_model(90, config, **GRID["grid_ensemble"])
    assert pulled["penalty"](lm) == lm.recoder.decoder.penalty(90) > 0


def test_settings_that_cannot_be_are_refused_by_name():
    with pytest.raises(ValueError, match="dropout"):
        RecodingConfig(dropout=1)


@pytest.mark.parametrize(("documents", "words", "part"), [(8, 50, "test"), (12, 4, "test"), (12, 1, "training")])
def test_too_few_documents_are_refused_by_name(documents, words, part):
    the_study = study("recoding-rnn")
    config = the_study.configs["quick"].model_copy(update={"batch_size": 32})
    with pytest.raises(ValueError, match=rf"{part} text needs more than \d+ words.*every tenth document"):
        the_study.user_task(TextDataset(["word " * words] * documents), config)


def test_windows_cover_the_stream_in_order():
    ids = torch.arange(41)
    parts = problems.windows(ids, 4, 3, 5)
    x = torch.cat([w.ids for w in parts], 1)
    assert torch.equal(x, torch.cat([ids[5:], ids[:5]])[:40].view(4, 10))
    assert torch.equal(torch.cat([w.targets for w in parts], 1)[:, :-1], x[:, 1:])
    assert [w.first for w in parts] == [True, False, False, False]


def test_recovery_is_the_last_step_above_the_floor():
    floor = torch.zeros(6)
    assert problems.steps_to_recover(torch.tensor([9.0, 9.0, 1.0, 0.1, 0.5, 0.1]), floor, 1) == 3
    assert problems.steps_to_recover(torch.zeros(6), floor, 1) == 0
