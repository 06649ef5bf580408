"""Importers: the formats as they really come, and whatever else people paste."""

import logging
import os
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from etude.errors import DataError
from etude.page.citations import bibtex
from etude.page.importers import read, saved_page
from etude.page.importers.bibtex import split_names
from etude.page.importers.latex import decode_accents
from etude.page.importers.saved_page import classify, complete_date

NOW = int(datetime(2026, 11, 22, tzinfo=UTC).timestamp())
ABSTRACT = "We show that a thing works, and how, and why it does not work elsewhere. " * 5

PAGE = f"""new

Get trending papers in your email inbox!

Subscribe

byAK and the research community

Mar 14

Pointer Networks

{ABSTRACT}

12

Submitted by

3 authors

· 7

Calibrated Language Models Must Hallucinate

{ABSTRACT}

arXiv:2311.14648v3

Nov 30, 2023

What comes after transformers? -- A selective survey connecting ideas in deep learning

{ABSTRACT}
"""


def test_saved_page_with_its_furniture():
    got = read(PAGE, now=NOW)
    assert got.format == "saved-page"
    assert [r.title for r in got.records][:2] == ["Pointer Networks", "Calibrated Language Models Must Hallucinate"]
    assert len(got.records) == 3
    assert got.unreadable == ()
    first, second, third = got.records
    assert first.extra["hf_upvotes"] == 12
    assert first.extra["people"] == ["Submitted by", "3 authors", "· 7"]
    assert (second.arxiv_id, second.arxiv_version) == ("2311.14648", 3)
    assert datetime.fromtimestamp(first.published_at, UTC).date().isoformat() == "2026-03-14"
    assert first.published_inferred
    assert datetime.fromtimestamp(second.published_at, UTC).date().isoformat() == "2023-11-30"
    assert not second.published_inferred
    assert third.published_at == first.published_at, (
        "a date belongs to the paper it follows, that of the head to others"
    )
    assert first.where == "line 11"


@pytest.mark.parametrize("change", [lambda t: t.replace("\n", "\r\n"), lambda t: "\ufeff" + t, lambda t: t + "\n\n\n"])
def test_line_ends_and_byte_order_mark_change_nothing(change):
    assert [r.title for r in read(change(PAGE).encode(), now=NOW).records] == [
        r.title for r in read(PAGE, now=NOW).records
    ]


def test_truncated_in_the_middle_reports_the_rest():
    cut = PAGE[: PAGE.index("What comes") + 40]
    got = read(cut, now=NOW)
    assert len(got.records) == 2
    assert got.unreadable[0].reason == "a title without an abstract"
    assert got.unreadable[0].line > 20


def test_two_titles_and_an_orphan_abstract_are_reported_with_their_line():
    got = read(f"{ABSTRACT}\n\nOne Title\n\nAnother Title\n\n{ABSTRACT}", now=NOW)
    assert [r.title for r in got.records] == ["Another Title"]
    assert [(u.line, u.reason) for u in got.unreadable] == [
        (1, "an abstract without a title"), (3, "a title without an abstract")
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        (PAGE.replace("\n", " "), "one single paragraph"),
        ("", "empty"),
        ("   \n \n", "empty"),
        ("just a line", "no paper was found"),
        ("\x00\x01\x02 binary", "not text"),
        ("<feed><entry>", "not well-formed"),
        ('<!DOCTYPE x [<!ENTITY a "b">]><x>&a;</x>', "refused"),
        ("<html><body/></html>", "not an Atom feed"),
        ("[1, 2", "not JSON"),
        ("[" * 100 + "]" * 100, "nested deeper"),
        ('{"error": "date in the future"}', "date in the future"),
    ],
)
def test_what_cannot_be_read_gets_advice(text, advice):
    with pytest.raises(DataError, match=advice):
        read(text, now=NOW)


def test_too_large(monkeypatch):
    from etude.page.importers import reading

    monkeypatch.setattr(reading, "MAX_BYTES", 1000)
    with pytest.raises(DataError, match="split it"):
        read(PAGE.encode(), now=NOW)


@pytest.mark.skipif("ETUDE_DATA" not in os.environ, reason="needs ETUDE_DATA with the saved page")
def test_the_real_dump_holds_52_papers_of_the_catalogue():
    from etude import catalogue
    from etude.page.identity import title_key

    text = (Path(os.environ["ETUDE_DATA"]) / "saved_page" / "papers-page.txt").read_bytes()
    got = read(text, now=NOW)
    assert len(got.records) == 52
    assert got.unreadable == ()
    titles = {title_key(p.title) for p in catalogue.papers()}
    assert {title_key(r.title) for r in got.records} <= titles


@pytest.mark.parametrize(
    ("day", "now", "expected", "inferred"),
    [
        ("Mar 14", "2026-11-22", "2026-03-14", True),
        ("Dec 31", "2026-01-01", "2025-12-31", True),
        ("Jan 1", "2026-01-01", "2026-01-01", True),
        ("Feb 29", "2026-03-05", "2024-02-29", True),
        ("Nov 23, 2022", "2026-01-01", "2022-11-23", False),
    ],
)
def test_dates_without_a_year(day, now, expected, inferred):
    at, guessed = complete_date(day, int(datetime.fromisoformat(now + "T06:00:00+00:00").timestamp()))
    assert datetime.fromtimestamp(at, UTC).date().isoformat() == expected
    assert guessed is inferred


