"""The page through its HTTP surface: lists, search, votes, imports, subscriptions, feeds, API, guards."""

import os
import re
import shutil
from email import message_from_bytes
from email.policy import SMTP
from pathlib import Path

import pytest
import sqlalchemy as sa

pytest.importorskip("fastapi", reason="the extra web is not installed")
from fastapi.testclient import TestClient

from etude.catalogue import papers
from etude.errors import UsageError
from etude.page import security, store
from etude.page import tables as t
from etude.page.digest.compose import due
from etude.page.digest.schedule import next_run, period
from etude.page.digest.send import Folder, send_due
from etude.page.records import make_record
from etude.page.search.lexical import reindex
from etude.page.settings import Settings, load_secret
from etude.page.web.app import create_app

SECRET = "a test's secret, long enough to be taken"
EVIL = "<img src=x onerror=alert(1)>"


class Clock:
    now = 1_790_000_000.0

    def __call__(self):
        return self.now


@pytest.fixture
def page(tmp_path):
    shutil.copyfile(os.environ["ETUDE_TEST_PAGE"], tmp_path / "p.sqlite")
    settings = Settings(database=str(tmp_path / "p.sqlite"), secret=SECRET, mail_folder=str(tmp_path / "mail"))
    app = create_app(settings, clock=Clock())
    with TestClient(app, base_url="http://127.0.0.1:8000", follow_redirects=False) as client:
        client.site, client.mail = app.state.site, tmp_path / "mail"
        yield client


def token(client, path="/subscribe"):
    return re.search(r'name="csrf" value="([^"]+)"', client.get(path).text).group(1)


def post(client, path, **data):
    return client.post(path, data={"csrf": token(client)} | data)


def test_the_catalogue_is_there_at_once(page):
    first = page.get("/")
    assert first.status_code == 200
    assert first.text.count('class="paper"') == 25
    seen = set(re.findall(r'href="/paper/([^"]+)"', first.text))
    following = re.search(r'href="([^"]*cursor=[^"]*)"', first.text).group(1).replace("&amp;", "&")
    while following:
        text = page.get(following).text
        seen |= set(re.findall(r'href="/paper/([^"]+)"', text))
        found = re.search(r'href="([^"]*cursor=[^"]*)"', text)
        following = found.group(1).replace("&amp;", "&") if found else None
    assert seen == {p.slug for p in papers()}
    assert "2^(-(now - t) / 72 h)" in first.text


@pytest.mark.parametrize(
    ("query", "slug"),
    [("graph architecture", "auto-gnn"), ("autognn", "auto-gnn"), ('"pointer networks"', "pointer-networks"),
     ("room:kernels", "wide-deep-optimal-classification"), ("author:Vinyals", "pointer-networks")],
)  # fmt: skip
def test_search_finds(page, query, slug):
    hits = re.findall(r'<h2><a href="/paper/([^"]+)"', page.get("/search", params={"q": query}).text)
    assert slug in hits[:3]


@pytest.mark.parametrize(
    "query", ['"', "*", "OR", "NEAR(", "😀", "a" * 5000, "' OR 1=1 --", "%", "-", "year:abcd", "\x00"]
)
def test_no_query_is_an_error(page, query):
    assert page.get("/search", params={"q": query}).status_code == 200


def test_an_identifier_jumps(page):
    for text in ("https://arxiv.org/abs/1506.03134v2", "10.48550/arXiv.1506.03134"):
        answer = page.get("/search", params={"q": text})
        assert answer.status_code == 303
        assert answer.headers["location"] == "/paper/pointer-networks"


def test_every_paper_has_a_page(page):
    for slug in [r["slug"] for r in page.site.db.rows(sa.select(t.paper.c.slug))]:
        answer = page.get(f"/paper/{slug}")
        assert answer.status_code == 200, slug
        assert "not re-tested" in answer.text or "not testable" in answer.text or "holds" in answer.text
    for ending in ("bib", "ris", "csl.json"):
        assert page.get(f"/paper/pointer-networks.{ending}").status_code == 200
    assert page.get("/paper/nothing").status_code == 404


