import sys

import pytest

from etude.catalogue import Claim, Paper, PaperFigure, search
from etude.errors import UsageError

MODULE = sys.modules["etude.catalogue.search"]


def paper(slug: str, **changes: object) -> Paper:
    claim = Claim(
        id="T1",
        statement="Sparse heads win.",
        status="not_testable",
        reason="size",
        paper=PaperFigure(source="abstract"),
    )
    fields = {
        "slug": slug, "title": "A title", "authors": "B. Bengio", "year": 2015, "kind": "method",
        "room": "layers", "tags": ("memory",), "summary": "word " * 70, "claims": (claim,),
    }  # fmt: skip
    return Paper.model_validate(fields | changes)


@pytest.fixture(autouse=True)
def catalogue(monkeypatch: pytest.MonkeyPatch) -> None:
    cards = (
        paper("a-graph", title="Graph Search", room="decision"),
        paper("b-tagged", tags=("graph", "few-shot")),
        paper("c-plain", summary="a graph is drawn; " + "word " * 70, authors="Émile Durand"),
        paper("rnn-one"),
        paper("rnn-two", year=2020),
    )
    monkeypatch.setattr(MODULE, "papers", lambda: cards)


def slugs(*args: str, **kwargs: str) -> list[str]:
    return [p.slug for p in search(*args, **kwargs)]


def test_without_conditions_all_by_slug() -> None:
    assert slugs() == ["a-graph", "b-tagged", "c-plain", "rnn-one", "rnn-two"]


def test_title_before_tag_before_summary() -> None:
    assert slugs("graph") == ["a-graph", "b-tagged", "c-plain"]


def test_every_word_must_occur() -> None:
    assert slugs("graph few-shot") == ["b-tagged"]
    assert slugs("graph nowhere") == []


def test_case_and_accents_do_not_matter() -> None:
    assert slugs("EMILE durand") == ["c-plain"]


def test_year_authors_and_claims_are_searched() -> None:
    assert slugs("bengio 2020") == ["rnn-two"]
    assert len(slugs("sparse heads")) == 5


def test_room_tag_and_pattern_are_and() -> None:
    assert slugs(room="decision") == ["a-graph"]
    assert slugs(tag="Few-Shot") == ["b-tagged"]
    assert slugs(pattern="rnn-*") == ["rnn-one", "rnn-two"]
    assert slugs("2020", room="layers", tag="memory", pattern="rnn-*") == ["rnn-two"]
    assert slugs(room="decision", pattern="rnn-*") == []


def test_characters_of_query_languages_are_plain_text() -> None:
    for text in ('"', "*", "OR", "(", "%", "\\"):
        assert isinstance(search(text), list)


def test_unknown_room_names_the_rooms() -> None:
    with pytest.raises(UsageError, match=r"no room is called 'attic'.*kernels"):
        search(room="attic")
