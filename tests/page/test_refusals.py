"""What a member may not do to others' papers, and what odd requests and imports get: an answer, never a broken page."""

import base64
import json
import time
from datetime import datetime
from email import message_from_string
from email.policy import SMTP
from zoneinfo import ZoneInfo

import pytest
import sqlalchemy as sa

pytest.importorskip("fastapi", reason="the extra web is not installed")

from tests.page.test_community import app, browser, csrf, join, post, single  # noqa: F401

from etude.page import tables as t
from etude.page.citations import bibtex, csl, ris
from etude.page.digest import compose, mail, subscribe
from etude.page.digest.schedule import next_run, window
from etude.page.importers import hf_daily
from etude.page.records import make_record
from etude.page.web.app import HEADERS

HF = {"title": "A paper of its own", "paper": {"id": "2401.12345", "title": "A paper of its own", "summary": "Words."}}


def paper(client, slug):
    return client.site.db.rows(sa.select(t.paper).where(t.paper.c.slug == slug))[0]


def test_nobody_changes_the_papers_of_others_by_adding_them_again(app):  # noqa: F811
    ann, bob = join(app, "ann@example.org", "ann"), join(app, "bob@example.org", "bob")
    mine = post(ann, "/submit", title="A paper of its own", abstract="Mine.", arxiv_id="2401.12345")
    slug = mine.headers["location"].removeprefix("/paper/")
    again = {"title": "HACKED", "arxiv_id": "2401.12345v99", "abstract": "x", "code_url": "https://evil.example/x"}
    assert post(bob, "/submit", **again).headers["location"] == f"/paper/{slug}"
    assert paper(ann, slug)["title"] == "A paper of its own"
    assert paper(ann, slug)["code_url"] is None
    shown = post(
        bob, "/import", text=json.dumps([HF | {"paper": HF["paper"] | {"title": "HACKED", "id": "2401.12345v9"}}])
    )
    assert "duplicate" in shown.text
    post(ann, "/submit", **(again | {"title": "A better title"}))
    assert paper(ann, slug)["title"] == "A better title"
    gaps = {"title": "Pointer Networks", "arxiv_id": "1506.03134", "code_url": "https://evil.example/x"}
    before = paper(bob, "pointer-networks")
    post(bob, "/submit", **gaps)
    assert paper(bob, "pointer-networks") == before


@pytest.mark.parametrize(
    ("address", "fields", "words"),
    [
        ("/subscribe", {"csrf": "x", "email": "a@b.org", "hour": "7.5"}, "hour: "),
        ("/vote/gpicl", {"wanted": "maybe", "csrf": "x"}, "&#39;maybe&#39; was given"),
        ("/vote/gpicl", {"wanted": "true"}, "csrf: Field required"),
    ],
)
def test_a_form_that_is_not_understood_gets_a_page(single, address, fields, words):  # noqa: F811
    answer = single.post(address, data=fields)
    assert answer.status_code == 422
    assert answer.headers["content-type"].startswith("text/html")
    assert words in answer.text
    refused = single.get("/api/papers?limit=many").json()
    assert refused["error"].startswith("limit: ")
    schema = single.get("/openapi.json").json()["paths"]["/api/papers"]["get"]["responses"]["422"]
    assert "Problem" in str(schema)


@pytest.mark.parametrize("at", [10**15, -(10**12), 10**30])
def test_a_time_that_no_calendar_holds_breaks_no_list(single, at):  # noqa: F811
    assert make_record(title="x", published_at=at).published_at is None
    with single.site.db.begin() as c:
        c.execute(sa.update(t.paper).values(published_at=min(max(at, -(2**62)), 2**62)))
    for address in (
        "/",
        "/?sort=new",
        "/api/papers",
        "/api/daily_papers",
        "/search?q=graph",
        "/paper/gpicl",
        "/feed.atom",
    ):
        assert single.get(address).status_code == 200, address


def cursor(value):
    return base64.urlsafe_b64encode(value.encode()).decode()