def test_vote_needs_the_form_toggles_and_changes_the_order(page):
    assert page.post("/vote/gpicl", data={"csrf": "x" * 64, "wanted": "true"}).status_code == 403
    assert page.get("/vote/gpicl").status_code == 405
    assert post(page, "/vote/gpicl", wanted="true").status_code == 303
    assert post(page, "/vote/gpicl", wanted="true").status_code == 303
    text = page.get("/").text
    assert re.findall(r'<h2><a href="/paper/([^"]+)"', text)[0] == "gpicl"
    assert 'aria-pressed="true"' in text
    part = page.post("/vote/gpicl", data={"csrf": token(page), "wanted": "false"}, headers={"hx-request": "true"})
    assert 'aria-pressed="false"' in part.text
    assert "<b>0</b>" in part.text


def test_other_sites_and_hosts_are_refused(page):
    data = {"csrf": token(page), "wanted": "true"}
    assert page.post("/vote/gpicl", data=data, headers={"origin": "https://evil.example"}).status_code == 403
    assert page.post("/vote/gpicl", data=data, headers={"origin": "http://127.0.0.1:8000"}).status_code == 303
    assert page.get("/", headers={"host": "evil.example"}).status_code == 421


def test_headers(page):
    answer = page.get("/")
    csp = answer.headers["content-security-policy"]
    assert "default-src 'self'" in csp
    assert "script-src 'self';" in csp
    assert "frame-ancestors 'none'" in csp
    assert answer.headers["x-content-type-options"] == "nosniff"
    cookie = page.get("/", headers={"cookie": ""}).headers.get("set-cookie", "")
    assert "HttpOnly" in answer.headers["set-cookie"] or "HttpOnly" in cookie
    assert "SameSite=lax" in answer.headers["set-cookie"]
    assert "<script>" not in answer.text


def test_whatever_is_submitted_is_text_everywhere(page):
    fields = dict.fromkeys(("abstract", "authors", "tags"), EVIL) | {"title": f"Evil {EVIL}"}
    for name in ("url", "code_url", "doi"):
        refused = post(page, "/submit", **(fields | {name: EVIL}))
        assert refused.status_code == 422
        assert "<img src=x" not in refused.text
    answer = post(page, "/submit", **fields)
    assert answer.status_code == 303
    place = answer.headers["location"]
    for path in (place, "/", "/?sort=new", "/search?q=evil", "/feed.atom", f"{place}.bib"):
        text = page.get(path).text
        assert "<img src=x" not in text or path.endswith(".bib")
        assert "javascript:" not in text
    assert page.get(f"/api{place.replace('paper', 'papers')}").json()["url"] is None
    assert "&lt;img src=x" in page.get(f"/api{place.replace('paper', 'papers')}.md").text
    no_title = post(page, "/submit", title="  ")
    assert no_title.status_code == 422
    assert "needs a title" in no_title.text


def test_strange_papers_are_shown(page):
    titles = ["عنوان عربي", "中文标题论文", "T" * 300]
    for title in titles:
        assert post(page, "/submit", title=title).status_code == 303
    many = make_record(title="Many hands", authors=[f"Author {i}" for i in range(3000)])
    store.add_all(page.site.db, [many], source="form", now=1)
    with page.site.db.begin() as c:
        reindex(c, [c.execute(sa.select(sa.func.max(t.paper.c.id))).scalar_one()])
    text = page.get("/paper/many-hands").text
    assert "and 2988 more" in text


PAGE_TEXT = "A Paper That Is New Here\n\n" + "An abstract of many words that say little. " * 12


