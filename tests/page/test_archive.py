"""Days, weeks and months of the archive, and the random order: addresses, pages, API, feeds, both data bases."""

import re
from datetime import UTC, datetime

import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("fastapi", reason="the extra web is not installed")
from tests.page.test_community import single  # noqa: F401

from etude.catalogue import papers
from etude.errors import UsageError
from etude.page import notes, store
from etude.page import tables as t
from etude.page.importers import read
from etude.page.listing import listing
from etude.page.periods import KINDS, archive, containing, period_of
from etude.page.records import make_record
from etude.page.search.query import parse

NOW = 1_790_000_000  # Monday 21 September 2026
DAY = 86_400
TIMES = st.integers(40 * DAY, 4_000_000_000)


def at(text):
    return int(datetime.strptime(text, "%Y-%m-%d %H:%M").replace(tzinfo=UTC).timestamp())


@given(st.sampled_from(KINDS), TIMES)
def test_periods_tile_time(kind, moment):
    period = containing(kind, moment)
    assert period.start <= moment < period.end
    assert period.after.before == period == period.before.after
    assert period.after.start == period.end
    assert period_of({kind: period.name}, 5_000_000_000) == period


@pytest.mark.parametrize(
    ("kind", "name", "first", "words"),
    [
        ("date", "2024-02-29", "2024-02-29 00:00", "29 February 2024"),
        ("week", "2020-W53", "2020-12-28 00:00", "week 53 of 2020"),
        ("week", "2021-W01", "2021-01-04 00:00", "week 01 of 2021"),
        ("month", "2025-12", "2025-12-01 00:00", "December 2025"),
    ],
)
def test_names_are_those_of_the_calendar(kind, name, first, words):
    period = period_of({kind: name}, NOW)
    assert (period.start, period.name, period.words) == (at(first), name, words)


@pytest.mark.parametrize(
    "values",
    [{"date": "2026-02-30"}, {"date": "tomorrow"}, {"week": "2026-W60"}, {"month": "2026-13"}, {"month": "9999-12"},
     {"date": "2026-09-22"}, {"date": "0001-01-01"}, {"month": "1969-12"}, {"date": "2026-09-20' OR 1=1"}],
)  # fmt: skip
def test_what_is_no_period_is_refused(values):
    with pytest.raises(UsageError, match="date|1970"):
        period_of(values, NOW)


def spread_over_days(site, times):
    with site.db.begin() as c:
        ids = [r.id for r in c.execute(sa.select(t.paper.c.id).order_by(t.paper.c.id))]
        c.execute(sa.update(t.paper).values(submitted_at=at("2026-09-20 12:00")))
        for number, moment in zip(ids, times):
            c.execute(sa.update(t.paper).where(t.paper.c.id == number).values(submitted_at=moment))
    return [r["slug"] for r in site.db.rows(sa.select(t.paper.c.slug).order_by(t.paper.c.id).limit(len(times)))]


def slugs(page):
    return re.findall(r'id="vote-([^"]+)"', page.text)


def test_the_list_of_a_day_week_and_month(single):  # noqa: F811
    mine = spread_over_days(
        single.site, [at("2026-08-31 23:59"), at("2026-09-01 00:00"), at("2026-09-01 23:59"), at("2026-09-02 00:00")]
    )
    assert sorted(slugs(single.get("/?date=2026-09-01"))) == sorted(mine[1:3])
    assert sorted(slugs(single.get("/?week=2026-W36"))) == sorted(mine)
    assert slugs(single.get("/?month=2026-08")) == mine[:1]
    assert len(slugs(single.get("/?month=2026-09"))) == 25
    assert "<h1>Papers of 1 September 2026</h1>" in single.get("/?date=2026-09-01").text
    assert "No paper came then" in single.get("/?date=2020-01-01").text
    day = single.get("/?date=2026-09-01&sort=new").text
    assert '"/?date=2026-08-31" rel="prev"' in day and '"/?date=2026-09-02" rel="next"' in day
    assert 'rel="next"' not in single.get("/?date=2026-09-21").text, "tomorrow has no papers yet"
    assert 'name="date" value="2026-09-01"' in day, "filters are set inside the day"
    found = {p["slug"] for p in single.get("/api/papers?date=2026-09-01").json()["papers"]}
    assert found == set(mine[1:3])
    assert single.get("/feed.atom?date=2026-09-01").text.count("<entry>") == 2
    for address in ("/?date=x", "/api/papers?week=x", "/feed.atom?month=2026-10"):
        assert single.get(address).status_code == 400, address
    daily = {p["paper"]["title"] for p in single.get("/api/daily_papers?date=2026-09-01").json()}
    assert len(daily) == 2
    assert "not a date" in single.get("/api/daily_papers?date=x").json()["error"]