@pytest.mark.parametrize(
    "address",
    [f"/?cursor={cursor('[1,1,100000000000000000000]')}", f"/?cursor={cursor('[1,1,1e308]')}", f"/?cursor={cursor('[1,1,1e999]')}",
     "/?year=²²²²", f"/api/papers?since={10**23}", "/u/².x", f"/outbox/{10**23}", f"/api/papers?limit={10**30}"],
)  # fmt: skip
def test_odd_addresses_are_refused_in_words(single, address):  # noqa: F811
    answer = single.get(address)
    assert 400 <= answer.status_code < 500
    assert answer.headers["content-security-policy"] == HEADERS["Content-Security-Policy"]


def test_what_breaks_is_a_page_with_its_headers(app, monkeypatch):  # noqa: F811
    from fastapi.testclient import TestClient

    from etude.page.web import pages

    monkeypatch.setattr(pages, "_home", lambda request: 1 / 0)
    with TestClient(app, base_url="http://127.0.0.1:8000", raise_server_exceptions=False) as client:
        answer = client.get("/")
    assert answer.status_code == 500
    assert "the log of the server says what" in answer.text
    assert answer.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(
    "text", ["9" * 5000, '[{"title": "x", "upvotes": ' + "9" * 5000 + "}]", '["\\ud800"]', "A title\n\n" + "9" * 5000]
)
def test_imports_of_nonsense_are_told_what_is_wrong(single, text):  # noqa: F811
    assert post(single, "/import", text=text).status_code in (200, 400, 422)


def test_a_long_unclosed_string_takes_no_time():
    started = time.process_time()
    hf_daily._depth("[" + '\\"' * 15_000)
    assert time.process_time() - started < 2.0


def test_head_is_get_without_the_body(single):  # noqa: F811
    for address in ("/", "/paper/gpicl", "/api/papers", "/feed.atom"):
        got, head = single.get(address), single.head(address)
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["content-type"] == got.headers["content-type"]


def test_years_of_cards_are_found_and_no_list_day_replaces_them(single):  # noqa: F811
    assert "/paper/pointer-networks" in single.get("/?year=2015").text
    found = single.get("/api/papers?year=2015&limit=100").json()["papers"]
    assert {p["year"] for p in found} == {2015}
    assert single.get("/api/papers?year=1970").json()["papers"] == []
    days = {d["paper"]["id"]: d["publishedAt"] for d in single.get("/api/daily_papers?limit=100").json()}
    assert days["1506.03134"] == "2015-01-01T00:00:00Z"
    text = "Mar 14\n\nPointer Networks\n\n" + "We introduce words about sequences and points. " * 10
    post(single, "/import", text=text)
    assert paper(single, "pointer-networks")["published_at"] is None


@pytest.mark.parametrize(
    "query", ["room:layers", "has:study", "author:Vinyals", "verdict:fails distillation", "year:2015"]
)
def test_page_api_and_feed_find_the_same(single, query):  # noqa: F811
    page = single.get("/search", params={"q": query}).text
    api = [p["slug"] for p in single.get("/api/papers", params={"q": query, "limit": 50}).json()["papers"]]
    feed = single.get("/feed.atom", params={"q": query}).text
    assert all(f'href="/paper/{slug}"' in page for slug in api)
    assert feed.count("<entry>") == len(api)
    assert bool(api) == (query != "verdict:fails distillation")


def test_a_paper_by_its_identifier_in_the_api(single):  # noqa: F811
    assert single.get("/api/papers/1506.03134").json()["slug"] == "pointer-networks"
    assert single.get("/api/papers/2999.99999").status_code == 404


ROW = {"slug": "x", "title": "A {B", "abstract": "", "venue": None, "published_at": None, "extra": {"year": 2020},
       "arxiv_id": "2001.00001", "doi": "10.1/a}b", "url": "https://x.org/{y}",
       "authors": [{"name": "Ann B. Lee"}, {"name": "Bo{b"}, {"name": "Maiia Bocharova et al."}]}  # fmt: skip


def test_citations_of_others_and_of_braces():
    text = bibtex(ROW)
    assert text.startswith("@misc{x,")
    assert "Maiia Bocharova and others" in text
    assert text.replace(r"\{", "").replace(r"\}", "").count("{") == text.replace(r"\{", "").replace(r"\}", "").count(
        "}"
    )
    assert [p.get("family") for p in csl(ROW)["author"]] == ["Lee", None, "Bocharova"]
    assert "AU  - Lee, Ann B.\r\n" in ris(ROW)
    assert "et al" not in ris(ROW) + text


