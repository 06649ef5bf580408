"""Runs: every seed committed at once, resumed after a kill, reused, broken, skipped; bad input."""

import os
import shlex
import subprocess
import sys
import textwrap

import pytest

import etude
from etude.errors import UsageError
from etude.lab.jobs import UserData, tickets
from etude.lab.ledger import Ledger
from etude.lab.registry import study
from etude.lab.runner import _content_digest, configure, run_studies, run_study
from etude.lab.study import Arm


@pytest.fixture
def ledger(tmp_path):
    return Ledger(tmp_path / "ledger.sqlite")


def test_a_run_gives_verdicts_and_a_full_record(toy, ledger):
    result = run_study(toy, ledger=ledger, jobs=1)
    assert result.state == "done"
    (v,) = result.verdicts
    assert (v.verdict, v.n, v.stale, v.paper_value) == ("holds", 4, False, 3.0)
    assert v.effect == pytest.approx(3.0)
    record = ledger.run(result.run_id)["record"]
    assert record["environment"]["packages"]["torch"]
    assert record["environment"]["device"] == "cpu"
    assert record["plots"][0]["name"] == "score"
    assert record["peak_bytes"] > 1e6
    assert record["command"] == "etude run toy-study --tier quick"
    assert len(ledger.artifacts(result.run_id)) == 12
    assert [s for _, _, s in sorted(ledger.finished(result.run_id))[:4]] == [1000, 1001, 1002, 1003]


def test_a_finished_run_is_reused_and_fresh_measures_again(toy, ledger, tmp_path, monkeypatch):
    marks = tmp_path / "marks"
    monkeypatch.setenv("TOY_MARKS", str(marks))
    first = run_study(toy, ledger=ledger, jobs=1)
    again = run_study(toy, ledger=ledger, jobs=1)
    assert again.reused
    assert again.run_id == first.run_id
    assert len(marks.read_text().split("\n")) == 13
    fresh = run_study(toy, ledger=ledger, jobs=1, fresh=True)
    assert fresh.run_id != first.run_id
    assert len(marks.read_text().split("\n")) == 25
    other = run_study(toy, ledger=ledger, jobs=1, settings={"level": 5.0})
    assert not other.reused


def test_the_plans_that_the_engine_took_are_recorded(toy, ledger):
    broken = run_study(toy, ledger=ledger, jobs=1, settings={"trains": True, "crash": "shuffled"})
    assert ledger.run(broken.run_id)["record"]["plans"] == {"sequential": 8}
    assert "plans" in ledger.run(run_study(toy, ledger=ledger, jobs=1).run_id)["record"]


RUN = """
import sys
sys.path.insert(0, {folder!r})
import etude.studies
etude.studies.__path__.append({folder!r})
from etude import catalogue
from etude.lab import digest, registry, verdicts
from etude.lab.ledger import Ledger
from etude.lab.runner import run_study
registry.runnable = verdicts.runnable = lambda: ("toy-study",)
old = digest._path
from pathlib import Path
digest._path = lambda m: Path({folder!r}) / "toy_study.py" if m == "etude.studies.toy_study" else old(m)
paper = catalogue.parse_card(open({card!r}).read(), name="toy-study.toml")
catalogue.load = lambda slug: paper
run_study("toy-study", ledger=Ledger({ledger!r}), jobs=1, settings={{"kill_after": 7}})
"""


