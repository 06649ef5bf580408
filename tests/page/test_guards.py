"""Limits, bounds, hosts, concurrent votes, forgetting, migrations, and random requests against the OpenAPI file.

Guards of the page's security list, and the test that fails without each (the others: test_community.py,
test_own_data.py, test_web.py):
 6 rate limits            test_searches_are_limited, test_votes_are_limited
 8 SQL                    test_words_are_never_sql
 9 requests to others     test_no_module_fetches
10 bombs                  test_bodies_are_bounded, test_deep_json
12 uploads are data       test_no_module_fetches (no pickle, no YAML)
13 vote integrity         test_two_tabs_and_two_people_vote_at_once
14 privacy                test_what_is_old_is_forgotten
15 set-up                 test_set_up_that_is_not_safe
16 migrations             test_the_community_migration_goes_both_ways
"""

import ast
import os
import re
import shutil
import threading
from pathlib import Path

import pytest
import sqlalchemy as sa

pytest.importorskip("fastapi", reason="the extra web is not installed")
from fastapi.testclient import TestClient

import etude.page
from etude.errors import UsageError
from etude.page import accounts, heat, library, retention, security, store
from etude.page import tables as t
from etude.page.records import make_record
from etude.page.settings import Settings
from etude.page.web.app import create_app

SECRET = "a test's secret, long enough to be taken"
BASE = "http://127.0.0.1:8000"
DAY = 86_400


class Clock:
    def __init__(self):
        self.now = 1_790_000_000.0

    def __call__(self):
        return self.now


@pytest.fixture
def page(tmp_path):
    shutil.copyfile(os.environ["ETUDE_TEST_PAGE"], tmp_path / "p.sqlite")
    files = {"database": str(tmp_path / "p.sqlite"), "mail_folder": str(tmp_path / "mail")}
    app = create_app(Settings(secret=SECRET, embed=False, **files), clock=Clock())
    with TestClient(app, base_url=BASE, follow_redirects=False, raise_server_exceptions=False) as client:
        client.site = app.state.site
        yield client


def csrf(client, path="/subscribe"):
    return re.search(r'name="csrf" value="([^"]+)"', client.get(path).text).group(1)


def person(db, handle, at=0):
    with db.begin() as c:
        row = {"handle": handle, "role": "member", "created_at": at, "for_you": False}
        return c.execute(sa.insert(t.account).values(**row)).inserted_primary_key[0]


def test_only_we_read_forwarded_addresses(tmp_path, monkeypatch):
    import uvicorn

    from etude.page import commands

    given = {}
    monkeypatch.setattr("etude.page.serving.bound", lambda *_: [])
    monkeypatch.setattr(uvicorn.Server, "run", lambda self, **_: given.update(vars(self.config)))
    commands.serve(ledger=str(tmp_path / "p.sqlite"), workers=0)
    assert given["proxy_headers"] is False


def test_searches_are_limited(page, monkeypatch):
    assert security.LIMITS["search"] == (60, 60)
    monkeypatch.setitem(security.LIMITS, "search", (6, 60))
    addresses = ["/search", "/api/papers", "/feed.atom"]
    for i in range(6):
        assert page.get(addresses[i % 3], params={"q": "networks"}).status_code == 200
    for address in addresses:
        refused = page.get(address, params={"q": "networks"})
        assert refused.status_code == 429
        assert refused.headers["retry-after"] == "60"
    assert page.get("/").status_code == 200
    page.site.clock.now += 61
    assert page.get("/search", params={"q": "networks"}).status_code == 200


def test_votes_are_limited(page, monkeypatch):
    assert security.LIMITS["vote"] == (120, 3600)
    monkeypatch.setitem(security.LIMITS, "vote", (6, 3600))
    token = csrf(page)
    for i in range(6):
        data = {"csrf": token, "wanted": str(i % 2 == 0)}
        assert page.post("/vote/gpicl", data=data).status_code == 303
    assert page.post("/vote/gpicl", data={"csrf": token, "wanted": "true"}).status_code == 429


WORDS = ["' OR 1=1 --", "%", "_", "\\", '"; DROP TABLE paper; --', "x' UNION SELECT * FROM account --"]