def test_the_archive_counts_and_leads_to_every_day(single):  # noqa: F811
    mine = spread_over_days(single.site, [at("2026-08-31 23:59"), at("2026-09-01 00:00")])
    with single.site.db.begin() as c:
        c.execute(sa.update(t.paper).where(t.paper.c.slug == mine[1]).values(hidden=True))
    months = archive(single.site.db)
    assert [(m["period"].name, m["papers"]) for m in months] == [("2026-09", len(papers()) - 2), ("2026-08", 1)]
    page = single.get("/archive").text
    for address in ("/?month=2026-08", "/?date=2026-08-31", "/?week=2026-W36", "/?date=2026-09-20"):
        assert f'href="{address}"' in page
        assert slugs(single.get(address))
    assert "2026-09-01" not in page, "a hidden paper leaves no trace"
    assert 'href="/archive"' in single.get("/").text


def test_random_order_shows_every_paper_once_and_stays_while_one_turns_pages(single):  # noqa: F811
    def walk(seed):
        seen, address = [], f"/?sort=random&seed={seed}"
        while address:
            page = single.get(address)
            seen += slugs(page)
            found = re.search(r'class="more"><a href="([^"]+)"', page.text)
            address = found and found.group(1).replace("&amp;", "&")
        return seen

    first, second = walk(1), walk(2)
    assert len(first) == len(set(first)) == len(papers())
    assert sorted(first) == sorted(second) and first != second
    assert walk(1) == first
    assert sum(a == b for a, b in zip(first, second)) < 10
    today = single.get("/?sort=random")
    assert slugs(today) == slugs(single.get(f"/?sort=random&seed={NOW // DAY}"))
    assert "Shuffle again" in today.text and f"seed={NOW // DAY + 1}" in today.text
    again = single.get("/api/papers?sort=random&seed=1&limit=25").json()["papers"]
    assert [p["slug"] for p in again] == first[:25]
    assert single.get("/?sort=random&seed=abc").status_code == 400
    assert single.get("/?sort=random&seed=99999999999").status_code == 400
    assert single.get("/api/papers?sort=random&seed=-1").status_code == 422


def test_both_data_bases_have_the_same_random_order_and_archive(database):
    records = [make_record(title=f"A paper of number {i} with its own title", abstract=f"words {i}") for i in range(40)]
    for i, record in enumerate(records):
        store.add_all(database, [record], source="test", now=NOW + i * DAY)
    got, cursor = [], None
    while True:
        page = listing(database, sort="random", seed=3, limit=7, cursor=cursor, now=NOW)
        got += [r["title"] for r in page.rows]
        cursor = page.cursor
        if cursor is None:
            break
    numbers = [int(re.search(r"number (\d+)", title).group(1)) for title in got]
    assert sorted(numbers) == list(range(40)) and numbers != sorted(numbers, reverse=True)
    assert sum(m["papers"] for m in archive(database)) == 40
    assert [m["period"].name for m in archive(database)] == ["2026-10", "2026-09"]


@pytest.mark.parametrize(("q", "total"), [("-zzzz", len(papers())), ("learning network -zzzz", None)])
def test_a_search_goes_on_to_its_last_paper(single, q, total):  # noqa: F811
    whole, cursor, found = single.get("/api/papers", params={"q": q, "limit": 100}).json(), None, []
    while cursor or not found:
        part = single.get("/api/papers", params={"q": q, "limit": 2 if total is None else 20, "cursor": cursor}).json()
        found += [p["slug"] for p in part["papers"]]
        cursor = part["next"]
    assert found == [p["slug"] for p in whole["papers"]] and whole["next"] is None
    assert len(set(found)) == len(found) >= 3 and len(found) == (total or len(found))
    assert single.get("/api/papers", params={"q": q, "cursor": "nonsense"}).status_code == 400


def test_the_page_of_a_search_leads_to_the_following(single):  # noqa: F811
    first = single.get("/search?q=-zzzz")
    assert "50 papers on this page" in first.text
    (following,) = re.findall('<p class="more"><a href="([^"]+)"', first.text)
    second = single.get(following.replace("&amp;", "&"))
    assert len(slugs(second)) == len(papers()) - 50 and not set(slugs(first)) & set(slugs(second))
    assert 'class="more"' not in second.text
    assert parse("has:nothing") == parse("has nothing")  # no filter, so two words
    assert parse("“graph neural” author:„Kaixiong Zhou“") == parse('"graph neural" author:"Kaixiong Zhou"')


