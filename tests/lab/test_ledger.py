"""The ledger and the exported files: round trips, refusals, nothing lost."""

import json
import os
import sqlite3
from pathlib import Path

import pytest

from etude.errors import LedgerError, UsageError
from etude.lab.export import ResultError, export, import_results
from etude.lab.ledger import Ledger
from etude.lab.registry import study
from etude.lab.report import write_report
from etude.lab.runner import run_study
from etude.lab.study import Artifact, Measurement
from etude.lab.verdicts import verdicts


def filled(path):
    ledger = Ledger(path)
    run = ledger.begin("pointer-networks", "quick", "k", {"config": {}})
    ledger.commit(run, "p", "a", [1000], [Measurement("a", 1000, "m", 1.5)], seconds=1.0, peak_bytes=10)
    return ledger, run


def test_a_job_is_stored_whole_or_not_at_all(tmp_path):
    ledger, run = filled(tmp_path / "l.sqlite")
    nameless = Measurement("a", 1001, None, 2.0)
    with pytest.raises(LedgerError):
        ledger.commit(run, "p", "a", [1001], [nameless], seconds=1.0, peak_bytes=1)
    assert len(ledger.measurements(run)) == 1
    assert ledger.finished(run) == {("p", "a", 1000)}


def test_a_seed_that_another_process_has_stored_is_left_out(tmp_path):
    ledger, run = filled(tmp_path / "l.sqlite")
    rows = [Measurement(arm, seed, "m", 2.0) for arm in ("a", "derived") for seed in (1000, 1001)]
    pictures = [Artifact("a", seed, "pic", 0) for seed in (1000, 1001)]
    ledger.commit(run, "p", "a", [1000, 1001], [*rows, *pictures], seconds=1.0, peak_bytes=1)
    assert ledger.finished(run) == {("p", "a", 1000), ("p", "a", 1001)}
    assert [(r["arm"], r["seed"], r["value"]) for r in ledger.measurements(run)] == [
        ("a", 1000, 1.5), ("a", 1001, 2.0), ("derived", 1001, 2.0),
    ]  # fmt: skip
    assert [a["seed"] for a in ledger.artifacts(run)] == [1001]


def test_odd_numbers_survive(tmp_path):
    ledger, run = filled(tmp_path / "l.sqlite")
    items = [Measurement("b", 1000, "m", x) for x in (float("nan"), float("inf"), float("-inf"))]
    ledger.commit(run, "p", "b", [1000], [*items, Artifact("b", 1000, "pic", {"z": [1, 2]})], seconds=0.1, peak_bytes=1)
    got = [r["value"] for r in ledger.measurements(run) if r["arm"] == "b"]
    assert got[0] != got[0]
    assert got[1:] == [float("inf"), float("-inf")]
    assert ledger.artifacts(run)[0]["value"] == {"z": [1, 2]}


def test_newer_schema_is_refused_untouched(tmp_path):
    path = tmp_path / "l.sqlite"
    filled(path)[0].close()
    with sqlite3.connect(path) as c:
        c.execute("insert into etude_schema values (99)")
    before = path.read_bytes()
    with pytest.raises(LedgerError, match="schema 99.*update Etude"):
        Ledger(path)
    assert path.read_bytes() == before


def test_not_a_ledger(tmp_path):
    path = tmp_path / "l.sqlite"
    path.write_text("these are my notes, please keep them" * 50)
    with pytest.raises(LedgerError, match="not an Etude ledger"):
        Ledger(path)
    assert path.read_text().startswith("these are my notes")


def test_a_place_that_does_not_exist(tmp_path):
    with pytest.raises(LedgerError, match="--ledger"):
        Ledger(tmp_path / "no" / "such" / "folder" / "l.sqlite")


