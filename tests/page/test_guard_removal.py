"""The sixteen items of the page's security list: each attack is refused, and works once its guard is taken away.

An item is a pair of functions: `attack` tells whether the page held, `unguard` takes the guard out. So a test that
cannot fail would show itself here.
"""

import os
import pickle
import re
import shutil
import sqlite3
import xml.etree.ElementTree
from contextlib import contextmanager
from types import SimpleNamespace

import jinja2
import pytest
import sqlalchemy as sa

pytest.importorskip("fastapi", reason="the extra web is not installed")
pytest.importorskip("httpx2", reason="the extra web is not installed")

from fastapi.testclient import TestClient

from etude.errors import EtudeError, UsageError
from etude.page import accounts, database, fetch, security
from etude.page import settings as page_settings
from etude.page import tables as t
from etude.page.digest import subscribe as subscribing
from etude.page.search import lexical
from etude.page.settings import Settings
from etude.page.web import actions, app, pages, render, subscriptions

SECRET = "a test's secret, long enough to be taken"
EVIL = "<img src=x onerror=alert(1)>"


class Page:
    """A page, its reader's client, and a folder."""

    def __init__(self, folder, mode):
        self.folder = folder
        shutil.copyfile(os.environ["ETUDE_TEST_PAGE"], folder / "p.sqlite")
        settings = Settings(
            database=str(folder / "p.sqlite"), secret=SECRET, mode=mode, embed=False, mail_folder=str(folder / "mail")
        )
        made = app.create_app(settings, clock=lambda: 1_790_000_000.0)
        self.site = made.state.site
        self.client = TestClient(
            made, base_url="http://127.0.0.1:8000", follow_redirects=False, raise_server_exceptions=False
        )

    def post(self, path, **data):
        csrf = re.search(r'name="csrf" value="([^"]+)"', self.client.get("/subscribe").text).group(1)
        return self.client.post(path, data={"csrf": csrf} | data)

    def dump(self, *tables):
        with sqlite3.connect(self.folder / "p.sqlite") as c:
            return " ".join(repr(c.execute(f"SELECT * FROM {name}").fetchall()) for name in tables)


def submitted_markup(page):
    page.post("/submit", title=f"Odd {EVIL}", abstract="words")
    return EVIL not in page.client.get("/?sort=new").text


def no_escaping(patch):
    plain = jinja2.Environment(loader=render._env.loader, autoescape=False, trim_blocks=True, lstrip_blocks=True)
    plain.filters |= {k: v for k, v in render._env.filters.items() if k not in plain.filters}
    patch.setattr(render, "_env", plain)


def form_of_another_site(page):
    page.client.post("/vote/rnn-sparsity", data={"csrf": "guessed", "wanted": "true"})
    return page.site.db.rows(sa.select(t.vote)) == []


def way_back_to_another_site(page):
    return page.post("/vote/rnn-sparsity", wanted="true", next="//evil.example").headers["location"] == "/"


def two_recipients(page):
    return page.post("/subscribe", email="a@x.org,b@y.org").status_code in (400, 422)


def token_in_the_database(page):
    page.post("/subscribe", email="ann@example.org")
    raw = page.site.db.rows(sa.select(t.outbox.c.raw))[0]["raw"]
    return re.search(r"/confirm/([\w-]+)", raw.replace("=\r\n", "")).group(1) not in page.dump("subscriber")


def many_searches(page):
    return [page.client.get("/search?q=graph").status_code for _ in range(5)][-1] == 429


def known_address_shows(page):
    answers = []
    for status in ("pending", "active"):
        answers.append(page.post("/subscribe", email="ann@example.org").text)
        with page.site.db.begin() as c:
            c.execute(sa.update(t.subscriber).values(status=status))
    answers.append(page.post("/subscribe", email="ann@example.org").text)
    return len({re.sub(r'value="[\w-]{20,}"', "", a) for a in answers}) == 1


def telling_subscribe(db, settings, wish, **more):
    if db.rows(sa.select(t.subscriber).where(t.subscriber.c.status == "active")):
        raise UsageError("this address is subscribed already")
    subscribing.subscribe(db, settings, wish, **more)


def operator_as_word(page):
    return page.client.get("/search", params={"q": "graphs OR"}).status_code == 200


def another_host(page):
    asked = []

    def connect(host, timeout):
        asked.append(host)
        raise OSError("no network in tests")

    fetcher = fetch.Fetcher(connect, sleep=lambda _: None)
    with pytest.raises(EtudeError):
        fetcher.get("internal.example", "/")
    return asked == []


BOMB = (
    '<!DOCTYPE f [<!ENTITY a "ha">]><feed xmlns="http://www.w3.org/2005/Atom"><entry>'
    "<id>http://arxiv.org/abs/2601.00001v1</id><title>Boom &a;&a;&a;</title><summary>x</summary></entry></feed>"
)