def test_kill_minus_nine_loses_no_finished_seed_and_repeats_none(toy, tmp_path, monkeypatch):
    """The process is killed inside its eighth job; the second run does the other five and no more."""
    marks, card = tmp_path / "marks", tmp_path / "toy-study.toml"
    file = tmp_path / "ledger.sqlite"
    code = RUN.format(folder=str(tmp_path / "studies"), card=str(card), ledger=str(file))
    environment = os.environ | {"TOY_MARKS": str(marks)}
    killed = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], env=environment, check=False, timeout=120)
    assert killed.returncode == -9
    ledger = Ledger(file)
    (run,) = ledger.runs()
    assert run["state"] == "running"
    assert len(ledger.finished(run["id"])) == 7
    assert len(ledger.measurements(run["id"])) == 7
    before = len(marks.read_text().splitlines())
    monkeypatch.delenv("TOY_MARKS", raising=False)
    result = run_study(toy, ledger=ledger, jobs=1, settings={"kill_after": 7})
    assert result.run_id == run["id"]
    assert result.state == "done"
    assert len(ledger.measurements(run["id"])) == 12
    assert before == 8
    assert result.verdicts[0].effect == pytest.approx(3.0)


def test_a_crash_breaks_the_study_keeps_the_rest_and_can_be_resumed(toy, ledger):
    result = run_study(toy, ledger=ledger, jobs=1, settings={"crash": "plain"})
    assert result.state == "broken"
    assert len(result.errors) == 4
    assert "default/plain/seed 1000: RuntimeError: boom" in result.errors
    assert len(ledger.finished(result.run_id)) == 8
    assert result.verdicts == []


def test_a_missing_set_is_a_skip_never_a_pass(toy, ledger):
    result = run_study(toy, ledger=ledger, jobs=1, settings={"protocols": ["absent"]})
    assert result.state == "skipped"
    assert "ETUDE_DATA" in result.skipped["absent"]
    both = run_study(toy, ledger=ledger, jobs=1, settings={"protocols": ["absent", "default"]})
    assert both.state == "done"
    assert list(both.skipped) == ["absent"]
    assert [v.protocol for v in both.verdicts] == ["default"]


def test_what_was_skipped_is_measured_once_its_data_are_there(toy, ledger, monkeypatch):
    both = {"protocols": ["default", "absent"]}
    first = run_study(toy, ledger=ledger, jobs=1, settings=both)
    assert (first.state, list(first.skipped)) == ("done", ["absent"])
    still = run_study(toy, ledger=ledger, jobs=1, settings=both)
    assert (still.reused, list(still.skipped)) == (True, ["absent"])
    monkeypatch.setattr(type(study(toy)), "task", lambda self, protocol, config: protocol)
    now = run_study(toy, ledger=ledger, jobs=1, settings=both)
    assert (now.run_id, now.reused, now.skipped) == (first.run_id, False, {})
    assert [v.protocol for v in now.verdicts] == ["default", "absent"]
    assert len(now.rows) == 24
    assert run_study(toy, ledger=ledger, jobs=1, settings=both).reused


def test_two_processes_may_run_the_same_study_on_one_ledger(toy, ledger):
    """The second begins when the first has stored one seed, and is done before the first goes on."""
    inner = []

    def event(what, slug, done, total):
        if what == "seed" and not inner:
            inner.append(None)
            inner[0] = run_study(toy, ledger=Ledger(ledger.url), jobs=1)

    outer = run_study(toy, ledger=ledger, jobs=1, on_event=event)
    assert (outer.state, outer.errors, inner[0].run_id) == ("done", [], outer.run_id)
    assert outer.rows == inner[0].rows
    assert len(outer.rows) == len(ledger.artifacts(outer.run_id)) == 12


