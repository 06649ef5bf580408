"""Digests are kept with the sources that they are of, and never outlive them."""

import pytest

from etude.lab import digest
from etude.lab.digest_memory import remembered_digest


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package of one study, and how often its syntax was read."""
    monkeypatch.setenv("ETUDE_CACHE", str(tmp_path / "cache"))
    root = tmp_path / "etude"
    (root / "studies").mkdir(parents=True)
    study = root / "studies" / "a_paper.py"
    study.write_text("X = 1\n")
    monkeypatch.setattr(digest, "_root", lambda: root)
    read = []
    monkeypatch.setattr(digest, "code_digest", lambda slug, tier: f"{len(read)}" * (read.append(slug) or 1))
    return study, read


def test_the_syntax_is_read_once_for_the_same_sources(package):
    _, read = package
    assert [remembered_digest("a-paper", "quick") for _ in range(3)] == ["0"] * 3
    assert remembered_digest("a-paper", "laptop") == "1"
    assert remembered_digest("a-paper", "quick") == "0"
    assert len(read) == 2


@pytest.mark.parametrize("change", ["edited", "new", "renamed"])
def test_any_change_of_the_sources_is_seen(package, change):
    study, _ = package
    remembered_digest("a-paper", "quick")
    if change == "edited":
        study.write_text("X = 2\n")  # as long as before
    elif change == "new":
        study.with_name("b_paper.py").touch()
    else:
        study.rename(study.with_name("_part.py"))
    assert remembered_digest("a-paper", "quick") == "1"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"sources": 1}'])
def test_a_damaged_file_is_not_believed(package, tmp_path, text):
    remembered_digest("a-paper", "quick")
    (kept,) = (tmp_path / "cache" / "digests").glob("*.json")
    kept.write_text(text)
    assert remembered_digest("a-paper", "quick") == "1"


def test_a_cache_that_cannot_be_written_changes_nothing(package, tmp_path):
    (tmp_path / "cache").write_text("a file where the folder should be")
    assert remembered_digest("a-paper", "quick") == "0"
    assert remembered_digest("a-paper", "quick") == "1"


def test_it_is_the_digest_of_the_code():
    assert remembered_digest("rnn-review", "quick") == digest.code_digest("rnn-review", "quick")