@pytest.mark.parametrize("words", WORDS)
def test_words_are_never_sql(page, words):
    papers = len(page.site.db.rows(sa.select(t.paper.c.id)))
    me = page.site.me()["id"]
    with page.site.db.begin() as c:
        library.keep(c, 1, me, tags=["x"], note="", read=False, now=1)
    assert library.shelf(page.site.db, me, words=words, tag=None) == []
    for path, name in (("/", "tag"), ("/library", "q"), ("/library", "tag"), ("/search", "q"), ("/api/papers", "q")):
        answer = page.get(path, params={name: words})
        assert answer.status_code == 200
    assert page.get("/search", params={"q": f"author:{words.split()[0]}"}).status_code == 200
    assert page.get("/api/papers", params={"q": "author:%"}).json()["papers"] == []
    assert page.post("/account/tokens/%/revoke", data={"csrf": csrf(page)}).status_code in (303, 404)
    assert len(page.site.db.rows(sa.select(t.paper.c.id))) == papers


def test_bodies_are_bounded(page):
    token = accounts.new_api_token(page.site.db, page.site.me()["id"], "x", 1)
    head = {"authorization": f"Bearer {token}"}
    large = page.post("/api/papers", content=b"x" * (2**21 + 1), headers=head)
    assert (large.status_code, large.json()) == (413, {"error": "larger than 2 MiB"})
    assert large.headers["x-content-type-options"] == "nosniff"
    assert page.post("/submit", headers={"content-length": str(2**27)}).status_code == 413
    assert page.post("/api/papers", content=iter([b"{}"]), headers=head).status_code == 411  # no length said
    assert page.post("/api/papers", json={"title": "x" * 1001}, headers=head).status_code == 422
    answer = page.post("/submit", data={"csrf": csrf(page), "title": "x" * 900_000, "abstract": "y" * 900_000})
    row = page.site.db.rows(sa.select(t.paper).order_by(t.paper.c.id.desc()))[0]
    assert answer.status_code == 303
    assert (len(row["title"]), len(row["abstract"])) == (1000, 20_000)


def test_deep_json(page):
    token = accounts.new_api_token(page.site.db, page.site.me()["id"], "x", 1)
    head = {"authorization": f"Bearer {token}", "content-type": "application/json"}
    answer = page.post("/api/papers", content='{"title":' + "[" * 200_000, headers=head)
    assert answer.status_code in (400, 422)
    deep = page.post("/import", data={"csrf": csrf(page), "text": "[" * 200_000})
    assert deep.status_code == 422


def test_two_tabs_and_two_people_vote_at_once(database, now):
    store.add_all(database, [make_record(title="A paper")], source="form", now=now)
    people = [person(database, f"p{i}") for i in range(3)]
    (paper,) = database.rows(sa.select(t.paper))
    start = threading.Barrier(6)

    def tab(account):
        start.wait()
        store.set_vote(database, paper["id"], account, True, now=now)

    tabs = [threading.Thread(target=tab, args=(p,)) for p in people * 2]
    for each in tabs:
        each.start()
    for each in tabs:
        each.join()
    (row,) = database.rows(sa.select(t.paper))
    assert row["votes"] == len(database.rows(sa.select(t.vote))) == 3
    left = [heat.Event(e["weight"], e["at"]) for e in database.rows(sa.select(t.event))]
    assert len(left) == 4
    assert row["heat_72"] == pytest.approx(heat.heat(left, 72.0))


def test_old_mails_in_the_folder_are_forgotten(page, tmp_path):
    now = page.site.now
    for name in (f"{now - 31 * DAY}-00000001.eml", f"{now - 29 * DAY}-00000002.eml", "my-own.eml", "notes.txt"):
        (tmp_path / name).write_text("To: ann@example.org")
    retention.purge(page.site.db, now, tmp_path)
    left = {p.name for p in tmp_path.iterdir() if p.suffix in (".eml", ".txt")}
    assert left == {f"{now - 29 * DAY}-00000002.eml", "my-own.eml", "notes.txt"}