def test_import_previews_then_stores_once(page):
    preview = post(page, "/import", text=PAGE_TEXT)
    assert "<b>1</b> new" in preview.text
    assert page.get("/paper/a-paper-that-is-new-here").status_code == 404
    made = re.search(r'name="token" value="([^"]+)"', preview.text).group(1)
    assert post(page, "/import/confirm", token=made).status_code == 303
    assert page.get("/paper/a-paper-that-is-new-here").status_code == 200
    assert post(page, "/import/confirm", token=made).status_code == 400
    again = post(page, "/import", text=PAGE_TEXT)
    assert "<b>1</b> duplicate" in again.text
    bad = post(page, "/import", text="   ")
    assert bad.status_code == 422
    assert "empty" in bad.text


def test_library(page):
    assert post(page, "/save/gpicl", wanted="true", tags="to read, icl", note="private words").status_code == 303
    text = page.get("/library").text
    assert "private words" in text
    assert "to read" in text
    assert "private words" not in page.get("/paper/gpicl").text
    post(page, "/save/gpicl", wanted="false")
    assert "Empty" in page.get("/library").text


def test_run_here_queues_once_and_shows_progress(page):
    answer = post(page, "/run/pointer-networks", tier="quick")
    assert answer.status_code == 303
    place = answer.headers["location"]
    assert post(page, "/run/pointer-networks", tier="quick").headers["location"] == place
    shown = page.get(place)
    assert "queued" in shown.text
    assert '<noscript><meta http-equiv="refresh"' in shown.text
    part = page.get(place, headers={"hx-request": "true"})
    assert "<html" not in part.text
    assert "hx-get" in part.text
    for answer in (shown, part):
        assert answer.headers["cache-control"] == "no-store"
        assert "HX-Request" in answer.headers["vary"]
    assert post(page, "/run/gpicl").status_code == 400
    assert post(page, "/run/pointer-networks", tier="gpu").status_code == 400
    assert page.get("/runs/nothing").status_code == 404


def mails(page):
    send_due(page.site.db, Folder(page.mail), clock=page.site.clock)
    found = sorted(Path(page.mail).glob("*.eml"))
    return [message_from_bytes(p.read_bytes(), policy=SMTP) for p in found]


def test_subscribe_confirm_digest_and_one_click_out(page):
    same = [post(page, "/subscribe", email="ann@example.org", frequency="weekly").text for _ in range(2)]
    assert "on its way" in same[0]
    assert "on its way" in same[1]
    message = mails(page)[-1]
    assert message["Auto-Submitted"] == "auto-generated"
    path = re.search(r"http://127.0.0.1:8000(/confirm/\S+)", message.get_body(("plain",)).get_content()).group(1)
    status = lambda: page.site.db.rows(sa.select(t.subscriber))[0]["status"]
    assert page.get(path).headers["referrer-policy"] == "no-referrer"
    assert status() == "pending"
    assert "You are in" in post(page, path).text
    assert status() == "active"
    assert "does not work any more" in post(page, path).text
    store.add_all(page.site.db, [make_record(title=f"Evil {EVIL}", abstract="x")], source="form", now=page.site.now)
    page.site.clock.now += 8 * 86_400
    store.add_all(page.site.db, [make_record(title="Fresh paper", abstract="y")], source="form", now=page.site.now - 60)
    assert due(page.site.db, page.site.settings, page.site.now) == 1
    assert due(page.site.db, page.site.settings, page.site.now) == 0
    sent = mails(page)[-1]
    assert sent["Subject"].startswith("Etude weekly: ")
    assert sent["List-Unsubscribe-Post"] == "List-Unsubscribe=One-Click"
    html = sent.get_body(("html",)).get_content()
    assert "Fresh paper" in html
    assert "<img" not in html
    assert "<script" not in html
    assert len(sent.as_bytes()) < 90_000
    out = re.search(r"<http://127.0.0.1:8000(/u/[^>]+)>", sent["List-Unsubscribe"].replace("\r\n ", "")).group(1)
    page.cookies.clear()
    assert page.get(out).status_code == 200
    assert status() == "active"
    for _ in range(2):
        gone = page.post(
            out, content="List-Unsubscribe=One-Click", headers={"content-type": "application/x-www-form-urlencoded"}
        )
        assert (gone.status_code, gone.text) == (200, "unsubscribed")
    assert status() == "unsubscribed"
    assert page.post(out[:-4] + "abcd").status_code == 404
    page.site.clock.now += 30 * 86_400
    assert due(page.site.db, page.site.settings, page.site.now) == 0