def test_citations_of_names_of_more_parts():
    row = ROW | {"authors": [{"name": n} for n in ("Jan van der Waals", "Bob Smith Jr.", "bell hooks", "Plato")]}
    assert "author = {Jan van der Waals and Smith, Jr., Bob and bell hooks and Plato}" in bibtex(row)
    names = [line[6:].strip() for line in ris(row).splitlines() if line.startswith("AU")]
    assert names == ["van der Waals, Jan", "Smith, Bob, Jr.", "hooks, bell", "Plato"]
    assert csl(row)["author"][:2] == [
        {"family": "van der Waals", "given": "Jan"},
        {"family": "Smith", "given": "Bob", "suffix": "Jr."},
    ]


@pytest.mark.parametrize("bad", [{"arxiv_id": "foo"}, {"doi": "nope"}, {"url": "javascript:alert(1)"}])
def test_what_cannot_be_an_identifier_is_said(single, bad):  # noqa: F811
    answer = post(single, "/submit", title="A new one", **bad)
    assert answer.status_code == 422
    assert "cannot be used as" in answer.text


@pytest.mark.parametrize(("zone", "hour"), [("America/Los_Angeles", 20), ("Pacific/Auckland", 7), ("UTC", 7)])
def test_mondays_mail_holds_the_weekend_everywhere(zone, hour):
    at = next_run(1_790_000_000, "weekdays", zone, hour)
    while datetime.fromtimestamp(at, ZoneInfo(zone)).weekday() != 0:
        at = next_run(at, "weekdays", zone, hour)
    saturday = datetime.fromtimestamp(window(at, "weekdays", zone, hour), ZoneInfo(zone))
    assert saturday.weekday() == 4
    assert at - window(next_run(at, "weekdays", zone, hour), "weekdays", zone, hour) <= 3600


def test_old_mails_links_work_after_coming_back(single):  # noqa: F811
    s, now = single.site, int(single.site.now)
    wish = subscribe.Wish(email="ann@example.org", frequency="weekly", zone="UTC", hour=7)
    subscribe.subscribe(s.db, s.settings, wish, network="n", now=now)
    row = s.db.rows(sa.select(t.subscriber))[0]
    old = subscribe.unsubscribe_token(s.settings, row["id"], row["created_at"])
    assert subscribe.unsubscribe(s.db, s.settings, old)
    subscribe.subscribe(s.db, s.settings, wish, network="n", now=now + 86_400)
    assert subscribe.by_token(s.db, s.settings, old) is not None


def bodies(raw):
    """What a reader sees of a mail: its message id and its boundaries are drawn anew each time."""
    return [part.get_content() for part in message_from_string(raw, policy=SMTP).walk() if not part.is_multipart()]


def test_a_mail_that_is_sent_is_short_enough(single):  # noqa: F811
    s, now = single.site, int(single.site.now)
    with s.db.begin() as c:
        c.execute(sa.update(t.paper).values(title="é" * 3000, submitted_at=now - 60))
        values = {"email": "a@example.org", "status": "active", "frequency": "weekly", "zone": "UTC", "hour": 7,
                  "filters": {}, "soft_failures": 0, "created_at": now, "confirmed_at": now, "next_at": now}  # fmt: skip
        c.execute(sa.insert(t.subscriber).values(**values))
    row = s.db.rows(sa.select(t.subscriber))[0]
    seen = compose.preview(s.db, s.settings, row, now)
    assert compose.due(s.db, s.settings, now) == 1
    sent = s.db.rows(sa.select(t.outbox))[-1]["raw"]
    assert len(sent.encode()) <= mail.MAX_BYTES
    assert bodies(seen.raw) == bodies(sent)
    assert len(s.db.rows(sa.select(t.sent_item))) < 10


def test_what_a_run_costs_is_what_the_last_one_was(single, monkeypatch):  # noqa: F811
    from etude.page.web import pages

    monkeypatch.setattr(pages, "cores", lambda: 2)
    assert pages.costs([]) == {"quick": "seconds", "laptop": "some minutes"}
    runs = [{"tier": "laptop", "seconds": 3530.0}, {"tier": "quick", "seconds": 23.0}, {"tier": "gpu", "seconds": 9.0}]
    assert pages.costs(runs) == {"quick": "about 12 seconds", "laptop": "about 30 minutes"}
    assert "some minutes" in single.get("/paper/pointer-networks").text
