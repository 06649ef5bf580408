"""The browser tests 1, 3-5, 7-10, 12-18 in headless Chromium; the others are in test_browser.py."""

import json
import os
import time
import urllib.error
import urllib.parse
import urllib.request
import zipfile
from email import message_from_bytes
from email.policy import SMTP
from xml.etree import ElementTree

import pytest
import sqlalchemy as sa

pytest.importorskip("fastapi", reason="the extra web is not installed")

from tests.page.measured import measured

from etude.lab.ledger import Ledger
from etude.page import commands, store
from etude.page import tables as t
from etude.page.database import Database
from etude.page.digest.subscribe import unsubscribe_token
from etude.page.records import make_record
from etude.page.search.lexical import index_matches
from etude.page.settings import Settings, load_secret

EVIL = "<img src=x onerror=alert(1)>"
MANY = int(os.environ.get("ETUDE_TEST_PAPERS", "20000"))
ATOM = "{http://www.w3.org/2005/Atom}"


@pytest.fixture(scope="module")
def db(server):
    made = Database(server.folder / "etude.sqlite")
    yield made
    made.close()


@pytest.fixture(scope="module")
def settings(server):
    return Settings(
        database=str(server.folder / "etude.sqlite"), port=server.port, secret=load_secret(server.folder),
        mail_folder=str(server.folder / "etude-mail"),
    )  # fmt: skip


def add(db, *records):
    return store.add_all(db, records, source="form", now=int(time.time()), after=index_matches)


def get(server, path, headers=None):
    request = urllib.request.Request(server.url + path, headers=headers or {})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return answer.read().decode()


def subscriber(db, email, **more):
    now = int(time.time())
    values = {"email": email, "status": "active", "frequency": "weekly", "zone": "UTC", "hour": 7, "filters": {},
              "soft_failures": 0, "created_at": now, "confirmed_at": now, "next_at": now} | more  # fmt: skip
    with db.begin() as c:
        return c.execute(sa.insert(t.subscriber).values(**values)).inserted_primary_key[0], now


def send(server, monkeypatch):
    """`etude digest --due` in the page's folder."""
    monkeypatch.chdir(server.folder)
    commands.digest(due=True, base_url=server.url)


def mails(server, to):
    found = []
    for path in sorted((server.folder / "etude-mail").glob("*.eml")):
        message = message_from_bytes(path.read_bytes(), policy=SMTP)
        if message["To"] == to:
            found.append(message)
    return found


def scrolled(tab, enough):
    """Wait until the page is scrolled so far (its policy allows no code in strings, so from outside)."""
    until = time.monotonic() + 20
    while not enough(y := tab.evaluate("scrollY")):
        assert time.monotonic() < until, y
        time.sleep(0.05)
    return y


def test_an_empty_page_says_how_to_fill_it(tab, db):
    """1: nothing there yet, and three ways to add papers."""
    shown = db.rows(sa.select(t.paper.c.id).where(t.paper.c.hidden.is_(False)))
    with db.begin() as c:
        c.execute(sa.update(t.paper).values(hidden=True))
    try:
        tab.goto("/")
        assert tab.locator(".empty li").count() == 3
        assert tab.locator(".empty a[href='/import']").count() == 1
        assert tab.locator(".empty a[href='/submit']").count() == 1
    finally:
        with db.begin() as c:
            c.execute(sa.update(t.paper).where(t.paper.c.id.in_([r["id"] for r in shown])).values(hidden=False))
    tab.reload()
    assert tab.locator("li.paper").count() == 25


@pytest.mark.parametrize("words", ['"', "*", "OR", "NEAR(", "😀 graph", "a" * 5000, "-", "year:", "author:"])
def test_no_words_are_an_error(tab, words):
    """3: whatever is typed, the answer is a list or a sentence."""
    answer = tab.goto(f"/search?q={urllib.parse.quote(words)}")
    assert answer.status == 200
    assert tab.locator("h1").inner_text() == "Search"


def test_votes_of_two_tabs_count_once_and_move_the_paper(tab, db, browser, server):
    """4: two tabs, a double click, and the order of the list."""
    cold = sa.select(t.paper.c.slug).where(t.paper.c.votes == 0)
    last = db.rows(cold.order_by(t.paper.c.heat_72, t.paper.c.id.desc()))[0]
    place = f"/paper/{last['slug']}"
    other = tab.context.new_page()
    for page in (tab, other):
        page.goto(place)
    for page in (tab, other):
        page.locator(".vote button").click()
        page.wait_for_selector(".vote button[aria-pressed=true]")
    tab.reload()
    assert tab.locator(".vote b").inner_text() == "1"
    tab.goto("/")
    assert last["slug"] in tab.locator("li.paper h2 a").first.get_attribute("href")
    assert len(db.rows(sa.select(t.vote).join(t.paper).where(t.paper.c.slug == last["slug"]))) == 1