def entities(page):
    return page.post("/import", text=BOMB).status_code == 422


def foreign_host_name(page):
    return page.client.get("/", headers={"host": "rebound.example"}).status_code == 421


class Anything:
    def __contains__(self, _):
        return True


class Payload:
    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder / "pwned"),)


def upload_that_is_code(page):
    csrf = re.search(r'name="csrf" value="([^"]+)"', page.client.get("/subscribe").text).group(1)
    page.client.post("/import", data={"csrf": csrf}, files={"file": ("x.bin", pickle.dumps(Payload(page.folder)))})
    return not (page.folder / "pwned").exists()


def one_vote_twice(page):
    row = {"paper_id": 1, "account_id": page.site.me()["id"], "at": 1, "weight": 1.0}
    with page.site.db.begin() as c:
        c.execute(sa.insert(t.vote).values(**row))
    try:
        with page.site.db.begin() as c:
            c.execute(sa.insert(t.vote).values(**row))
    except sa.exc.IntegrityError:
        return True
    return False


def no_key_of_votes(page):
    with page.site.db.begin() as c:
        c.exec_driver_sql("DROP TABLE vote")
        c.exec_driver_sql("CREATE TABLE vote (paper_id INT, account_id INT, at INT, weight REAL)")


def address_in_accounts(page):
    page.post("/login", email="ann@example.org")
    return "ann@example.org" not in page.dump("login_token", "account")


def short_secret(page):
    try:
        Settings(secret="short").check()
    except UsageError:
        return True
    return False


def half_a_migration(page):
    def up(c):
        c.exec_driver_sql("CREATE TABLE half (id INTEGER)")
        raise RuntimeError("the disk is full")

    known = database.steps()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(database, "steps", lambda: [*known, (99, SimpleNamespace(up=up, down=None))])
        with pytest.raises(RuntimeError):
            page.site.db.migrate()
    return "half" not in sa.inspect(page.site.db.engine).get_table_names()


@contextmanager
def without_transaction(self, **_):
    with self.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as c:
        yield c


def setting(owner, name, value):
    """Takes a guard out by putting something else in its place."""
    return lambda patch, page: patch.setattr(owner, name, value)


ITEMS = {  # number and name: attack, unguard, mode
    "1 markup": (submitted_markup, lambda patch, page: no_escaping(patch)),
    "2 forged form": (form_of_another_site, setting(actions, "check_form", lambda *_: None)),
    "3 open redirect": (way_back_to_another_site, setting(actions, "safe_next", lambda target, default="/": target)),
    "4 mail headers": (two_recipients, setting(subscribing, "check_address", lambda text: text)),
    "5 tokens": (token_in_the_database, setting(subscribing, "token_hash", lambda token: token)),
    "6 rate limits": (many_searches, setting(pages, "count_search", lambda request: None)),
    "7 enumeration": (known_address_shows, setting(subscriptions, "subscribe", telling_subscribe)),
    "8 SQL": (operator_as_word, setting(lexical, "fts5", lambda query: " ".join(query.words))),
    "9 other hosts": (another_host, setting(fetch, "HOSTS", {"internal.example": 0.0})),
    "10 bombs": (
        entities,
        setting(
            __import__("defusedxml.ElementTree").ElementTree, "fromstring",
            lambda text, **_: xml.etree.ElementTree.fromstring(text),
        ),
    ),
    "11 host names": (foreign_host_name, setting(Settings, "allowed_hosts", Anything())),
    "12 uploads": (upload_that_is_code, setting(actions, "decode", pickle.loads)),
    "13 votes": (one_vote_twice, lambda patch, page: no_key_of_votes(page)),
    "14 privacy": (address_in_accounts, setting(accounts, "address_hash", lambda settings, address: address)),
    "15 secrets": (short_secret, setting(page_settings, "MIN_SECRET", 0)),
    "16 migrations": (half_a_migration, setting(database.Database, "begin", without_transaction)),
}  # fmt: skip


@pytest.mark.parametrize("item", ITEMS)
def test_refused_with_its_guard_and_not_without(item, tmp_path, monkeypatch):
    attack, unguard = ITEMS[item]
    mode = "accounts" if item.startswith("14") else "single"
    monkeypatch.setitem(security.LIMITS, "search", (3, 60))
    for folder in ("with", "without"):
        (tmp_path / folder).mkdir()
    assert attack(Page(tmp_path / "with", mode)), f"{item}: not refused"
    page = Page(tmp_path / "without", mode)
    unguard(monkeypatch, page)
    assert not attack(page), f"{item}: the attack was refused without its guard too, so its test shows nothing"


def test_the_list_is_whole():
    assert [int(name.split()[0]) for name in ITEMS] == list(range(1, 17))
