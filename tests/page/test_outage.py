"""The database away for a while, two processes that start at once, and a set-up that would only fail later."""

import logging
import os
import re
import shutil
import socket
import threading

import pytest
import sqlalchemy as sa

pytest.importorskip("fastapi", reason="the extra web is not installed")
from fastapi.testclient import TestClient

from etude.errors import LedgerError, UsageError
from etude.lab.queue import Queue
from etude.page import commands
from etude.page import tables as t
from etude.page.database import Database
from etude.page.settings import Settings, from_environment, load_secret, page_secret
from etude.page.sync import sync_catalogue
from etude.page.upkeep import explained
from etude.page.web.app import create_app

SECRET = "a test's secret, long enough to be taken"
SERVER = "postgresql+psycopg://etude@/etude?host=/tmp"


def away(*_, **__):
    raise sa.exc.OperationalError("SELECT 1", {}, Exception("connection to etude@db.internal refused"))


@pytest.fixture
def page(tmp_path):
    shutil.copyfile(os.environ["ETUDE_TEST_PAGE"], tmp_path / "p.sqlite")
    settings = Settings(
        database=str(tmp_path / "p.sqlite"), mail_folder=str(tmp_path / "mail"), secret=SECRET, embed=False
    )
    app = create_app(settings)
    with TestClient(app, base_url="http://127.0.0.1:8000", raise_server_exceptions=False) as client:
        client.site = app.state.site
        yield client


@pytest.mark.parametrize(
    ("path", "what"),
    [
        ("/", "page"), ("/about", "page"), ("/nothing", "page"), ("/api/papers/gpicl/claims", "page"),
        ("/", "ledger"), ("/paper/gpicl", "ledger"), ("/api/papers/gpicl/claims", "ledger"),
    ],
)  # fmt: skip
def test_a_database_that_is_away_is_said_without_its_address(page, monkeypatch, path, what):
    if what == "page":
        monkeypatch.setattr(page.site.db, "rows", away)
    else:
        monkeypatch.setattr(page.site.ledger.engine, "begin", away)
    answer = page.get(path)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "60")
    assert "content-security-policy" in answer.headers
    assert "does not answer" in answer.text
    assert not re.search("sqlite|ETUDE_LEDGER|etude@|SELECT", answer.text)


def test_what_the_ledger_lacks_is_no_outage(page, monkeypatch):
    def gone(*_):
        raise LedgerError("the ledger has no run 'x'")

    monkeypatch.setattr(page.site.ledger, "latest", gone)
    answer = page.get("/paper/gpicl")
    assert answer.status_code == 400
    assert "no run" in answer.text


@pytest.mark.parametrize("which", ["mails", "verdicts", "vectors"])
def test_a_thread_outlives_a_round_that_failed(tmp_path, monkeypatch, caplog, which):
    """One short outage must not end all mail, history or vectors until the next start."""
    path, rounds, stop = str(tmp_path / "p.sqlite"), [], threading.Event()
    Database(path).close()

    def step(*_, **__):
        rounds.append(1)
        if len(rounds) == 1:
            away()
        stop.set()
        return 0

    monkeypatch.setattr(commands, "PAUSE", 0.0)
    monkeypatch.setattr("etude.page.digest.send.send_due", step)
    monkeypatch.setattr(commands, "_log_verdicts", step)
    monkeypatch.setattr("etude.page.search.semantic.load_encoder", lambda: lambda _: None)
    monkeypatch.setattr("etude.page.search.semantic.forget_other_models", lambda _: 0)
    monkeypatch.setattr("etude.page.search.semantic.embed_pending", step)
    monkeypatch.setattr(os, "nice", lambda _: 0)
    with caplog.at_level(logging.ERROR):
        if which == "mails":
            commands._send_mails(Settings(database=path, secret=SECRET), stop)
        elif which == "verdicts":
            commands._follow_ledger(path, stop)
        else:
            commands._embed(path, stop, threading.Event())
    assert len(rounds) == 2
    assert "this round failed" in caplog.text


def test_a_process_that_comes_second_finds_all_done(database, monkeypatch, now):
    """It looked before the first one wrote."""
    url = database.engine.url.render_as_string(hide_password=False)
    with monkeypatch.context() as m:
        m.setattr(Database, "version", lambda _: 0)
        Database(url).close()
    settings = Settings(database=url, secret=SECRET, embed=False)
    site = create_app(settings, clock=lambda: now).state.site
    seen = site.db.rows
    with monkeypatch.context() as m:
        answers = iter([[]])
        m.setattr(site.db, "rows", lambda query: next(answers, None) or seen(query))
        site.me()
    assert len(site.db.rows(sa.select(t.account))) == 1
    site.db.close()
    site.ledger.close()