def test_read_only_ledger_is_said_and_intact(tmp_path):
    path = tmp_path / "l.sqlite"
    ledger, run = filled(path)
    ledger.close()
    ro = Ledger.__new__(Ledger)
    import sqlalchemy as sa

    ro.url = f"sqlite:///file:{path}?mode=ro&uri=true"
    ro.engine = sa.create_engine(ro.url)
    with pytest.raises(LedgerError, match=r"readonly|read-only"):
        ro.commit(run, "p", "a", [1001], [], seconds=0.0, peak_bytes=0)
    assert len(Ledger(path).measurements(run)) == 1


def test_full_disk_is_said_and_what_was_committed_stays(tmp_path):
    """SQLite's page limit stands for the disk: the same error, without filling a disk."""
    path = tmp_path / "l.sqlite"
    ledger, run = filled(path)
    import sqlalchemy as sa

    @sa.event.listens_for(ledger.engine, "connect")
    def limit(connection, _):
        connection.execute("PRAGMA max_page_count = 1")

    ledger.engine.dispose()
    rows = [Measurement("a", 1001, "m" * 70, float(i)) for i in range(3000)]
    with pytest.raises(LedgerError, match="full.*free some space"):
        ledger.commit(run, "p", "a", [1001], rows, seconds=0.0, peak_bytes=0)
    assert len(Ledger(path).measurements(run)) == 1


def test_export_and_import_rebuild_the_ledger(toy, tmp_path):
    ledger = Ledger(tmp_path / "a.sqlite")
    run_study(toy, ledger=ledger, jobs=1)
    (file,) = export(ledger, tmp_path / "results")
    assert file.relative_to(tmp_path / "results").as_posix() == "toy-study/quick.json"
    raw = json.loads(file.read_text())
    assert raw["verdicts"][0]["verdict"] == "holds"
    other = Ledger(tmp_path / "b.sqlite")
    assert import_results(other, tmp_path / "results") == (1, 0)
    assert import_results(other, tmp_path / "results") == (0, 1)
    assert [v.record() for v in verdicts(other)] == [v.record() for v in verdicts(ledger)]
    export(other, tmp_path / "again")
    key = lambda r: json.dumps(r, sort_keys=True)
    again = json.loads((tmp_path / "again" / "toy-study" / "quick.json").read_text())
    for part in ("measurements", "artifacts", "jobs"):
        assert sorted(map(key, again[part])) == sorted(map(key, raw[part]))
    assert again["record"] == raw["record"]
    reused = run_study(toy, ledger=other, jobs=1)
    assert reused.reused


@pytest.mark.parametrize("odd", [float("nan"), float("inf"), float("-inf")])
def test_a_run_with_a_diverged_seed_is_exported_and_imported(toy, tmp_path, monkeypatch, odd):
    kind = type(study(toy))
    measure = kind.measure

    def diverging(self, job):
        for item in measure(self, job):
            if (item.arm, item.seed) == ("ours", 1001):
                item = item._replace(value=odd if isinstance(item, Measurement) else [[odd]])
            yield item

    monkeypatch.setattr(kind, "measure", diverging)
    ledger = Ledger(tmp_path / "a.sqlite")
    run_study(toy, ledger=ledger, jobs=1)
    (file,) = export(ledger, tmp_path / "results")
    raw = json.loads(file.read_text(), parse_constant=pytest.fail)
    assert raw["verdicts"][0]["notes"] == ["diverged: seeds [1001]"]
    assert raw["verdicts"][0]["method_mean"] is None
    assert [[None]] in [a["value"] for a in raw["artifacts"]]
    other = Ledger(tmp_path / "b.sqlite")
    assert import_results(other, tmp_path / "results") == (1, 0)
    got = {(r["arm"], r["seed"]): r["value"] for r in other.measurements(raw["run"])}["ours", 1001]
    assert repr(got) == repr(odd)
    assert verdicts(other)[0].notes == ("diverged: seeds [1001]",)