def test_what_came_since(single):  # noqa: F811
    moment = at("2026-09-20 18:00")
    (first,) = spread_over_days(single.site, [moment])
    for since in ("2026-09-20T17:00:00Z", "2026-09-20T19:00+02:00", "2026-09-20T17:00", str(moment)):
        assert [p["slug"] for p in single.get("/api/papers", params={"since": since}).json()["papers"]] == [first]
    assert single.get("/api/papers?since=2026-09-21").json()["papers"] == []
    narrowed = {"since": "2026-09-20T17:00", "window": "month"}
    assert len(single.get("/api/papers", params=narrowed).json()["papers"]) == 1
    for since in ("yesterday", "-1", "9" * 30):
        assert single.get("/api/papers", params={"since": since}).status_code == 400


def test_a_paper_answers_to_its_identifiers(single):  # noqa: F811
    old = make_record(title="Old strings", abstract="words", arxiv_id="hep-th/9901001", doi="10.1000/a/b")
    store.add_all(single.site.db, [old], source="form", now=NOW)
    for name in ("hep-th/9901001", "hep-th%2F9901001", "10.1000/a/b"):
        answer = single.get(f"/paper/{name}", follow_redirects=False)
        assert (answer.status_code, answer.headers["location"]) == (301, "/paper/old-strings")
        assert single.get(f"/api/papers/{name}").json()["slug"] == "old-strings"
        assert "Old strings" in single.get(f"/paper/{name}.bib").text
        assert single.get(f"/badge/{name}.svg").status_code == 200
    (card,) = single.site.db.rows(sa.select(t.paper).where(t.paper.c.slug == "pointer-networks"))
    moved = single.get(f"/paper/{card['arxiv_id']}", follow_redirects=True)
    assert moved.url.path == "/paper/pointer-networks"
    by_name, by_id = (single.get(f"/api/papers/{n}/claims").json() for n in ("pointer-networks", card["arxiv_id"]))
    assert by_name == by_id
    assert all(row["statement"] and (row["verdict"] or row["why_not"]) for row in by_id) and len(by_id) > 3
    assert any(row["paper"] and row["paper"]["source"] for row in by_id)
    assert single.get("/api/papers/old-strings/claims").json() == []
    csrf = re.search(r'name="csrf" value="([^"]+)"', single.get("/subscribe").text).group(1)
    note = {"csrf": csrf, "text": "no", "claim": by_id[0]["claim"], "kind": "dispute"}
    assert single.post(f"/paper/{card['arxiv_id']}/notes", data=note, follow_redirects=False).status_code == 303
    assert single.get("/paper/nothing/at/all").status_code == 404
    assert single.get("/api/papers/nothing/at/all").status_code == 404


@pytest.mark.parametrize("address", ["/feed.atom", "/badge/gpicl.svg", "/api/papers/gpicl"])
def test_an_answer_that_a_client_has_is_not_sent_again(single, address):  # noqa: F811
    tag = single.get(address).headers["etag"]
    for known in (tag, f"W/{tag}", f'"other", {tag}'):
        assert single.get(address, headers={"if-none-match": known}).status_code == 304, known
    assert single.get(address, headers={"if-none-match": '"other"'}).status_code == 200


def test_our_own_daily_papers_read_back_change_nothing(single):  # noqa: F811
    s = single.site
    bare = make_record(title="Bare", extra={"organization": "A Lab", "code_stars": 7}, url="https://x.example")
    store.add_all(s.db, [bare], source="form", now=NOW)
    me = s.me()
    with s.db.begin() as c:
        number = c.execute(sa.select(t.paper.c.id).where(t.paper.c.slug == "bare")).scalar_one()
        notes.add_note(c, number, me, "words", claim=None, now=NOW)
        c.execute(sa.update(t.paper).where(t.paper.c.id == number).values(submitted_by=me["id"]))
    answer = single.get("/api/daily_papers?limit=100")
    first = answer.json()[0]
    assert (first["numComments"], first["submittedBy"]["name"]) == (1, "me")
    assert (first["paper"]["organization"]["fullname"], first["paper"]["githubStars"]) == ("A Lab", 7)
    assert all(item["submittedBy"]["fullname"] for item in answer.json())
    assert {m.status for m in store.preview(s.db, read(answer.text, now=NOW).records)} == {"duplicate"}


def test_wide_things_scroll_inside_and_are_reached_by_keys(single):  # noqa: F811
    text = single.get("/paper/pointer-networks").text + single.get("/outbox").text
    for found in re.findall(r'<(?:pre|div class="scroll")[^>]*>', text):
        assert 'tabindex="0" role="region" aria-label="' in found
    assert "<details open><summary>Summary</summary>" in text
