"""The command line as a user meets it: real subprocesses, exit codes, one-line errors, JSON and nothing else."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest

import etude as library
from etude.catalogue import papers
from etude.errors import UsageError
from etude.lab.scaffold import scaffold

SLUG = "prototype-network"
SHORT = "calibrated-hallucination"
"""Its quick run is the shortest that has many jobs."""


def etude(*arguments, cwd, env=None, timeout=240):
    command = [sys.executable, "-m", "etude.cli", *map(str, arguments)]
    full = os.environ | {"COLUMNS": "200", "OMP_NUM_THREADS": "1"} | (env or {})
    return subprocess.run(command, cwd=cwd, env=full, capture_output=True, text=True, timeout=timeout, check=False)


def one_line(result, code, *words):
    assert result.returncode == code, result.stderr
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    assert "Traceback" not in result.stderr
    for word in words:
        assert word in lines[0], lines[0]


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A folder in which the quick study has run once."""
    folder = tmp_path_factory.mktemp("done")
    result = etude("run", SHORT, "--json", cwd=folder)
    assert result.returncode == 0, result.stderr
    return folder, json.loads(result.stdout)


def test_import_is_light_and_fast():
    code = (
        "import time; t = time.perf_counter(); import etude; s = time.perf_counter() - t; import sys; "
        "print(s, any(m in sys.modules for m in ('torch', 'pandas', 'transformers', 'sqlalchemy', 'ray', 'fastapi')))"
    )
    times = []
    for _ in range(3):
        out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
        times.append(float(out[0]))
        assert out[1] == "False"
    assert min(times) < 1.0


def test_help_says_what_each_command_does(tmp_path):
    top = etude("--help", cwd=tmp_path)
    assert top.returncode == 0
    for command in (
        "papers",
        "show",
        "run",
        "verdicts",
        "report",
        "export",
        "import-results",
        "bench",
        "new",
        "doctor",
    ):
        assert command in top.stdout
        assert etude(command, "--help", cwd=tmp_path).returncode == 0
    assert "3" in etude("run", "--help", cwd=tmp_path).stdout


def test_papers_as_json(tmp_path):
    found = json.loads(etude("papers", "--json", cwd=tmp_path).stdout)
    assert len(found) == len(papers()) >= 52
    assert set(found[0]) == {"slug", "title", "room", "kind", "year", "runs", "claims"}
    some = json.loads(etude("papers", "--json", "--room", "trust", "--runs", cwd=tmp_path).stdout)
    assert {p["room"] for p in some} == {"trust"}
    assert all(p["runs"] for p in some)
    assert list(tmp_path.iterdir()) == []


def test_show(done, tmp_path):
    folder, _ = done
    text = etude("show", SHORT, cwd=folder).stdout
    assert "GoodTuringGenerator" in text
    assert f"etude run {SHORT}" in text
    card = json.loads(etude("show", SHORT, "--json", cwd=folder).stdout)
    assert card["verdicts"]
    untouched = etude("show", SHORT, cwd=tmp_path)
    assert untouched.returncode == 0
    assert list(tmp_path.iterdir()) == []


def test_run_prints_one_json_document_and_writes_the_report(done):
    folder, (result,) = done
    assert result["slug"] == SHORT
    assert result["state"] == "done"
    assert (folder / "etude-report" / "index.html").stat().st_size > 20_000
    again = etude("run", SHORT, cwd=folder)
    assert again.returncode == 0
    assert "taken from the ledger" in again.stdout
    assert "Report:" in again.stdout


def test_verdicts_have_the_promised_fields(done):
    folder, _ = done
    rows = json.loads(etude("verdicts", SHORT, "--json", cwd=folder).stdout)
    promised = {
        "slug", "claim", "protocol", "tier", "verdict", "effect", "low", "high", "n", "paper_value", "unit", "notes",
        "stale", "run",
    }  # fmt: skip
    assert rows
    assert all(promised <= set(r) for r in rows)
    assert all(r["n"] >= 3 and not r["stale"] for r in rows)


def test_export_and_import(done, tmp_path):
    folder, _ = done
    assert etude("export", tmp_path / "results", cwd=folder).returncode == 0
    back = etude("import-results", tmp_path / "results", "--ledger", tmp_path / "b.sqlite", cwd=tmp_path)
    assert "1 run imported" in back.stdout
    a = json.loads(etude("verdicts", "--json", cwd=folder).stdout)
    b = json.loads(etude("verdicts", "--json", "--ledger", tmp_path / "b.sqlite", cwd=tmp_path).stdout)
    assert a == b


