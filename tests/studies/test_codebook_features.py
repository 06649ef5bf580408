"""The study at the quick tier shows what it must and its controls lose; a user's texts run through the other half."""

import contextlib
import json

import numpy as np
import pytest
import torch

from etude.data import stream, token_machine
from etude.errors import UsageError
from etude.lab.jobs import UserData
from etude.lab.runner import configure, run_study
from etude.lab.study import Job, Results
from etude.studies._codebook_concepts import topic_rates
from etude.studies._codebook_nets import train_nets
from etude.studies.codebook_features import CodebookStudy
from etude.trust import CodeHit


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    return run_study("codebook-features", ledger=tmp_path_factory.mktemp("ledger") / "l.sqlite", jobs=1)


def mean(result, arm, metric):
    values = [r["value"] for r in result.rows if r["arm"] == arm and r["metric"] == metric]
    assert len(values) == 3
    return float(np.mean(values))


def test_every_claim_of_the_machine_is_measured(result):
    assert result.errors == []
    found = {v.claim: v for v in result.verdicts}
    assert {"C1", "C1k", "C2", "C3", "C4", "C4b"} <= set(found)
    assert all(found[c].n == 3 and found[c].control_mean is not None for c in ("C1", "C1k", "C2", "C3", "C4", "C4b"))


def test_the_plain_net_has_learned_the_machine_and_codes_carry_it_on(result):
    floor, plain = mean(result, "plain", "ce_floor"), mean(result, "plain", "test_ce")
    assert floor < plain < floor + 0.25
    assert mean(result, "plain", "legal_transitions") > 75
    for arm in ("codebook_k1", "codebook_k4"):
        assert mean(result, arm, "test_ce") < plain + 0.5


def test_controls_lose(result):
    for k in ("", "_k4"):
        assert mean(result, f"codes_shuffled{k}", "test_ce") > mean(result, "plain", "test_ce") + 1
        assert mean(result, f"codes_shuffled{k}", "legal_transitions") < 50
    assert (
        mean(result, "codebook_untrained", "share_bigram_pure") < mean(result, "codebook_k1", "share_bigram_pure") + 0.1
    )
    assert mean(result, "no_patch", "jsd_removed") == pytest.approx(0, abs=1e-9)
    assert mean(result, "codebook_k1", "jsd_removed") > mean(result, "codebook_k1", "jsd_removed_other_state") + 0.2


def test_plots_are_drawn(result):
    codes = {
        "protocol": "tokfsm",
        "arm": "codebook_k1",
        "seed": 1000,
        "name": "codes",
        "value": [{"row": 0, "text": "t"}],
    }
    plots = CodebookStudy().plots(Results(result.rows, [codes]))
    assert [p.name for p in plots] == ["loss", "purity", "forced", "codes"]
    assert all(p.caption and "$schema" in p.spec for p in plots)


@pytest.mark.parametrize(
    "wrong", [{"length": 1}, {"ks": [0]}, {"ks": [4]}, {"ks": [1, 2]}, {"num_codes": 3}, {"lr": -1}, {"num_states": 1},
              {"num_successors": 21}, {"hidden_dim": 34}],
)  # fmt: skip
def test_settings_that_cannot_run_are_refused(wrong):
    with pytest.raises(UsageError, match=f"setting {'ks' if 'num_codes' in wrong else next(iter(wrong))} = "):
        configure(CodebookStudy(), "quick", settings=wrong)


def test_texts_of_the_user(tmp_path):
    """Two words in turn: what comes next is the word before the last, which only attention can tell."""
    rng = np.random.default_rng(0)
    words = ["the", "river", "house", "May", "12", "said", "It", "June"]
    lines = [{"text": " ".join([*rng.choice(words, 2, replace=False)] * 15), "label": "ab"[i % 2]} for i in range(200)]
    (tmp_path / "t.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    result = run_study(
        "codebook-features", ledger=tmp_path / "l.sqlite", jobs=1, user=UserData(str(tmp_path / "t.jsonl")),
        settings={"text_steps": 200, "text_codes": 60, "text_vocab": 60, "batch_size": 16, "text_sizes": ((32, 1),)},
    )  # fmt: skip
    assert result.errors == []
    plain, shuffled = mean(result, "lm_plain", "small_lm_ce"), mean(result, "lm_codes_shuffled", "small_lm_ce")
    assert plain < 1
    assert plain - 0.1 < mean(result, "lm_codebook_k8", "small_lm_ce") < shuffled - 0.2
    for arm in ("lm_codebook_k8", "lm_plain", "lm_codebook_random_concept"):
        assert 0 <= mean(result, arm, "recall_at_precision_90") <= 1
    assert all(0 <= r["value"] <= 1 for r in result.rows if r["metric"].startswith("topic_rate"))
    assert {r["metric"] for r in result.rows} >= {"topic_rate", "topic_rate_unforced"}


def test_larger_codebooks_and_codebooks_from_the_start():
    small = {
        "num_states": 6, "num_successors": 2, "length": 3, "hidden_dim": 8, "steps": 2, "finetune_steps": 2, "test_rows": 20,
        "num_codes": 5, "many_codes": 9, "scratch": True, "batch_size": 4, "ks": (1, 4),
    }  # fmt: skip
    config = CodebookStudy.configs["quick"].model_copy(update=small)
    machines = {3: token_machine(6, 2, generator=stream(3, "machine"))}
    nets = train_nets(Job("tokfsm", "plain", (3,), config, None), machines)
    sizes = {arm: found[0].codebooks[0].quantizer for arm, found in nets.items() if arm != "plain"}
    assert {arm: (q.num_codes, q.k) for arm, q in sizes.items()} == {
        "codebook_k1": (5, 1), "codebook_k1_many": (9, 1), "codebook_k4": (5, 4), "codebook_k4_many": (9, 4),
        "codebook_scratch": (5, 1), "codebook_untrained": (5, 1),
    }  # fmt: skip
    assert set(nets) <= set(CodebookStudy.arms)
    assert int(sizes["codebook_scratch"].usage.sum()) == 2 * int(sizes["codebook_k1"].usage.sum())
    with pytest.raises(UsageError, match="k must be at most many_codes = 3"):
        configure(CodebookStudy(), "quick", settings={"many_codes": 3})


class Writer:
    """Writes 7 where code 7 is forced and 3 otherwise; codes of group 1 do nothing."""

    def __init__(self) -> None:
        self.model, self.code = self, 3

    @contextlib.contextmanager
    def force(self, codes, groups):
        ((self.code,),) = codes.values() if groups == [0] else ([3],)
        yield
        self.code = 3

    def generate(self, ids, count, generator):
        return torch.cat([ids, torch.full((len(ids), count), self.code)], 1)

    def decode(self, ids):
        return ["".join("," if i == 7 else "x" for i in row) for row in ids.tolist()]


def test_topics_are_counted_in_what_is_written_under_each_code():
    writer, begin = Writer(), torch.full((4, 2), 7)  # the prompt holds the concept, and does not count
    comma, stop = (CodeHit("h", group, code, 1.0, 1.0, 9) for group, code in ((0, 7), (1, 7)))
    found = topic_rates(writer, writer, begin, {"comma": comma, "full stop": stop}, 0)
    assert found == {"own": 0.5, "none": 0.0, "other": 0.0}
    assert topic_rates(writer, writer, begin, {"comma": comma}, 0) == {"own": 1.0, "none": 0.0}