@pytest.mark.parametrize("address", ["a@x.org,b@y.org", "a@x.org\r\nBcc: c@z.org", "nobody", "", "a@" + "x" * 300])
def test_bad_addresses(page, address):
    assert post(page, "/subscribe", email=address).status_code in (400, 422)
    assert page.site.db.rows(sa.select(t.subscriber)) == []


def test_an_expired_link_says_so(page):
    post(page, "/subscribe", email="ann@example.org")
    path = re.search(r"8000(/confirm/\S+)", mails(page)[-1].get_body(("plain",)).get_content()).group(1)
    page.site.clock.now += 49 * 3600
    assert "does not work any more" in page.get(path).text
    assert "does not work any more" in post(page, path).text


def test_rate_limits_say_when_to_come_back(page):
    for _ in range(10):
        assert post(page, "/submit", title="A paper").status_code == 303
    refused = post(page, "/submit", title="A paper")
    assert refused.status_code == 429
    assert int(refused.headers["retry-after"]) > 3600
    page.site.clock.now += 86_401
    assert post(page, "/submit", title="A paper").status_code == 303


def test_api(page):
    first = page.get("/api/papers", params={"limit": 20}).json()
    second = page.get("/api/papers", params={"limit": 20, "cursor": first["next"]}).json()
    assert len(first["papers"]) == len(second["papers"]) == 20
    assert not {p["slug"] for p in first["papers"]} & {p["slug"] for p in second["papers"]}
    assert page.get("/api/papers", params={"limit": 101}).status_code == 422
    assert page.get("/api/papers", params={"cursor": "nonsense"}).status_code == 400
    assert page.get("/api/papers/nothing").status_code == 404
    assert page.get("/api/papers/pointer-networks").json()["arxiv_id"] == "1506.03134"
    assert page.get("/api/papers", params={"q": "pointer networks"}).json()["papers"][0]["reason"]
    assert page.get("/openapi.json").json()["openapi"].startswith("3.")


def test_daily_papers_in_the_known_shape(page):
    item = page.get("/api/daily_papers", params={"limit": 3}).json()[0]
    assert {"id", "title", "summary", "authors", "publishedAt", "upvotes"} <= set(item["paper"])
    assert {"paper", "title", "numComments", "publishedAt"} <= set(item)
    assert page.get("/api/daily_papers", params={"date": "2999-01-01"}).status_code == 400
    assert page.get("/api/daily_papers", params={"week": "2026-W99"}).status_code == 400
    assert page.get("/api/daily_papers", params={"month": "2020-01"}).json() == []
    assert page.get("/api/daily_papers", params={"submitter": "nobody"}).json() == []
    post(page, "/submit", title="A paper of my own")
    for who in ("catalogue", "me"):
        named = page.get("/api/daily_papers", params={"submitter": who, "limit": 5}).json()
        assert {item["submittedBy"]["name"] for item in named} == {who}