def test_one_at_a_time_on_both_databases(database, now):
    """The same catalogue by several threads at once: every card once."""
    problems = []

    def sync():
        try:
            sync_catalogue(database, now)
        except Exception as error:
            problems.append(error)

    threads = [threading.Thread(target=sync) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []
    slugs = [r["slug"] for r in database.rows(sa.select(t.paper.c.slug))]
    assert len(slugs) == len(set(slugs)) > 40


@pytest.mark.parametrize(
    ("bad", "text"),
    [
        ({"smtp_url": "mail.example.org:587"}, r"mail\.example\.org:587: the mail server is written smtp://"),
        ({"smtp_url": "smtp://bob:hidden@mail.example.org:x"}, r"\.\.\.mail\.example\.org:x: the mail server"),
        ({"mail_from": "Etude"}, "ETUDE_MAIL_FROM 'Etude'"),
        ({"mail_from": "Etude <etude@example.org>\nBcc: x"}, "ETUDE_MAIL_FROM"),
        ({"admin": "root"}, "admin's address 'root'"),
        ({"base_url": "papers.example.org"}, "--base-url papers"),
        ({"port": 99_999}, "--port 99999: choose 1 to 65535"),
    ],
)
def test_addresses_are_checked_before_anything_starts(bad, text):
    with pytest.raises(UsageError, match=text) as caught:
        Settings(secret=SECRET, **bad).check()
    assert "hidden" not in str(caught.value)


@pytest.mark.parametrize(
    ("cause", "remedy"),
    [("attempt to write a readonly database", "writable"), ("database or disk is full", "free some space"),
     ("connection refused", "see that it runs")],
)  # fmt: skip
def test_a_command_says_what_the_database_refuses(cause, remedy):
    @explained()
    def command():
        raise sa.exc.OperationalError("UPDATE event", {}, Exception(cause))

    with pytest.raises(LedgerError, match=f"{cause}.*{remedy}"):
        command()


def test_commands_of_the_page_say_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ETUDE_SECRET", SECRET)
    monkeypatch.setattr(Database, "rows", away)
    from etude.cli import main

    assert main(["digest", "--dry-run", "--for", "ann@example.org", "--ledger", str(tmp_path / "p.sqlite")]) == 3
    assert "the database refuses" in capsys.readouterr().err


def test_the_digest_checks_its_settings(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="--base-url papers"):
        commands.digest(due=True, ledger=str(tmp_path / "p.sqlite"), base_url="papers.example.org")


def test_the_address_of_the_page_from_the_environment(tmp_path, monkeypatch):
    import uvicorn

    monkeypatch.setenv("ETUDE_BASE_URL", "https://papers.example.org")
    assert from_environment()["base_url"] == "https://papers.example.org"
    served = []
    monkeypatch.setattr("etude.page.serving.bound", lambda *_: [])
    monkeypatch.setattr(uvicorn.Server, "run", lambda s, **_: served.append(s.config.app.state.site.settings.address))
    monkeypatch.setattr("etude.page.search.semantic.SemanticIndex.refresh", lambda _: None)
    for given in ({}, {"base_url": "https://other.example.org"}):
        commands.serve(ledger=str(tmp_path / "p.sqlite"), workers=0, **given)
    assert served == ["https://papers.example.org", "https://other.example.org"]


def test_a_port_that_is_taken_is_said_in_one_line_before_anything_begins(tmp_path, capsys):
    from etude.cli import main

    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        code = main(["serve", "--port", port, "--workers", "0", "--ledger", str(tmp_path / "p.sqlite")])
    said = capsys.readouterr()
    assert (code, said.out) == (3, "")
    assert said.err.count("\n") == 1
    assert f"port {port} of 127.0.0.1 is taken" in said.err
    assert "another --port" in said.err
    assert not (tmp_path / "p.sqlite").exists()


def test_no_secret_is_made_for_a_database_elsewhere(tmp_path, monkeypatch):
    """One made in every working folder would make dead links."""
    monkeypatch.delenv("ETUDE_SECRET", raising=False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="set ETUDE_SECRET"):
        page_secret(SERVER)
    assert list(tmp_path.iterdir()) == []
    made = load_secret(tmp_path)
    assert page_secret(SERVER) == made == page_secret(str(tmp_path / "p.sqlite"))
    monkeypatch.setenv("ETUDE_SECRET", SECRET)
    assert page_secret(SERVER) == SECRET


def test_a_run_that_diverged_starts_the_page(database, tmp_path, now):
    """Its means are no numbers, which PostgreSQL has no JSON for."""
    from tests.page.measured import measured

    from etude.lab.ledger import Ledger

    url = database.engine.url.render_as_string(hide_password=False)
    ledger = Ledger(url)
    Queue(ledger)
    odd = float("nan")
    measured(ledger, "pointer-networks", {"ptr": odd, "attention": 20.0, "untrained": 0.0})
    app = create_app(Settings(database=url, secret=SECRET, embed=False), clock=lambda: now)
    logged = [r["record"] for r in database.rows(sa.select(t.verdict_log))]
    assert logged
    assert all(r["method_mean"] is None for r in logged if r["claim"] == "P1")
    client = TestClient(app, base_url="http://127.0.0.1:8000")
    assert client.get("/paper/pointer-networks").status_code == 200
    (claim,) = [v for v in client.get("/api/papers/pointer-networks/claims").json() if v["claim"] == "P1"]
    assert claim["method_mean"] is None
    app.state.site.db.close()
    app.state.site.ledger.close()
    ledger.close()