@pytest.mark.parametrize(
    ("spoil", "text"),
    [
        (lambda t: t[: len(t) // 2], "not a result file"),
        (lambda t: t.replace('"schema_version": 1', '"schema_version": 9'), "schema 9.*update Etude"),
        (lambda t: t.replace('"slug"', '"slog"', 1), "damaged at"),
        (lambda t: t.replace('"seed":1000', '"seed":"x"', 1), "damaged at jobs.0.seed"),
        (lambda t: t.replace('"seed":1000', '"seed":1' + "0" * 30, 1), "damaged at jobs.0.seed"),
        (lambda t: "[1, 2]", "damaged"),
        (lambda t: json.dumps(json.loads(t) | {"jobs": []}), "damaged at jobs: no job measured protocol"),
    ],
)
def test_corrupted_result_file_is_named_and_nothing_is_stored(toy, tmp_path, spoil, text):
    ledger = Ledger(tmp_path / "a.sqlite")
    run_study(toy, ledger=ledger, jobs=1)
    (file,) = export(ledger, tmp_path / "results")
    (tmp_path / "results" / "aaa.json").write_text(file.read_text())
    file.write_text(spoil(file.read_text()))
    other = Ledger(tmp_path / "b.sqlite")
    with pytest.raises(ResultError, match=text) as caught:
        import_results(other, tmp_path / "results")
    assert "quick.json" in str(caught.value)
    assert other.runs() == []


def test_import_of_nothing(tmp_path):
    with pytest.raises(UsageError, match="no result files"):
        import_results(Ledger(tmp_path / "l.sqlite"), tmp_path / "nowhere")


def test_stale_when_the_code_moves(toy, tmp_path):
    ledger = Ledger(tmp_path / "a.sqlite")
    run_study(toy, ledger=ledger, jobs=1)
    file = tmp_path / "studies" / "toy_study.py"
    text = file.read_text()
    file.write_text('"""Other words."""\n' + text + "\n# a comment\n")
    assert not verdicts(ledger)[0].stale
    file.write_text(text.replace("50 + base", "51 + base"))
    (v,) = verdicts(ledger)
    assert v.stale
    assert "stale: the code moved since" in v.notes


@pytest.mark.skipif(not os.environ.get("ETUDE_TEST_POSTGRES"), reason="needs ETUDE_TEST_POSTGRES, a database URL")
def test_postgresql(toy):
    ledger = Ledger(os.environ["ETUDE_TEST_POSTGRES"])
    result = run_study(toy, ledger=ledger, jobs=1, fresh=True)
    assert result.verdicts[0].verdict == "holds"
    ledger.delete(result.run_id)


@pytest.mark.skipif(not os.environ.get("ETUDE_TEST_POSTGRES"), reason="needs ETUDE_TEST_POSTGRES, a database URL")
def test_postgresql_keeps_a_study_whose_pictures_hold_no_numbers():
    """It has no JSON for them, and a study must not end for that."""
    odd = {"z": [1.0, float("nan"), float("inf")]}
    ledger = Ledger(os.environ["ETUDE_TEST_POSTGRES"])
    run = ledger.begin("pointer-networks", "quick", "k", {"config": odd})
    try:
        ledger.commit(run, "p", "a", [1000], [Artifact("a", 1000, "pic", odd)], seconds=0.1, peak_bytes=1)
        ledger.update(run, plots=[odd])
        kept = {"z": [1.0, None, None]}
        assert ledger.artifacts(run)[0]["value"] == kept
        assert (ledger.run(run)["record"]["plots"], ledger.run(run)["record"]["config"]) == ([kept], kept)
    finally:
        ledger.delete(run)


@pytest.mark.skipif(not os.environ.get("ETUDE_TEST_POSTGRES"), reason="needs ETUDE_TEST_POSTGRES, a database URL")
def test_a_connection_that_died_is_replaced():
    ledger = Ledger(os.environ["ETUDE_TEST_POSTGRES"])
    with ledger.engine.connect() as c:
        mine = c.exec_driver_sql("SELECT pg_backend_pid()").scalar_one()
    with Ledger(os.environ["ETUDE_TEST_POSTGRES"]).engine.begin() as c:
        c.exec_driver_sql(f"SELECT pg_terminate_backend({mine}, 5000)")
    assert ledger.runs("nothing") == []


@pytest.mark.parametrize("url", ["nonsense://x", "mysql://x/y"])
def test_an_address_of_no_known_database(url):
    with pytest.raises(LedgerError, match="cannot be used: .*give a path"):
        Ledger(url)


@pytest.mark.parametrize("url", ["nonsense://bob:secret@x/y", "postgresql+psycopg://bob:secret@127.0.0.1:1/x"])
def test_passwords_are_not_shown(url):
    with pytest.raises(LedgerError, match=r"bob:\*\*\*@.* cannot be used") as caught:
        Ledger(url)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("field", "bad"),
    [
        ("tier", "weird"), ("state", "hm"), ("started", "yesterday"), ("started", "2026-01-02T03:00:00"),
        ("started", "9999-12-31T23:59:59Z"), ("seconds", float("inf")), ("seconds", -1.0),
        ("record", {"plots": [{"name": "x"}]}), ("record", {"plots": [{"name": "x", "caption": "y", "spec": "z"}]}),
        ("record", {"plots": {}}), ("record", {"confirmed": [{}]}), ("record", {"confirmed": 3}),
        ("record", {"environment": []}),
    ],
)  # fmt: skip
def test_result_files_of_other_words_are_refused(tmp_path, field, bad):
    files = [Path(__file__).parents[2] / "results" / "mip-hypernetworks" / "laptop.json"]
    raw = json.loads(files[0].read_text()) | {field: bad}
    (tmp_path / "r.json").write_text(json.dumps(raw))
    ledger = Ledger(tmp_path / "l.sqlite")
    with pytest.raises(ResultError, match=f"damaged at {field}"):
        import_results(ledger, tmp_path / "r.json")
    raw = json.loads(files[0].read_text())
    raw["measurements"][0]["value"] = "abc"
    (tmp_path / "r.json").write_text(json.dumps(raw))
    with pytest.raises(ResultError, match="damaged at measurements.0.value"):
        import_results(ledger, tmp_path / "r.json")
    assert ledger.runs() == []


def test_a_paper_that_left_the_catalogue_hides_no_other(tmp_path):
    ledger = Ledger(tmp_path / "l.sqlite")
    results = Path(__file__).parents[2] / "results"
    import_results(ledger, results / "mip-hypernetworks" / "laptop.json")
    there = verdicts(ledger)
    run = ledger.begin("gone", "quick", "key", {"config": {}})
    ledger.update(run, state="done")
    assert there and verdicts(ledger) == there
    assert "mip-hypernetworks" in write_report(ledger, tmp_path / "report").read_text()
    assert [p.parent.name for p in export(ledger, tmp_path / "out")] == ["mip-hypernetworks"]


def test_the_same_run_twice_in_a_folder_is_stored_once(toy, tmp_path):
    ledger = Ledger(tmp_path / "a.sqlite")
    run_study(toy, ledger=ledger, jobs=1)
    (file,) = export(ledger, tmp_path / "results")
    (tmp_path / "results" / "copy.json").write_text(file.read_text())
    assert import_results(Ledger(tmp_path / "b.sqlite"), tmp_path / "results") == (1, 1)


@pytest.mark.parametrize("text", ["[" * 200_000, "9" * 5000])
def test_json_that_python_cannot_hold_is_no_result_file(tmp_path, text):
    (tmp_path / "r.json").write_text(text)
    with pytest.raises(ResultError, match="not a result file"):
        import_results(Ledger(tmp_path / "l.sqlite"), tmp_path / "r.json")


def test_a_path_with_signs_of_an_address_is_the_file_of_that_name(tmp_path):
    Ledger(tmp_path / "a?b.sqlite")
    assert [p.name for p in tmp_path.iterdir()] == ["a?b.sqlite"]
