import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from etude.catalogue import CatalogueError, json_schema, load, papers, parse_card
from etude.errors import UsageError

# `etude.catalogue.load` is the function; the module of that name stands in sys.modules
MODULE = sys.modules["etude.catalogue.load"]
REPOSITORY = Path(__file__).parents[2]

CARD = """
slug = "{slug}"
title = "A paper"
authors = "A. Author"
year = 2020
kind = "method"
room = "layers"
tags = ["memory"]
summary = "{summary}"

[[claims]]
id = "T1"
statement = "It helps."
metric = {{ name = "accuracy", unit = "points", better = "higher" }}
arms = {{ method = "ours", baseline = "theirs" }}
relation = "greater"
margin = 1
paper = {{ source = "abstract" }}
"""
SUMMARY = "word " * 70


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty catalogue in a temporary folder."""

    def forget() -> None:
        MODULE.papers.cache_clear()
        MODULE._read.cache_clear()

    monkeypatch.setattr(MODULE, "_folder", lambda: tmp_path)
    forget()
    yield tmp_path
    forget()


def write(folder: Path, slug: str, text: str = CARD) -> None:
    (folder / f"{slug}.toml").write_text(text.format(slug=slug, summary=SUMMARY), encoding="utf-8")


def test_papers_are_sorted_and_cached(folder: Path) -> None:
    write(folder, "b-paper")
    write(folder, "a-paper")
    (folder / "notes.md").write_text("not a card")
    first = papers()
    assert [p.slug for p in first] == ["a-paper", "b-paper"]
    assert papers() is first
    assert load("b-paper") is first[1]


def test_empty_catalogue(folder: Path) -> None:
    assert papers() == ()


def test_unknown_slug_names_the_nearest(folder: Path) -> None:
    write(folder, "train-longer")
    write(folder, "gpicl")
    with pytest.raises(UsageError, match=r"'train_longr'.*did you mean train-longer") as caught:
        load("train_longr")
    assert "gpicl" not in str(caught.value)
    with pytest.raises(UsageError, match="lists them all"):
        load("zzzzzz")


def test_slug_cannot_leave_the_folder(folder: Path) -> None:
    write(folder.parent, "outside")
    with pytest.raises(UsageError, match="no paper has the slug"):
        load("../outside")


def test_toml_syntax_error_names_file_and_line(folder: Path) -> None:
    write(folder, "broken", CARD.replace('title = "A paper"', 'title = "A paper'))
    with pytest.raises(CatalogueError, match=r"broken\.toml: not valid TOML: .*line 3"):
        load("broken")


def test_schema_errors_are_one_line_each_with_file_and_field() -> None:
    text = CARD.replace('"higher"', '"up"').replace("year = 2020", "year = 1900").format(slug="x", summary=SUMMARY)
    with pytest.raises(CatalogueError) as caught:
        parse_card(text, name="x.toml")
    lines = str(caught.value).splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("x.toml: year: ")
    assert lines[1].startswith("x.toml: claims[T1].metric.better: ")


def test_a_rule_over_several_fields_names_the_claim() -> None:
    text = CARD.replace("margin = 1\n", "").format(slug="x", summary=SUMMARY)
    with pytest.raises(CatalogueError, match=r"^x\.toml: claims\[T1\]: claim T1: .*needs margin$"):
        parse_card(text, name="x.toml")


def test_unknown_key_is_an_error() -> None:
    text = CARD.replace("margin = 1", "margin = 1\nmargins = 2").format(slug="x", summary=SUMMARY)
    with pytest.raises(CatalogueError, match=r"claims\[T1\]\.margins"):
        parse_card(text, name="x.toml")


def test_stem_must_be_the_slug(folder: Path) -> None:
    write(folder, "one")
    (folder / "one.toml").rename(folder / "two.toml")
    with pytest.raises(CatalogueError, match=r"two\.toml: slug: 'one' must equal .* 'two'"):
        load("two")


def test_not_utf8(folder: Path) -> None:
    (folder / "latin.toml").write_bytes(b'title = "caf\xe9"')
    with pytest.raises(CatalogueError, match=r"latin\.toml: cannot be read as UTF-8"):
        load("latin")


def test_papers_reports_every_broken_card_and_load_still_reads_a_sound_one(folder: Path) -> None:
    write(folder, "sound")
    write(folder, "bad-a", "title = ")
    write(folder, "bad-b", CARD.replace('room = "layers"', 'room = "attic"'))
    with pytest.raises(CatalogueError) as caught:
        papers()
    assert "bad-a.toml: not valid TOML" in str(caught.value)
    assert "bad-b.toml: room: " in str(caught.value)
    assert load("sound").slug == "sound"


def test_wrapped_summary_is_one_paragraph() -> None:
    text = CARD.format(slug="x", summary="@").replace('"@"', '"""\n' + "some\nwords  here\n" * 30 + '"""')
    assert parse_card(text, name="x.toml").summary == " ".join(["some words here"] * 30)


def test_committed_schema_is_current() -> None:
    committed = json.loads((REPOSITORY / "docs" / "card.schema.json").read_text(encoding="utf-8"))
    assert committed == json_schema(), (
        "write it anew: python -c 'import json, etude; "
        "print(json.dumps(etude.catalogue.json_schema(), indent=2))' > docs/card.schema.json"
    )


def test_schema_knows_the_closed_lists_and_the_field_notes() -> None:
    properties = json_schema()["properties"]
    assert "kernels" in properties["room"]["enum"]
    assert properties["year"]["description"] == "Year of first publication."


def test_importing_the_catalogue_is_light() -> None:
    code = (
        "import sys, etude.catalogue; "
        "print([m for m in ('torch', 'numpy', 'scipy', 'sklearn', 'pandas') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