def test_markup_is_text_in_mail_feed_and_json(tab, db, server, monkeypatch):
    """5: a paper with markup in every field, where it goes from here."""
    tab.goto("/submit")
    for name in ("title", "abstract", "authors", "tags"):
        tab.fill(f"[name={name}]", f"Elsewhere {EVIL}")
    tab.click("main form button")
    for path in ("/", "/?sort=new", "/search?q=elsewhere"):
        tab.goto(path)
        assert tab.locator("img").count() == 0
    assert EVIL in tab.locator("li.paper").first.inner_text()
    assert EVIL not in get(server, "/feed.atom")
    titles = [
        e.findtext(f"{ATOM}title") for e in ElementTree.fromstring(get(server, "/feed.atom")).iter(f"{ATOM}entry")
    ]
    assert f"Elsewhere {EVIL}" in titles
    assert f"Elsewhere {EVIL}" in [p["title"] for p in json.loads(get(server, "/api/papers?sort=new"))["papers"]]
    subscriber(db, "evil@example.org", filters={"q": "elsewhere"})
    send(server, monkeypatch)
    (message,) = mails(server, "evil@example.org")
    assert EVIL in message.get_body(("plain",)).get_content()
    html = message.get_body(("html",)).get_content()
    tab.set_content(html)
    assert tab.locator("img, script").count() == 0
    assert EVIL in tab.locator("body").inner_text()


def test_an_old_link_says_so(tab, db):
    """7: opening a link changes nothing, and one that is too old has a page of its own."""
    from etude.page.security import new_token, token_hash

    token = new_token()
    values = {"status": "pending", "confirm_hash": token_hash(token), "confirm_expires_at": int(time.time()) + 1000}
    who, _ = subscriber(db, "late@example.org", **values, next_at=None)
    mine = sa.select(t.subscriber.c.status).where(t.subscriber.c.id == who)
    for _ in range(2):
        tab.goto(f"/confirm/{token}")
        assert tab.locator("main form button").count() == 1
        assert db.rows(mine) == [{"status": "pending"}]
    with db.begin() as c:
        c.execute(sa.update(t.subscriber).where(t.subscriber.c.id == who).values(confirm_expires_at=1))
    tab.goto(f"/confirm/{token}")
    assert "does not work any more" in tab.locator("h1").inner_text()


def test_one_click_out(tab, db, server, settings, monkeypatch):
    """8: the link shows a button and changes nothing; a bare POST without cookies leaves; no digest follows."""
    who, created = subscriber(db, "out@example.org")
    link = f"/u/{unsubscribe_token(settings, who, created)}"
    status = sa.select(t.subscriber.c.status).where(t.subscriber.c.id == who)
    tab.goto(link)
    assert tab.locator("main form button").first.inner_text() == "Leave"
    assert db.rows(status) == [{"status": "active"}]
    for _ in range(2):
        body = b"List-Unsubscribe=One-Click"
        with urllib.request.urlopen(urllib.request.Request(server.url + link, body), timeout=30) as answer:
            assert answer.status == 200
            assert answer.url == server.url + link
    assert db.rows(status) == [{"status": "unsubscribed"}]
    send(server, monkeypatch)
    assert mails(server, "out@example.org") == []


def test_the_preview_is_the_mail(tab, db, server, monkeypatch, capsys):
    """9: what `--dry-run` shows is what is sent; the outbox shows its text; it reads well."""
    subscriber(db, "same@example.org")
    monkeypatch.chdir(server.folder)
    commands.digest(dry_run=True, for_="same@example.org", base_url=server.url)
    shown = message_from_bytes(capsys.readouterr().out.strip().encode(), policy=SMTP)
    send(server, monkeypatch)
    (message,) = mails(server, "same@example.org")
    for kind in ("plain", "html"):
        bodies = [m.get_body((kind,)).get_content().replace("\r\n", "\n").strip() for m in (shown, message)]
        assert bodies[0] == bodies[1]
    for name in ("To", "Subject", "List-Unsubscribe", "List-Unsubscribe-Post", "List-Id"):
        assert shown[name] == message[name]
    text = message.get_body(("plain",)).get_content()
    assert "<" not in text.replace(EVIL, "")
    assert max(map(len, text.splitlines())) < 400
    tab.goto("/outbox")
    tab.click(f"text={message['Subject']} >> nth=0")
    assert "PAPERS" in tab.locator("pre").inner_text()