def test_published_runs_that_the_ledger_lacks_are_told_of(done, tmp_path):
    folder, _ = done
    etude("export", tmp_path / "results", cwd=folder)
    (published,) = (tmp_path / "results" / SHORT).glob("*.json")
    (tmp_path / "results" / "gone-paper").mkdir()
    shutil.copy(published, tmp_path / "results" / "gone-paper")  # a paper that no catalogue knows
    shutil.copy(folder / "etude.sqlite", tmp_path)
    assert "import-results" not in etude("verdicts", cwd=tmp_path).stdout
    shutil.copy(published, published.with_stem("laptop"))
    said = etude("verdicts", cwd=tmp_path).stdout
    assert f"published runs of {SHORT} that this ledger lacks: etude import-results" in " ".join(said.split())
    assert json.loads(etude("verdicts", "--json", cwd=tmp_path).stdout)


def test_the_library_gives_the_same_as_the_command_line(done):
    folder, (printed,) = done
    import etude as library

    result = library.run(SHORT, tier="quick", ledger=folder / "etude.sqlite")
    assert result.reused
    assert json.loads(json.dumps([v.record() for v in result.verdicts])) == printed["verdicts"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("run", "pointer-netwroks"), ("pointer-netwroks", "pointer-networks")),
        (("run", "gpicl"), ("no study yet",)),
        (("run", SLUG, "--tier", "huge"), ("'huge'", "quick")),
        (("run", SLUG, "--seeds", "2"), ("--seeds 2", "at least 3")),
        (("run", SLUG, "--seed", "5"), ("--seed",)),
        (("run", SLUG, "--set", "epochz=3"), ("epochz",)),
        (("run", SLUG, "--set", "protocols=[]"), ("protocols", "at least one")),
        (("run", SLUG, "--set", 'protocols=["digit"]'), ("'digit'", "did you mean digits")),
        (("run", SLUG, "--set", "protocols=digits"), ("""--set 'protocols=["digits"]'""",)),
        (("run", SLUG, "--set", "epochs"), ("name=value",)),
        (("run", SLUG, "--on", "mars"), ("mars", "ray")),
        (("run", SLUG, "--jobs", "0"), ("--jobs 0",)),
        (("run", SLUG, "--target", "y"), ("--data",)),
        (("run", SLUG, "--resume", "--fresh"), ("contradict",)),
        (("run", SLUG, "--tier", "gpu"), ("CUDA",)),
        (("show", "nothing"), ("nothing",)),
        (("show", SLUG, "gpicl"), ("'gpicl'", "etude show --help")),
        (("show", "gpicl", "--settings"), ("no study yet",)),
        (("verdicts", "nothing"), ("nothing",)),
        (("papers", "--room", "attic"), ("attic", "layers")),
        (("data", "fetch", "mnisd"), ("mnisd", "mnist")),
        (("bench", "--folder", "nowhere"), ("nowhere",)),
        (("import-results", "nowhere"), ("nowhere",)),
        (("new", "Bad Slug"), ("Bad Slug",)),
        (("frobnicate",), ("frobnicate",)),
    ],
)
def test_wrong_use_is_one_line_and_exit_code_2(arguments, words, tmp_path, monkeypatch, capsys):
    """By `main` in this process, as a subprocess each would take a minute; the first of them by both."""
    from etude import cli

    monkeypatch.chdir(tmp_path)
    code = cli.main(list(arguments))
    said = SimpleNamespace(returncode=code, stderr=capsys.readouterr().err)
    one_line(said, 2, *words)
    if arguments == ("run", "pointer-netwroks"):
        process = etude(*arguments, cwd=tmp_path)
        one_line(process, 2, *words)
        assert process.stderr == said.stderr
        assert list(tmp_path.iterdir()) == []  # no ledger for a name that is none


def write(path, text):
    path.write_text(text)
    return path


ROWS = "\n".join(f"{i},{i * 7 % 5},{'ab'[i % 2]}" for i in range(60))


def test_data_with_too_few_classes_for_the_study_are_refused_before_it_runs(tmp_path):
    from PIL import Image

    for i in range(12):
        file = tmp_path / "mine" / "ab"[i % 2] / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (12, 12), 20 * i).save(file)
    words = ("fast-slow-memory cannot use mine", "has 2 classes and needs 6")
    one_line(etude("run", "fast-slow-memory", "--data", "mine", cwd=tmp_path), 2, *words)
    assert json.loads(etude("verdicts", "--json", cwd=tmp_path).stdout) == []


def test_data_of_a_kind_that_the_study_does_not_take(tmp_path):
    one_line(etude("run", "pointer-networks", "--data", write(tmp_path / "t.csv", f"x,z,y\n{ROWS}"), cwd=tmp_path), 2)