@pytest.mark.parametrize(
    ("text", "kind"),
    [("Pointer Networks", "title"), (ABSTRACT, "abstract"), ("Mar 14", "date"), ("1,204", "count"), ("Subscribe", "header"),
     ("Submitted by akhaliq", "people"), ("https://arxiv.org/abs/1506.03134v2", "arxiv"), ("March of the Models", "title"),
     ("May I Ask?", "title")],
)  # fmt: skip
def test_blocks(text, kind):
    assert classify(text) == kind


@pytest.mark.parametrize(
    ("latex", "text"),
    [(r'na\"{\i}ve', "naïve"), (r"\L ojasiewicz", "Łojasiewicz"), (r"Schr{\"o}dinger", "Schrödinger"),
     (r"{O}(\sqrt T)", r"{O}(\sqrt T)"), (r"$\alpha$ \'{e}", r"$\alpha$ é"), ("plain", "plain"),
     (r"S{\o}ren {\L}ukasz", "Søren Łukasz"), (r"Stra{\ss}e in \AA{}rhus", "Straße in Århus"), (r"\'{\i}x", "íx")],
)  # fmt: skip
def test_accents_but_not_formulas(latex, text):
    assert decode_accents(latex) == text


ATOM = """<?xml version="1.0" encoding="UTF-8"?>
<feed xmlns="http://www.w3.org/2005/Atom" xmlns:arxiv="http://arxiv.org/schemas/atom">
<entry><id>http://arxiv.org/abs/1706.03762v7</id><published>2017-06-12T17:57:34Z</published><updated>2023-08-02T00:41:18Z</updated>
<title>Attention Is All
  You Need</title><summary>  The dominant
 models. </summary><author><name>Ashish Vaswani</name><arxiv:affiliation>X</arxiv:affiliation></author>
<arxiv:doi>10.1000/ABC</arxiv:doi><arxiv:comment>15 pages</arxiv:comment><arxiv:primary_category term="cs.CL"/>
<category term="cs.CL"/><category term="cs.LG"/><link title="pdf" href="http://arxiv.org/pdf/1706.03762v7" rel="related"/></entry>
<entry><id>http://arxiv.org/abs/solv-int/9901001v1</id><title>Old</title><summary>s</summary></entry>
<entry><id>http://elsewhere.org/1</id><title>Strange</title></entry>
</feed>"""


def test_atom():
    got = read(ATOM)
    new, old = got.records
    assert (new.title, new.arxiv_id, new.arxiv_version, new.doi) == (
        "Attention Is All You Need", "1706.03762", 7, "10.1000/abc"
    )  # fmt: skip
    assert new.authors == ("Ashish Vaswani",)
    assert new.tags == ("cs.cl", "cs.lg")
    assert new.abstract == "The dominant models."
    assert (old.arxiv_id, old.arxiv_version) == ("solv-int/9901001", 1)
    assert got.unreadable[0].line == 3
    error = ATOM.split("<entry>")[0] + "<entry><title>Error</title><summary>bad id</summary></entry></feed>"
    with pytest.raises(DataError, match="bad id"):
        read(error)


def test_hf_daily():
    item = (
        '{"paper": {"id": "2401.00001", "title": "T", "summary": "s", "upvotes": 9, "authors": [{"name": "A"}, '
        '{"name": "B", "hidden": true}], "publishedAt": "2024-01-01T10:00:00.000Z", '
        '"submittedOnDailyAt": "2024-01-02T00:00:00.000Z"}, "numComments": 4}'
    )
    (paper,) = read(f"[{item}]").records
    assert paper.authors == ("A",)
    assert (paper.extra["hf_upvotes"], paper.extra["hf_comments"]) == (9, 4)
    assert datetime.fromtimestamp(paper.extra["listed_at"], UTC).isoformat() == "2024-01-02T12:00:00+00:00"
    single = read('{"id": "2401.00001", "title": "T", "summary": "s"}')
    assert single.records[0].arxiv_id == "2401.00001"
    mixed = read(f"[{item}, 3, {{}}]")
    assert len(mixed.records) == 1
    assert [u.line for u in mixed.unreadable] == [2, 3]


BIB = r"""
@string{nips = "NeurIPS"}
@inproceedings{a, title={{Pointer} Networks for $x_{1}$}, author={Vinyals, Oriol and {The Team and Co} and others},
  booktitle=nips, year=2015, month=jun, eprint={1506.03134v2}, archivePrefix={arXiv}}
@weird{b, title="Schr{\"o}dinger \& co", author="Erd\H{o}s, Paul", doi={10.1/X}}
@article{broken, title={x
@article{c, title={Fine}, year=2020}
"""