def test_addresses_can_be_shared_and_pages_stay_put(tab, db, browser, server):
    """10: back keeps page and scroll, another browser sees the same, new papers do not move the next page."""
    tab.set_viewport_size({"width": 900, "height": 500})
    tab.goto("/?sort=new&room=trust")
    tab.goto("/?sort=new")
    with tab.expect_navigation():
        tab.click("text=Next papers")
    second = tab.url
    papers = tab.locator("li.paper h2 a").all_inner_texts()
    tab.evaluate("scrollTo(0, 1200)")
    before = scrolled(tab, lambda y: y > 600)
    tab.evaluate("document.querySelectorAll('li.paper h2 a')[8].click()")  # a mouse would scroll to it first
    tab.wait_for_selector("article.one h1")
    tab.go_back()
    assert tab.url == second
    scrolled(tab, lambda y: abs(y - before) < 200)
    tab.go_back()
    tab.go_forward()
    assert tab.url == second
    add(db, make_record(title="A paper that arrives meanwhile", abstract="It is new."))
    other = browser.new_context(base_url=server.url).new_page()
    other.goto(second)
    assert other.locator("li.paper h2 a").all_inner_texts() == papers
    other.context.close()


def test_focus_and_words_beside_colours(tab, server):
    """12: the focus can be seen, the first stop skips to the content, a verdict is a word and a sign."""
    measured(
        Ledger(server.folder / "etude.sqlite"), "pointer-networks", {"ptr": 20.0, "attention": 50.0, "untrained": 0.0}
    )
    tab.goto("/search?q=pointer-networks")
    assert "✗" in tab.locator(".badge.fails").first.inner_text()
    assert "fail" in tab.locator(".badge.fails").first.inner_text()
    tab.keyboard.press("Tab")
    assert tab.evaluate("document.activeElement.className") == "skip"
    for _ in range(6):
        style = tab.evaluate("(() => {const s = getComputedStyle(document.activeElement);"
                             "return [s.outlineStyle, parseFloat(s.outlineWidth), s.boxShadow]})()")  # fmt: skip
        assert (style[0] != "none" and style[1] >= 1) or style[2] != "none", style
        tab.keyboard.press("Tab")


def test_strange_papers(tab, db):
    """13: right to left, Chinese, a title of 300 characters without a blank, 3,000 authors: readable, no sideways scroll."""
    many = [f"Author Number{i}" for i in range(3000)]
    add(
        db, make_record(title="شبكات عصبية للرسوم البيانية", abstract="ملخص", authors=["ليلى"]),
        make_record(title="图神经网络的持续学习", abstract="摘要", authors=["李"]),
        make_record(title="x" * 300, abstract="Long.", tags=["t" * 80]),
        make_record(title="Many hands", abstract="All.", authors=many),
    )  # fmt: skip
    tab.set_viewport_size({"width": 320, "height": 700})
    tab.goto("/?sort=new")
    assert tab.evaluate("document.documentElement.scrollWidth") <= 320
    arabic = tab.locator("h2 a", has_text="شبكات")
    assert tab.evaluate("e => getComputedStyle(e).direction", arabic.element_handle()) == "rtl"
    for title in ("图神经网络", "Many hands"):
        tab.goto("/?sort=new")
        tab.locator("h2 a", has_text=title).click()
        tab.wait_for_selector("article.one h1")
        assert tab.evaluate("document.documentElement.scrollWidth") <= 320
    assert "and 2988 more" in tab.locator("p.meta").first.inner_text()


def test_two_edits_of_one_paper(tab):
    """14: who comes second sees both texts, and nothing is lost."""
    other = tab.context.new_page()
    for page in (tab, other):
        page.goto("/paper/gpicl/edit")
    tab.fill("[name=venue]", "First venue")
    tab.click("text=Keep the changes")
    other.fill("[name=venue]", "Second venue")
    other.click("text=Keep the changes")
    assert other.locator("h1").inner_text() == "Changed meanwhile"
    assert "First venue" in other.locator("main").inner_text()
    assert other.locator("[name=venue]").input_value() == "Second venue"
    tab.goto("/paper/gpicl")
    assert "First venue" in tab.locator("main").inner_text()