@pytest.mark.parametrize(
    ("text", "target", "words"),
    [
        (f"x,z,y\n{ROWS}", "label", ("label", "x, z, y")),
        ("", "y", ("empty",)),
        ("x,z,y\n" + ROWS.replace("b", "a"), "y", ("only the class",)),
    ],
)
def test_a_table_that_cannot_be_used(tmp_path, text, target, words):
    table = write(tmp_path / "t.csv", text)
    one_line(etude("run", "train-longer", "--data", table, "--target", target, cwd=tmp_path), 2, *words)


def test_a_ledger_that_cannot_be_used(tmp_path):
    one_line(etude("verdicts", "--ledger", tmp_path / "no" / "l.sqlite", cwd=tmp_path), 3, "--ledger")
    one_line(
        etude("verdicts", "--ledger", write(tmp_path / "n.sqlite", "notes " * 500), cwd=tmp_path), 3, "not an Etude"
    )


def test_a_report_folder_that_cannot_be_written(done):
    folder, _ = done
    write(folder / "file", "x")
    one_line(etude("report", folder / "file" / "deep", cwd=folder), 2, "cannot write the report")


def test_kill_minus_nine_and_ctrl_c_then_resume(tmp_path):
    """Workers and all: what was finished is there, nothing is measured twice, Ctrl-C says how to go on."""
    command = [sys.executable, "-m", "etude.cli", "run", SHORT, "--json", "--no-report", "--jobs", "2"]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    from etude.lab.ledger import Ledger

    def finished():
        if not (tmp_path / "etude.sqlite").exists():
            return 0
        ledger = Ledger(tmp_path / "etude.sqlite")
        count = sum(len(ledger.finished(r["id"])) for r in ledger.runs())
        ledger.close()
        return count

    seen = 0
    for how in (signal.SIGKILL, signal.SIGINT):
        process = subprocess.Popen(command, cwd=tmp_path, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        until = time.time() + 120
        while finished() <= seen and process.poll() is None and time.time() < until:
            time.sleep(0.05)
        process.send_signal(how)
        _, message = process.communicate(timeout=60)
        seen = finished()
        assert seen > 0
        if how == signal.SIGINT and process.returncode != 0:
            assert process.returncode == 130
            assert b"the same command continues it" in message
    result = etude("run", SHORT, "--json", "--no-report", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    ledger = Ledger(tmp_path / "etude.sqlite")
    assert len(ledger.runs()) == 1
    rows = ledger.measurements(ledger.runs()[0]["id"])
    keys = [(r["protocol"], r["arm"], r["seed"], r["metric"], r["step"]) for r in rows]
    assert len(keys) == len(set(keys))


@pytest.mark.parametrize(
    ("options", "text"), [((), "the same command continues it"), (("--fresh",), "the same command without --fresh")]
)
def test_an_interrupt_says_which_command_continues(monkeypatch, capsys, options, text):
    from etude import cli

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "app", interrupted)
    assert cli.main(["run", SLUG, *options]) == 130
    assert text in " ".join(capsys.readouterr().err.split())
    assert cli.main(["data", "fetch", *options]) == 130
    assert "continues it" not in capsys.readouterr().err


@pytest.mark.parametrize("command", ["verdicts", "report", "export"])
def test_looking_makes_no_ledger(command, tmp_path, monkeypatch):
    from etude import cli

    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        cli.main([command])
    assert ended.value.code == 0
    assert not (tmp_path / "etude.sqlite").exists()


def test_doctor_knows_every_extra():
    from etude.lab.doctor import EXTRAS

    project = tomllib.loads((Path(library.__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert set(EXTRAS) == set(project["optional-dependencies"])


def test_doctor_and_data_list_as_json(tmp_path):
    found = json.loads(etude("doctor", "--json", cwd=tmp_path).stdout)
    assert found["devices"][0] == "cpu"
    names = {s["name"] for s in json.loads(etude("data", "list", "--json", cwd=tmp_path).stdout)}
    assert {"mnist", "digits"} <= names


@pytest.fixture
def checkout(tmp_path):
    """A copy of the checkout's source, with the tests that hold for every card."""
    root, cards = Path(library.__file__).parents[2], Path("tests", "catalogue", "test_cards.py")
    shutil.copytree(root / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(root / "pyproject.toml", tmp_path)
    (tmp_path / cards).parent.mkdir(parents=True)
    shutil.copy(root / cards, tmp_path / cards)
    return tmp_path


def test_new_paper_in_a_copy_of_the_checkout(checkout):
    tmp_path = checkout
    env = {"PYTHONPATH": str(tmp_path / "src")}
    made = etude("new", "my-paper", "--room", "trust", "--folder", tmp_path, cwd=tmp_path, env=env)
    assert made.returncode == 0, made.stderr
    again = etude("new", "my-paper", "--room", "trust", "--folder", tmp_path, cwd=tmp_path, env=env)
    one_line(again, 2, "exists already")
    one_line(etude("new", "class", "--folder", tmp_path, cwd=tmp_path, env=env), 2, "word of Python")
    run = etude("run", "my-paper", "--json", "--no-report", "--set", "steps=5", cwd=tmp_path, env=env)
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout)[0]["state"] == "done"
    test = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "--import-mode=importlib",
        str(tmp_path / "tests"),
    ]
    assert subprocess.run(test, cwd=tmp_path, env=os.environ | env, check=False).returncode == 0
    ruff_is_clean(tmp_path)
    study = tmp_path / "src" / "etude" / "studies" / "my_paper.py"
    study.write_text(study.read_text() + "def broken(:\n")
    one_line(etude("run", "my-paper", cwd=tmp_path, env=env), 3, "my_paper.py", "line")
    said = etude("verdicts", "my-paper", "--json", cwd=tmp_path, env=env)  # what was measured is still shown
    assert said.returncode == 0, said.stderr
    assert all(v["stale"] for v in json.loads(said.stdout))


def ruff_is_clean(folder):
    ruff = shutil.which("ruff", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    for rule in (("check",), ("format", "--check")) if ruff else ():
        said = subprocess.run([ruff, *rule, "--no-cache", "."], cwd=folder, capture_output=True, text=True, check=False)
        assert said.returncode == 0, said.stdout + said.stderr


def everything(folder):
    return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_new_papers_of_every_room_are_sorted_in(checkout):
    for room in library.ROOMS:
        scaffold(f"new-{room}", room, checkout)
    for slug, room in (("a-b", "training"), ("z-trick", "training"), ("a" * 40, "hypernetworks"), ("set2", "text")):
        assert len(scaffold(slug, room, checkout)) == 6
    ruff_is_clean(checkout)
    exports = (checkout / "src" / "etude" / "generative" / "__init__.py").read_text()
    assert "from etude.generative.new_generative import NewGenerative as NewGenerative\n" in exports


@pytest.mark.parametrize(
    ("slug", "room", "text"),
    [("pointer-network", "layers", "'PointerNetwork' already"), ("prune", "compression", "'prune' already"),
     ("arm", "layers", "'Arm' already"), ("train", "layers", "'TrainConfig' already"), ("none", "layers", "word of Py"),
     ("a" * 41, "layers", "shorten it to 40"), ("x", "data", "unknown room 'data'")],
)  # fmt: skip
def test_a_new_paper_replaces_no_name(checkout, slug, room, text):
    before = everything(checkout)
    with pytest.raises(UsageError, match=text):
        scaffold(slug, room, checkout)
    assert everything(checkout) == before


def test_a_folder_that_is_no_checkout_gets_no_paper(tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path, tmp_path / "file", tmp_path / "none"):
        with pytest.raises(UsageError, match="is no checkout of etude .*give --folder"):
            scaffold("my-paper", "layers", folder)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("last", ["test_my_paper.py", "__init__.py"])
def test_a_new_paper_on_a_full_disk_leaves_nothing(checkout, monkeypatch, last):
    before, write = everything(checkout), Path.write_text

    def full(path, text, **options):
        write(path, text[:10], **options)
        if last in path.name:
            raise OSError(28, "No space left on device")
        return write(path, text, **options)

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(UsageError, match="my-paper cannot be written: .*No space left"):
        scaffold("my-paper", "trust", checkout)
    assert everything(checkout) == before


def test_settings_of_a_study(tmp_path):
    text = etude("show", SLUG, "--settings", cwd=tmp_path)
    assert text.returncode == 0, text.stderr
    assert "n_seeds" in text.stdout
    found = json.loads(etude("show", SLUG, "--settings", "--json", cwd=tmp_path).stdout)
    assert found["kinds"]
    by_name = {s["name"]: s for s in found["settings"]}
    assert by_name["n_seeds"]["values"]["quick"] == 3
    assert "seeds" in by_name["n_seeds"]["what"] or "repetitions" in by_name["n_seeds"]["what"]
    assert list(tmp_path.iterdir()) == []


def test_confirm(done):
    folder, _ = done
    result = etude("confirm", "--tier", "quick", cwd=folder)
    assert (result.returncode, result.stdout.strip()) == (0, "No quick run in the ledger is stale.")
    one_line(etude("confirm", SHORT, cwd=folder), 2, f"no finished laptop run of {SHORT}", "--tier laptop")
    one_line(etude("confirm", SHORT, "--tier", "quick", "--seeds", "0", cwd=folder), 2, "at least 1")
    one_line(etude("confirm", "nothing-such", cwd=folder), 2, "nothing-such")