def test_jobs_group_seeds_only_where_it_pays(toy, monkeypatch):
    it = study(toy)
    config = configure(it, "quick")
    single = tickets(it, config, "quick", workers=2)
    assert len(single) == 12
    assert all(len(t.seeds) == 1 for t in single)
    monkeypatch.setattr(
        type(it), "arms", dict(it.arms) | {"ours": Arm("ours", stacked=True), "x": Arm("x", derived=True)}
    )
    grouped = tickets(it, config, "quick", workers=2)
    assert [t.seeds for t in grouped if t.arm == "ours"] == [(1000, 1001), (1002, 1003)]
    assert not [t for t in grouped if t.arm == "x"]
    gpu = tickets(it, config, "quick", workers=2, device="cuda", done={("default", "plain", 1000)})
    assert [t.seeds for t in gpu if t.arm == "plain"] == [(1001, 1002, 1003)]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"tier": "huge"}, "unknown tier 'huge'.*quick"),
        ({"seeds": 2}, "at least 3 seeds"),
        ({"settings": {"levle": 1}}, "no setting 'levle'; it has .*level"),
        ({"settings": {"level": "much"}}, "level = 'much'"),
        ({"settings": {"level": float("nan")}}, "level = nan.*finite"),
        ({"settings": {"level": float("inf")}}, "level = inf.*finite"),
        ({"settings": {"protocols": ["defualt"]}}, "no protocol 'defualt'; did you mean default?"),
        ({"settings": {"protocols": ["xyz"]}}, "no protocol 'xyz'; it has default, absent"),
        ({"settings": {"protocols": "d2,d4"}}, r"""JSON: --set 'protocols=\["d2", "d4"\]'"""),
        ({"seeds": 4, "settings": {"n_seeds": 3}}, "contradict each other"),
        ({"jobs": 0}, "--jobs 0"),
        ({"on": "moon"}, "moon"),
    ],
)
def test_wrong_use_is_said_before_anything_runs(toy, ledger, options, text):
    with pytest.raises(UsageError, match=text):
        run_studies([toy], **({"ledger": ledger} | options))
    assert ledger.runs() == []


def test_all_studies_are_checked_before_the_first_is_opened(toy, ledger):
    with pytest.raises(UsageError, match="gpicl"):
        run_studies([toy, "gpicl"], ledger=ledger)
    assert ledger.runs() == []


