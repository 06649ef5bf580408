"""A run whose code has moved is confirmed by measuring a part of it again, or is not."""

from pathlib import Path

import pytest
import torch

from etude.errors import StudyError, UsageError
from etude.lab import digest
from etude.lab.confirm import confirm
from etude.lab.export import export, import_results
from etude.lab.ledger import Ledger
from etude.lab.runner import run_study
from etude.lab.verdicts import run_verdicts


@pytest.fixture
def ledger(tmp_path):
    return Ledger(tmp_path / "ledger.sqlite")


@pytest.fixture
def moved(toy, ledger, monkeypatch):
    """A finished run, and code that has moved since."""
    run = run_study(toy, ledger=ledger, jobs=1)
    real = digest.code_digest
    for name in ("registry.remembered_digest", "confirm.code_digest"):
        monkeypatch.setattr(f"etude.lab.{name}", lambda slug, tier=None: real(slug, tier)[::-1])
    assert all(v.stale for v in run_verdicts(ledger, ledger.run(run.run_id)))
    return run.run_id


def test_equal_numbers_confirm_the_run(toy, moved, ledger, tmp_path):
    found = confirm(toy, "quick", ledger=ledger, jobs=1)
    assert found.holds
    assert (found.jobs, found.equal, found.seeds) == (3, 3, (1000,))
    run = ledger.run(moved)
    assert not any(v.stale for v in run_verdicts(ledger, run))
    (entry,) = run["record"]["confirmed"]
    assert entry["code_digest"] == found.code != run["record"]["code_digest"]
    assert entry["environment"]["packages"]["torch"]
    confirm(toy, "quick", ledger=ledger, jobs=1, seeds=4)
    (entry,) = ledger.run(moved)["record"]["confirmed"]
    assert entry["jobs"] == 12
    export(ledger, tmp_path / "results")
    other = Ledger(tmp_path / "other.sqlite")
    assert import_results(other, tmp_path / "results") == (1, 0)
    assert not any(v.stale for v in run_verdicts(other, other.run(moved)))


def test_a_known_run_learns_of_its_confirmation(toy, moved, ledger, tmp_path):
    export(ledger, tmp_path / "before")
    other = Ledger(tmp_path / "other.sqlite")
    import_results(other, tmp_path / "before")
    confirm(toy, "quick", ledger=ledger, jobs=1)
    export(ledger, tmp_path / "after")
    assert import_results(other, tmp_path / "after") == (0, 1)
    assert not any(v.stale for v in run_verdicts(other, other.run(moved)))


def test_one_other_number_and_the_run_stays_stale(toy, moved, ledger):
    with ledger._transaction() as c:
        c.exec_driver_sql("UPDATE measurement SET value = value + 1e-12 WHERE arm = 'plain' AND seed = 1000")
    found = confirm(toy, "quick", ledger=ledger, jobs=1)
    assert not found.holds
    assert (found.equal, len(found.differ)) == (2, 1)
    assert found.differ[0].startswith("default/plain, seed 1000, score: ")
    assert "1 of 3 numbers differ" in found.sentence()
    assert "confirmed" not in ledger.run(moved)["record"]
    assert all(v.stale for v in run_verdicts(ledger, ledger.run(moved)))


def test_other_vector_instructions_are_named(toy, moved, ledger):
    record = ledger.run(moved)["record"]
    assert record["environment"]["instructions"].startswith(torch.backends.cpu.get_cpu_capability())
    with ledger._transaction() as c:
        c.exec_driver_sql("UPDATE measurement SET value = value + 1e-12 WHERE arm = 'plain' AND seed = 1000")
    assert "instructions" not in confirm(toy, "quick", ledger=ledger, jobs=1).sentence()
    ledger.update(moved, environment=record["environment"] | {"instructions": "VSX"})
    assert "with VSX instructions and this is" in confirm(toy, "quick", ledger=ledger, jobs=1).sentence()
    older = {k: v for k, v in record["environment"].items() if k != "instructions"}  # learnt from a confirmation
    ledger.update(
        moved,
        environment=older,
        confirmed=[{"code_digest": "x", "largest": 0, "environment": {"instructions": "NEON"}}],
    )
    assert "with NEON instructions and this is" in confirm(toy, "quick", ledger=ledger, jobs=1).sentence()
    ledger.update(moved, environment=record["environment"] | {"machine": "Elbrus"})
    said = confirm(toy, "quick", ledger=ledger, jobs=1).sentence()
    assert "The run computed on Elbrus with " in said and "--beside" in said