@pytest.mark.parametrize(
    ("path", "query", "title"),
    [
        ("/", "", "Etude: trending"), ("/?room=trust&cursor=x", "room=trust", "Etude: trending, trust"),
        ("/?sort=new", "sort=new", "Etude: new"), ("/?date=2026-09-01", "date=2026-09-01", "Etude: top, 2026-09-01"),
        ("/search?q=graph", "q=graph", "Etude: graph"), ("/archive", "", "Etude: trending"),
    ],
)  # fmt: skip
def test_the_feed_in_the_head_is_the_one_it_says(page, path, query, title):
    address = f"/feed.atom?{query}" if query else "/feed.atom"
    if "cursor" not in path:
        assert f'title="{title}" href="{address}"' in page.get(path).text
    assert f"<title>{title}</title>" in page.get(address).text


@pytest.mark.parametrize(
    ("origin", "status"),
    [("http://[x", 403), ("https://127.0.0.1:8000", 403), ("HTTP://127.0.0.1:8000", 303), ("x", 403)],
)
def test_an_origin_is_compared_as_text(page, origin, status):
    form = {"csrf": token(page), "wanted": "true"}
    assert page.post("/vote/gpicl", data=form, headers={"origin": origin}).status_code == status


def test_pinned_papers_of_one_room_all_lead(page):
    db = page.app.state.site.db
    with db.begin() as c:
        room = t.paper.c.room == "trust"
        ids = list(c.execute(sa.select(t.paper.c.id).where(room).limit(5)).scalars())
        c.execute(sa.update(t.paper).where(t.paper.c.id.in_(ids)).values(pinned=True))
    first = re.findall(r'id="vote-([^"]+)"', page.get("/").text)[:5]
    assert set(first) == {r["slug"] for r in db.rows(sa.select(t.paper.c.slug).where(t.paper.c.id.in_(ids)))}


def test_atom_is_well_formed_and_cached(page):
    from defusedxml.ElementTree import fromstring

    answer = page.get("/feed.atom", params={"q": "networks"})
    root = fromstring(answer.content)
    ids = [e.findtext("{http://www.w3.org/2005/Atom}id") for e in root.iter("{http://www.w3.org/2005/Atom}entry")]
    assert len(ids) == len(set(ids)) > 3
    again = page.get("/feed.atom", params={"q": "networks"}, headers={"if-none-match": answer.headers["etag"]})
    assert again.status_code == 304


@pytest.mark.parametrize(
    "target", ["//evil", "/\\evil", "%2f%2fevil", "/%2f%2fevil", "/%5cevil", "https://evil", "/\x00", "", None]
)
def test_redirects_stay_here(target):
    assert security.safe_next(target) == "/"
    assert security.safe_next("/paper/x?y=1") == "/paper/x?y=1"


def test_forwarded_addresses_count_only_from_a_proxy():
    assert security.client_address("198.51.100.1", "203.0.113.9", ()) == "198.51.100.1"
    assert security.client_address("10.0.0.1", "203.0.113.9, 10.0.0.2", ("10.0.0.1", "10.0.0.2")) == "203.0.113.9"
    # a socket for IPv4 and IPv6 at once
    assert security.client_address("::ffff:10.0.0.1", "203.0.113.9", ("10.0.0.1",)) == "203.0.113.9"
    assert security.network_prefix("::ffff:203.0.113.9") == security.network_prefix("203.0.113.9") == "203.0.113.0/24"
    assert security.network_prefix("2001:db8:1:2::9") == "2001:db8:1::/48"


def test_secrets(tmp_path, monkeypatch):
    monkeypatch.delenv("ETUDE_SECRET", raising=False)
    made = load_secret(tmp_path)
    assert load_secret(tmp_path) == made
    assert (tmp_path / "etude.secret").stat().st_mode & 0o077 == 0
    (tmp_path / "etude.secret").chmod(0o644)
    with pytest.raises(UsageError, match="chmod 600"):
        load_secret(tmp_path)
    with pytest.raises(UsageError, match="secret"):
        Settings(secret="changeme").check()
    with pytest.raises(UsageError, match=r"127\.0\.0\.1"):
        Settings(secret=SECRET, host="0.0.0.0").check()