def test_feed_and_daily_papers(server):
    """17: the feed has what Atom asks for; a client of the daily papers works by changing the host."""
    root = ElementTree.fromstring(get(server, "/feed.atom"))
    assert all(root.findtext(f"{ATOM}{k}") for k in ("id", "title", "updated"))
    entries = root.findall(f"{ATOM}entry")
    assert entries
    ids = [e.findtext(f"{ATOM}id") for e in entries]
    assert len(set(ids)) == len(ids)
    for e in entries:
        assert all(e.findtext(f"{ATOM}{k}") for k in ("id", "title", "updated", "published"))
        assert e.find(f"{ATOM}author/{ATOM}name") is not None
        assert e.find(f"{ATOM}link").get("href").startswith(server.url)
    for query in ("", "?limit=5", "?sort=trending&limit=100&p=0", f"?date={time.strftime('%Y-%m-%d', time.gmtime())}"):
        for item in json.loads(get(server, f"/api/daily_papers{query}")):
            paper = item["paper"]
            assert {"id", "title", "summary", "authors", "publishedAt", "upvotes"} <= paper.keys()
            assert all({"name", "hidden"} <= a.keys() for a in paper["authors"])
            assert isinstance(item["numComments"], int)
    with pytest.raises(urllib.error.HTTPError, match="400"):
        get(server, "/api/daily_papers?date=2999-01-01")


def test_export_delete_import(tab, db, server, tmp_path):
    """18: everything of one's own goes into a zip, is deleted, and comes back with the same counts."""
    tab.goto("/paper/phyll")
    if tab.locator(".vote button[aria-pressed=false]").count():
        tab.locator(".vote button").click()
        tab.wait_for_selector(".vote button[aria-pressed=true]")
    tab.click("text=Save to your library")
    tab.fill("details.save textarea", "mine")
    tab.click("details.save button")
    tables = (t.vote, t.library, t.saved_search)

    def counts():
        return [db.rows(sa.select(sa.func.count().label("n")).select_from(x))[0]["n"] for x in tables]

    before = counts()
    assert before[0] >= 1
    tab.goto("/account")
    with tab.expect_download() as download:
        tab.click("text=Download everything as a zip")
    path = tmp_path / "mine.zip"
    download.value.save_as(path)
    assert zipfile.ZipFile(path).testzip() is None
    tab.click("text=Delete everything")
    tab.fill("[name=confirm]", "me")
    tab.click("text=Delete everything of mine")
    assert counts() == [0, 0, 0]
    tab.goto("/account")
    tab.set_input_files("[name=file]", path)
    tab.click("text=Read it")
    assert counts() == before
    tab.goto("/paper/phyll")
    assert tab.locator(".vote button[aria-pressed=true]").count() == 1


@pytest.mark.slow
def test_many_papers(tmp_path, browser, make_server):
    """16: 20,000 generated papers (ETUDE_TEST_PAPERS), first and later pages and a search; the benchmark has its times."""
    path = tmp_path / "etude.sqlite"
    made = Database(path)
    now = int(time.time())
    words = ("graph", "sparse", "bayesian", "recurrent", "quantised", "contrastive", "causal", "modular")
    rows = [
        {"slug": f"made-{i}", "title": f"{words[i % 8].title()} {words[i // 8 % 8]} method number {i}", "source": "form",
         "abstract": f"We study {words[i % 7]} problems, case {i}.", "authors": [{"name": f"Author {i % 900}"}],
         "submitted_at": now - i, "updated_at": now, "norm_hash": f"{i:064x}", "heat_12": -i / 9, "heat_72": 20 - i / 99,
         "heat_720": -i / 999, "extra": {}}
        for i in range(MANY)
    ]  # fmt: skip
    with made.begin() as c:
        c.execute(sa.insert(t.paper), rows)
        from etude.page.search.lexical import reindex

        reindex(c, list(c.execute(sa.select(t.paper.c.id)).scalars()))
    made.close()
    server = make_server(tmp_path, 0).start()
    try:
        page = browser.new_context(base_url=server.url).new_page()
        page.goto("/")
        seen = []
        for _ in range(3):
            seen += page.locator("li.paper h2 a").all_inner_texts()
            with page.expect_navigation():
                page.click("text=Next papers")
        assert len(set(seen)) == len(seen) == 75
        page.goto(f"/search?q=number+{MANY - 1}")
        assert f"number {MANY - 1}" in page.locator("li.paper h2 a").first.inner_text()
        page.goto("/search?q=causl+modular")
        assert page.locator("li.paper").count() == 50
        painted = page.evaluate("performance.getEntriesByType('navigation')[0].responseEnd")
        assert painted < 30_000  # milliseconds: nothing hangs; how fast it is stands in the benchmark
        page.context.close()
    finally:
        server.stop()