def test_a_difference_in_the_last_digits_may_be_allowed_and_is_recorded(toy, moved, ledger):
    with ledger._transaction() as c:
        c.exec_driver_sql("UPDATE measurement SET value = value * (1 + 1e-7) WHERE arm = 'plain' AND seed = 1000")
    assert not confirm(toy, "quick", ledger=ledger, jobs=1).holds
    found = confirm(toy, "quick", ledger=ledger, jobs=1, within=1e-6)
    assert found.holds
    assert "all within 1e-07" in found.sentence()
    (entry,) = ledger.run(moved)["record"]["confirmed"]
    assert entry["largest"] == pytest.approx(1e-7, rel=1e-3)
    with pytest.raises(UsageError, match="--within 0.5"):
        confirm(toy, "quick", ledger=ledger, within=0.5)


def test_a_number_that_went_missing_differs(toy, moved, ledger):
    with ledger._transaction() as c:
        c.exec_driver_sql("UPDATE measurement SET metric = 'other' WHERE arm = 'ours' AND seed = 1000")
    found = confirm(toy, "quick", ledger=ledger, jobs=1)
    assert len(found.differ) == 2
    assert "None now" in found.differ[0] + found.differ[1]


def test_wrong_use(toy, ledger):
    with pytest.raises(UsageError, match="no finished laptop run of toy-study"):
        confirm(toy, ledger=ledger)
    run = run_study(toy, ledger=ledger, jobs=1)
    with pytest.raises(UsageError, match="at least 1"):
        confirm(toy, "quick", ledger=ledger, seeds=0)
    ledger.update(run.run_id, config={"gone": 3})
    with pytest.raises(UsageError, match="other settings than the run"):
        confirm(toy, "quick", ledger=ledger)


def test_a_set_that_the_run_skipped_is_skipped_again(toy, ledger):
    run = run_study(toy, ledger=ledger, jobs=1)
    config = ledger.run(run.run_id)["record"]["config"]
    ledger.update(run.run_id, config=config | {"protocols": ["default", "absent"]})
    assert confirm(toy, "quick", ledger=ledger, jobs=1).holds
    ledger.update(run.run_id, config=config | {"protocols": ["absent"]})
    with ledger._transaction() as c:
        c.exec_driver_sql("UPDATE measurement SET protocol = 'absent'")
    with pytest.raises(StudyError, match="the set absent cannot be had"):
        confirm(toy, "quick", ledger=ledger, jobs=1)


def test_a_job_that_breaks_says_so(toy, ledger):
    run = run_study(toy, ledger=ledger, jobs=1)
    config = ledger.run(run.run_id)["record"]["config"]
    ledger.update(run.run_id, config=config | {"crash": "plain"})
    with pytest.raises(StudyError, match="default/plain broke while it was measured again: boom"):
        confirm(toy, "quick", ledger=ledger, jobs=1)
    assert "confirmed" not in ledger.run(run.run_id)["record"]


@pytest.fixture(scope="module")
def small_run(tmp_path_factory):
    """A real study's run, small."""
    ledger = Ledger(tmp_path_factory.mktemp("beside") / "ledger.sqlite")
    run = run_study("calibrated-hallucination", ledger=ledger, jobs=1, settings={"steps": 20, "eval_every": 20})
    return ledger, run.run_id


def test_an_earlier_checkout_is_measured_beside_the_present_code(small_run):
    ledger, run = small_run
    with ledger._transaction() as c:  # as another processor would have rounded
        c.exec_driver_sql("UPDATE measurement SET value = value * (1 + 1e-9)")
    assert not confirm("calibrated-hallucination", "quick", ledger=ledger, jobs=1).holds
    root = Path(__file__).parents[2]  # the same code stands for an earlier one
    found = confirm("calibrated-hallucination", "quick", ledger=ledger, jobs=1, beside=root)
    assert found.holds and found.beside == found.code
    assert "those of the earlier code on this machine: confirmed" in found.sentence()
    (entry,) = ledger.run(run)["record"]["confirmed"]
    assert entry["beside"] == found.code and entry["largest"] == 0


def test_code_that_the_run_does_not_stand_for_confirms_nothing(small_run, tmp_path):
    ledger, run = small_run
    with pytest.raises(UsageError, match="no checkout of Etude: git worktree add"):
        confirm("calibrated-hallucination", "quick", ledger=ledger, beside=tmp_path)
    ledger.update(run, code_digest="x", confirmed=[])
    with pytest.raises(UsageError, match="does not stand for that code"):
        confirm("calibrated-hallucination", "quick", ledger=ledger, jobs=1, beside=Path(__file__).parents[2])
    assert ledger.run(run)["record"]["confirmed"] == []