def test_headers_of_mails_take_no_line_breaks(page):
    from etude.page.digest.mail import build

    with pytest.raises(ValueError, match="control character"):
        build(page.site.settings, "a@example.org", "Hello\r\nBcc: x@y.org", "t", "<p>h</p>", 0)
    with pytest.raises(ValueError, match="control character"):
        build(page.site.settings, "a@example.org\nBcc: x@y.org", "Hello", "t", "<p>h</p>", 0)


@pytest.mark.parametrize(
    ("after", "frequency", "zone", "hour", "expected"),
    [
        ("2026-11-22T12:00:00+00:00", "weekly", "UTC", 7, "2026-11-23T07:00:00+00:00"),
        ("2026-11-20T12:00:00+00:00", "weekdays", "UTC", 7, "2026-11-23T07:00:00+00:00"),
        ("2026-11-22T12:00:00+00:00", "monthly", "Europe/Paris", 0, "2026-11-30T23:00:00+00:00"),
        ("2027-03-27T12:00:00+00:00", "monthly", "Europe/Paris", 2, "2027-04-01T00:00:00+00:00"),
        ("2026-03-27T12:00:00+00:00", "weekdays", "Europe/Paris", 2, "2026-03-30T00:00:00+00:00"),
    ],
)
def test_next_run(after, frequency, zone, hour, expected):
    from datetime import UTC, datetime

    at = next_run(int(datetime.fromisoformat(after).timestamp()), frequency, zone, hour)
    assert datetime.fromtimestamp(at, UTC).isoformat() == expected


@pytest.mark.parametrize("zone", ["Europe/Paris", "America/New_York", "Australia/Lord_Howe", "UTC"])
def test_a_year_of_weekdays_sends_once_a_day_whatever_the_clocks_do(zone):
    at, seen = 1_767_225_600, []
    for _ in range(262):
        at = next_run(at, "weekdays", zone, 2)
        seen.append(period(at, "weekdays", zone))
    assert len(set(seen)) == 262


def test_what_is_known_elsewhere_and_names_for_screen_readers(page):
    from etude.lab.export import import_results
    from etude.lab.ledger import Ledger

    new = make_record(title="Loved elsewhere", abstract="y", extra={"hf_upvotes": 57, "hf_comments": 3})
    store.add_all(page.site.db, [new], source="hf", now=page.site.now)
    text = page.get("/paper/loved-elsewhere").text
    assert "57 upvotes and 3 comments at Hugging Face" in text
    assert 'id="vote-loved-elsewhere"' in text  # so that the button keeps the focus when it is replaced
    import_results(Ledger(page.site.settings.database), Path(__file__).parents[2] / "results" / "train-longer")
    figures = re.findall(r"<figure><svg ([^>]*)>", page.get("/paper/train-longer").text)
    assert figures
    assert all(re.search(r'aria-label="[^"]{5,}"', figure) for figure in figures)


def test_hosts_are_named_in_any_case(page):
    assert page.get("/", headers={"host": "LOCALHOST:8000"}).status_code == 200
    assert page.get("/", headers={"host": "evil.example"}).status_code == 421
    settings = Settings(secret=SECRET, mode="accounts", host="0.0.0.0", base_url="https://Papers.Example.org")
    assert "papers.example.org" in settings.allowed_hosts


def test_a_long_page_is_pasted_as_well_as_uploaded(page):
    entries = "".join(
        f"@article{{k{i}, title={{A paper on matter {i}}}, abstract={{{'word ' * 1000}}}}}\n" for i in range(250)
    )
    assert len(entries) > 1.1 * 2**20
    fields = {"csrf": (None, token(page)), "text": (None, entries)}
    answer = page.post("/import", files=fields)  # multipart, as a browser sends the form
    assert answer.status_code == 200, answer.text[:300]
    assert "<b>250</b> new" in answer.text
    assert page.post("/import", files={"csrf": (None, "wrong"), "text": (None, entries)}).status_code == 403