@pytest.mark.parametrize(
    "furniture",
    ["Submitted by\n\nakhaliq", "3 comments", "Published on Nov 3, 2025", "Nov 3, 2025", "Submitted by\n\nAnn O. Lee"],
)
@pytest.mark.parametrize("place", [0, 1])
def test_furniture_between_and_after_is_no_paper(furniture, place):
    between, after = (f"{furniture}\n\n", "")[:: 1 - 2 * place]
    got = read(f"First One\n\n{between}{ABSTRACT}\n\n{after}Second\n\n{ABSTRACT}\n\nThird\n\n{ABSTRACT}", now=NOW)
    assert [r.title for r in got.records] == ["First One", "Second", "Third"]
    assert got.unreadable == ()
    days = [r.published_at and datetime.fromtimestamp(r.published_at, UTC).date().isoformat() for r in got.records]
    assert days == ["2025-11-03" if "Nov" in furniture else None, None, None]


def test_a_title_after_a_name_that_was_lost_stays_a_title():
    got = read(f"First One\n\n{ABSTRACT}\n\nSubmitted by\n\nSecond\n\n{ABSTRACT}", now=NOW)
    assert [r.title for r in got.records] == ["First One", "Second"]


@pytest.mark.parametrize(
    "title",
    ["An $O(n)$ bound", r"x_i, {B}, \foo, ~ and ^2: 50% of #1", "$5 and $6 -- no more", r"Of {\x} --- or $\{a\}$"],
)
def test_our_own_bibtex_comes_back(title):
    row = {"title": title, "authors": [{"name": "Ann O. Lee"}], "venue": "J. of {K} & L", "extra": {}, "slug": "x",
           "published_at": None, "doi": None, "arxiv_id": None, "url": None}  # fmt: skip
    (back,) = read(bibtex(row)).records
    assert (back.title, back.authors, back.venue) == (title, ("Ann O. Lee",), "J. of {K} & L")


def test_bibtex_joins_strings_and_reads_accents_with_a_blank():
    text = """@string{nips = "NeurIPS"} @string{shop = nips # " Workshop"}
    @book{a, title = "One \\# two", booktitle = nips # " 30", author = {Erd{\\H o}s, Paul}}
    @book{b, title = {"So" # he said}, booktitle = shop}"""
    a, b = read(text).records
    assert (a.title, a.venue, a.authors) == ("One # two", "NeurIPS 30", ("Paul Erdős",))
    assert (b.title, b.venue) == ('"So" # he said', "NeurIPS Workshop")


def test_bibtex_reads_names_of_more_parts_and_drops_fonts():
    text = r"""@book{a, title = {J. of \emph{Things} in {\it bold} $\emph{x}$}, author = {van der Waals, Jan and Smith, Jr., Bob
    and Cee, D., Jr.}}"""
    (record,) = read(text).records
    assert record.title == r"J. of Things in bold $\emph{x}$"
    assert record.authors == ("Jan van der Waals", "Bob Smith Jr.", "D. Cee Jr.")


def test_bibtex(caplog):
    level = logging.getLogger("bibtexparser").level
    got = read(BIB)
    assert caplog.records == []  # the broken entry is said once, below
    assert logging.getLogger("bibtexparser").level == level
    a, b, c = got.records
    assert a.title == "Pointer Networks for $x_{1}$"
    assert a.authors == ("Oriol Vinyals", "The Team and Co et al.")
    assert split_names("others and A. Lee and others and B. Ito") == ["A. Lee et al.", "B. Ito"]
    assert (a.venue, a.arxiv_id, a.arxiv_version) == ("NeurIPS", "1506.03134", 2)
    assert datetime.fromtimestamp(a.published_at, UTC).month == 6
    assert (b.title, b.authors, b.extra["entry_type"]) == ("Schrödinger & co", ("Paul Erdős",), "weird")
    assert c.title == "Fine"
    assert len(got.unreadable) == 1
    assert got.unreadable[0].line > 4


@given(st.text(max_size=400))
def test_any_text_is_read_or_refused_with_advice(text):
    try:
        got = read(text, now=NOW)
    except DataError as error:
        assert len(str(error)) > 10
    else:
        assert all(r.title for r in got.records)


@given(st.lists(st.sampled_from([*PAGE.split("\n\n"), "Title Here", "42", ABSTRACT, "Mar 99", "\x0b"]), max_size=12))
def test_any_order_of_blocks_loses_nothing(parts):
    """Every title and abstract is a paper or reported."""
    try:
        got = read("\n\n".join(parts), now=NOW)
    except DataError:
        return
    kept = [p.strip() for p in parts if p.strip()]
    kinds = [classify(p) for p in kept]
    names = sum(a == "Submitted by" and kind == "title" for a, kind in zip(kept, kinds[1:], strict=False))
    assert 2 * len(got.records) + len(got.unreadable) >= kinds.count("title") + kinds.count("abstract") - names


@pytest.mark.parametrize(("text", "count"), [("37", 37), ("1,204", 1204), ("1.2k", 1200), ("3k", 3000), ("1.2.3k", 0)])
def test_counts_as_pages_write_them(text, count):
    assert saved_page._number(text) == count
    assert saved_page.classify(text) == "count"