@pytest.mark.parametrize(
    ("slug", "settings", "text"),
    [
        *((slug, {"lr": -1}, "setting lr = -1") for slug in (
            "pointer-networks", "prototype-network", "rich-representations", "rnn-review", "rnn-sparsity",
            "train-longer",
        )),
        ("pointer-networks", {"n_low": 9}, "pointer-networks: n_low must be at most n .*, got 9 and 5"),
        ("train-longer", {"walk_steps": 2}, "setting walk_steps = 2"),
        ("rnn-sparsity", {"graph_cell": "nope"}, "setting graph_cell = 'nope'.*'gru'"),
        ("rnn-sparsity", {"graph_lr": 0}, "setting graph_lr = 0"),
        ("rnn-sparsity", {"graph_nodes": [14, 10]}, "setting graph_nodes.*fewest and most"),
        ("rnn-sparsity", {"graphs": 1}, "setting graphs = 1"),
        ("rnn-sparsity", {"longest": 10}, "setting longest = 10"),
        ("rich-representations", {"strengths": []}, "setting strengths"),
        ("rich-representations", {"strengths": [-1]}, "setting strengths.0 = -1"),
        ("rich-representations", {"weight_decay": -1}, "setting weight_decay"),
        ("wide-deep-optimal-classification", {"sizes": "100,300"}, r"JSON: --set 'sizes=\[100, 300\]'"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be(slug, settings, text):
    with pytest.raises(UsageError, match=text):
        configure(study(slug), "quick", settings=settings)


def test_own_data(toy, ledger, tmp_path):
    table = tmp_path / "own.csv"
    table.write_text("a,b,y\n" + "\n".join(f"{i},{i % 3},{'yn'[i % 2]}" for i in range(40)))

    result = run_study(toy, ledger=ledger, jobs=1, user=UserData(str(table), "y"))
    assert [v.protocol for v in result.verdicts] == ["user"]
    record = ledger.run(result.run_id)["record"]
    assert record["user_data"]["digest"]
    assert "--data" in record["command"]
    assert "your data: own.csv, target y" in result.verdicts[0].notes
    table.write_text(table.read_text() + "\n50,1,y")
    again = run_study(toy, ledger=ledger, jobs=1, user=UserData(str(table), "y"))
    assert not again.reused
    assert len(ledger.latest()) == 1  # the newest run of an edited file stands for it


def test_an_edited_file_in_the_home_folder_is_a_new_run(toy, ledger, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    table = tmp_path / "own.csv"
    table.write_text("a,b,y\n" + "\n".join(f"{i},{i % 3},{'yn'[i % 2]}" for i in range(40)))
    user = UserData("~/own.csv", "y")
    run_study(toy, ledger=ledger, jobs=1, user=user)
    assert run_study(toy, ledger=ledger, jobs=1, user=user).reused
    table.write_text(table.read_text() + "\n50,1,y")
    assert not run_study(toy, ledger=ledger, jobs=1, user=user).reused


def test_seconds_are_the_workers_time_of_all_finished_jobs(toy, ledger):
    broken = run_study(toy, ledger=ledger, jobs=1, settings={"crash": "shuffled"})
    assert broken.seconds == pytest.approx(sum(j["seconds"] for j in ledger.jobs(broken.run_id)))


@pytest.mark.parametrize("options", [{"target": "y"}, {"data": ""}, {"seeds": "5"}])
def test_arguments_of_the_library_that_cannot_be(toy, ledger, options):
    with pytest.raises(UsageError, match=next(iter(options))):
        etude.run(toy, ledger=ledger, **options)


def test_the_digest_of_own_data_reads_what_the_loader_takes(tmp_path, monkeypatch):
    for name, text in (("x/1.txt", "one"), ("y/2.txt", "two"), ("y/.DS_Store", "finder"), ("film.mp4", "large")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    first = _content_digest(tmp_path)
    (tmp_path / "film.mp4").write_text("another")
    (tmp_path / "notes.bin").write_text("stray")
    assert _content_digest(tmp_path) == first
    (tmp_path / "y" / "2.txt").write_text("three")
    assert _content_digest(tmp_path) != first
    assert _content_digest(tmp_path / "film.mp4") != _content_digest(tmp_path / "notes.bin")
    monkeypatch.setattr("os.access", lambda *_: False)  # on_bad="skip" leaves out what cannot be opened
    assert _content_digest(tmp_path) != first


def test_undeclared_arms_and_missing_seeds_break(toy, ledger, monkeypatch):
    it = study(toy)
    monkeypatch.setattr(type(it), "measure", lambda self, job: iter(()))
    result = run_study(toy, ledger=ledger, jobs=1)
    assert result.state == "broken"
    assert "nothing came back for seeds [1000]" in result.errors[0]


def test_a_run_on_own_data_leaves_every_reader_of_the_ledger_working(toy, ledger, tmp_path):
    from etude.lab.export import export
    from etude.lab.report import write_report
    from etude.lab.verdicts import verdicts

    (tmp_path / "my table.csv").write_text("a,b,y\n" + "\n".join(f"{i},{i % 3},{i % 2}" for i in range(40)))
    user = UserData(str(tmp_path / "my table.csv"), "y", "skip")
    run_study(toy, ledger=ledger, jobs=1)
    result = run_study(toy, ledger=ledger, jobs=1, user=user)
    command = ledger.run(result.run_id)["record"]["command"]
    assert shlex.split(command)[-5:] == ["--data", user.path, "--target", "y", "--skip-bad"]
    assert len(verdicts(ledger, toy)) == 2
    assert write_report(ledger, tmp_path / "report").is_file()
    assert len(export(ledger, tmp_path / "out", own_data=True)) == 2


def test_settings_stand_in_the_command_as_a_shell_takes_them(toy, ledger):
    result = run_study(toy, ledger=ledger, jobs=1, settings={"protocols": ["default"], "level": 4.0})
    command = ledger.run(result.run_id)["record"]["command"]
    assert 'protocols=["default"]' in shlex.split(command)


@pytest.mark.parametrize("slug", ["wide-deep-optimal-classification", "neural-contextual-bandits"])
def test_fewer_than_three_seeds_by_any_way(slug):
    with pytest.raises(UsageError, match="at least 3"):
        configure(study(slug), "quick", settings={"n_seeds": 2})