def test_what_is_old_is_forgotten(page):
    db, now = page.site.db, page.site.now
    page.post("/subscribe", data={"csrf": csrf(page), "email": "ann@example.org"})
    page.post("/vote/gpicl", data={"csrf": csrf(page), "wanted": "true"})
    accounts.ask_link(db, page.site.settings, "ann@example.org", network="n", now=now)
    with db.begin() as c:
        accounts.open_session(c, page.site.me()["id"], now)
    assert retention.purge(db, now) == 0
    assert "testclient" in str(db.rows(sa.select(t.event.c.network).where(t.event.c.kind == "vote")))
    retention.purge(db, now + 31 * DAY)
    for table in (t.outbox, t.subscriber, t.login_token, t.session, t.rate):
        assert db.rows(sa.select(table)) == [], table.name
    assert [r["network"] for r in db.rows(sa.select(t.event).where(t.event.c.kind == "vote"))] == [None]


def test_set_up_that_is_not_safe():
    with pytest.raises(UsageError, match="secret"):
        Settings(secret="", mode="accounts").check()
    with pytest.raises(UsageError, match="base-url"):
        Settings(secret=SECRET, host="0.0.0.0", mode="accounts").check()
    with pytest.raises(UsageError, match="https://"):
        Settings(secret=SECRET, mode="accounts", base_url="papers.example.org").check()
    public = Settings(secret=SECRET, host="0.0.0.0", mode="accounts", base_url="https://papers.example.org").check()
    assert public.allowed_hosts == {"papers.example.org"}
    assert "a test" not in repr(public)


def test_the_single_user_page_has_no_log_in(page):
    for path in ("/login", "/login/x"):
        assert page.get(path).status_code == 404
    assert page.post("/login", data={"csrf": csrf(page), "email": "a@example.org"}).status_code == 404
    assert page.post("/account/handle", data={"csrf": csrf(page), "handle": "you"}).status_code == 404
    assert "Sign in" not in page.get("/").text


def test_the_community_migration_goes_both_ways(database):
    who = person(database, "ann")
    with database.begin() as c:
        token = accounts.open_session(c, who, 1)
    database.migrate(3)
    assert database.version() == 3
    columns = {x["name"] for x in sa.inspect(database.engine).get_columns("session")}
    assert "previous_hash" not in columns
    database.migrate()
    account, _, due = accounts.session_of(database, token, 1 + DAY)
    assert (account["handle"], due) == ("ann", True)  # when it last rotated is lost, so it is due
    assert database.version() >= 4


FORBIDDEN = {"pickle", "yaml", "requests", "httpx", "urllib.request", "http.client", "aiohttp", "marshal", "shelve"}


def test_no_module_fetches():
    """The page opens no connection of its own (but to the mail server) and reads no format that can run code."""
    for path in Path(etude.page.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module or "", *(f"{node.module}.{a.name}" for a in node.names)]
            allowed = {"http.client"} if path.name == "fetch.py" else set()  # tests of that one: test_fetch.py
            assert not (FORBIDDEN - allowed) & set(names), path.name


@pytest.mark.slow
def test_the_api_keeps_its_word(page):
    """A few random requests for every address of the OpenAPI file: no 500, only what it says it answers."""
    schemathesis = pytest.importorskip("schemathesis", reason="the extra test is not installed")
    from hypothesis import HealthCheck, Phase, given, settings
    from schemathesis.checks import not_a_server_error
    from schemathesis.specs.openapi.checks import response_schema_conformance, status_code_conformance

    checks = [not_a_server_error, status_code_conformance, response_schema_conformance]
    token = accounts.new_api_token(page.site.db, page.site.me()["id"], "x", 1)
    schema = schemathesis.openapi.from_asgi("/openapi.json", page.app, headers={"host": "127.0.0.1:8000"})
    calm = settings(
        max_examples=3, deadline=None, database=None, derandomize=True, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    seen = 0
    for operation in schema.get_all_operations():

        @calm
        @given(case=operation.ok().as_strategy())
        def ask(case):
            nonlocal seen
            page.site.clock.now += 60
            head = {"host": "127.0.0.1:8000", "authorization": f"Bearer {token}"}
            response = case.call(headers=head)
            case.validate_response(response, checks=checks, headers=head)
            seen += 1

        ask()
    assert seen > 20
