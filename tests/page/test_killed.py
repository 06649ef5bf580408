"""`kill -9` in the middle of votes, an import and the digest: nothing lost, nothing doubled; an orderly end by SIGTERM.

Real processes.
"""

import json
import random
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.parse
import urllib.request
from http.cookiejar import CookieJar

import pytest
import sqlalchemy as sa

pytest.importorskip("fastapi", reason="the extra web is not installed")

from etude.page import accounts
from etude.page import tables as t
from etude.page.database import Database
from etude.page.digest.schedule import next_run

READERS, PAPERS = 6, 12


def vote(url, token, paper):
    """True when the page has said that the vote is there."""
    body = json.dumps({"paper": paper, "wanted": True}).encode()
    head = {"authorization": f"Bearer {token}", "content-type": "application/json"}
    try:
        with urllib.request.urlopen(urllib.request.Request(f"{url}/api/vote", body, head), timeout=20) as answer:
            return answer.status == 200
    except OSError:
        return False


def check_votes(db, wanted):
    """Votes, events and counters agree, and are those wanted."""
    rows = db.rows(sa.select(t.vote.c.paper_id, t.vote.c.account_id))
    events = db.rows(sa.select(t.event.c.paper_id, t.event.c.account_id).where(t.event.c.kind == "vote"))
    pairs = sorted((r["paper_id"], r["account_id"]) for r in rows)
    assert pairs == sorted((r["paper_id"], r["account_id"]) for r in events)
    counted = {r["id"]: r["votes"] for r in db.rows(sa.select(t.paper.c.id, t.paper.c.votes)) if r["votes"]}
    assert counted == {p: sum(q == p for q, _ in pairs) for p in {q for q, _ in pairs}}
    assert wanted <= set(pairs)
    return set(pairs)


class Reader:
    """A browser's way through the forms."""

    def __init__(self, url):
        self.url = url
        self.opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(CookieJar()))

    def get(self, path):
        return self.opener.open(self.url + path, timeout=60).read().decode()

    def post(self, path, **data):
        token = re.search(r'name="csrf" value="([^"]+)"', self.get("/subscribe")).group(1)
        body = urllib.parse.urlencode({"csrf": token} | data).encode()
        return self.opener.open(self.url + path, body, timeout=60).read().decode()


def test_votes_and_an_import_survive_a_killed_server(tmp_path, make_server):
    """Killed among votes, and in the middle of an import: what was said to be stored is, all or none of the import."""
    server = make_server(tmp_path, 0).start()
    db = Database(tmp_path / "etude.sqlite")
    try:
        papers = db.rows(sa.select(t.paper.c.id, t.paper.c.slug).order_by(t.paper.c.id).limit(PAPERS))
        tokens = {}
        with db.begin() as c:
            for i in range(READERS):
                row = {"handle": f"p{i}", "role": "member", "created_at": 0, "for_you": False}
                who = c.execute(sa.insert(t.account).values(**row)).inserted_primary_key[0]
                tokens[who] = ""
        for who in tokens:
            tokens[who] = accounts.new_api_token(db, who, "x", 1)
        said, lock = set(), threading.Lock()

        def reader(who):
            for p in papers:
                if vote(server.url, tokens[who], p["slug"]):
                    with lock:
                        said.add((p["id"], who))

        threads = [threading.Thread(target=reader, args=(who,)) for who in tokens]
        for each in threads:
            each.start()
        until = time.monotonic() + 60
        while len(said) < READERS * PAPERS // 4 and time.monotonic() < until:
            time.sleep(0.005)
        server.stop(signal.SIGKILL)
        for each in threads:
            each.join()
        assert 0 < len(said) < READERS * PAPERS
        there = check_votes(db, said)
        assert len(there - said) <= READERS  # those whose answer was on its way

        server.start()
        blocks = [f"Killed Paper About Topic {i}\n\n" + f"Abstract {i} with words. " * 15 for i in range(1500)]
        person = Reader(server.url)
        preview = person.post("/import", text="\n\n".join(blocks))
        token = re.search(r'name="token" value="([^"]+)"', preview).group(1)
        failed = []

        def confirm():
            try:
                person.post("/import/confirm", token=token)
            except OSError as error:
                failed.append(error)

        thread = threading.Thread(target=confirm)
        thread.start()
        time.sleep(0.8)
        server.stop(signal.SIGKILL)
        thread.join()
        killed = sa.select(sa.func.count().label("n")).where(t.paper.c.title.like("Killed Paper%"))
        assert db.rows(killed)[0]["n"] in (0, 1500)

        server.start()
        person = Reader(server.url)
        preview = person.post("/import", text="\n\n".join(blocks))
        if again := re.search(r'name="token" value="([^"]+)"', preview):
            person.post("/import/confirm", token=again.group(1))
        assert db.rows(killed)[0]["n"] == 1500
        assert "<b>1500</b> duplicate" in person.post("/import", text="\n\n".join(blocks))
        assert "Killed Paper About Topic 1499" in person.get("/search?q=killed+1499")
        for token in tokens.values():
            for p in papers:
                assert vote(server.url, token, p["slug"])
        assert len(check_votes(db, said)) == READERS * PAPERS
    finally:
        server.stop()
        db.close()


SEND = """
import sys, time
from etude.page.database import Database
from etude.page.digest.compose import due
from etude.page.digest.send import Folder, send_due
from etude.page.settings import Settings

class Slow(Folder):
    def send(self, *mail):
        super().send(*mail)
        time.sleep(0.01)

db, now = Database(sys.argv[1]), int(sys.argv[2])
print("ready", flush=True)
due(db, Settings(secret="a test's secret, long enough to be taken"), now)
send_due(db, Slow(sys.argv[3]), clock=lambda: now)
"""


def test_a_digest_killed_again_and_again_reaches_everybody_once(tmp_path):
    """Two senders at a time, both killed while composing and sending; in the end everybody has one mail."""
    from etude.page.sync import sync_catalogue

    now, people = 1_790_000_000, 60
    db = Database(tmp_path / "p.sqlite")
    sync_catalogue(db, now - 3600)
    rows = [
        {"email": f"p{i}@example.org", "status": "active", "frequency": "weekly", "zone": "UTC", "hour": 7,
         "filters": {}, "soft_failures": 0, "created_at": 1, "confirmed_at": 1, "next_at": now - 60}
        for i in range(people)
    ]  # fmt: skip
    with db.begin() as c:
        c.execute(sa.insert(t.subscriber), rows)
    box, chance = tmp_path / "mail", random.Random(0)

    def senders(count, at):
        command = [sys.executable, "-c", SEND, str(tmp_path / "p.sqlite"), str(at), str(box)]
        made = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(count)]
        for each in made:
            assert each.stdout.readline() == b"ready\n"
        return made

    for attempt in range(3):
        running = senders(2, now + attempt * 200)  # later than the leases of the killed
        time.sleep(chance.uniform(0.1, 0.5))
        for each in running:
            each.kill()
            each.wait()
    for each in senders(2, now + 1000):
        assert each.wait(timeout=60) == 0
    for each in senders(1, now + 2000):  # what the other one held
        assert each.wait(timeout=60) == 0
    mails = [m.read_text() for m in box.glob("*.eml")]
    assert sorted(re.search(r"^To: (\S+)", m, re.M).group(1) for m in mails) == sorted(r["email"] for r in rows)
    assert {r["status"] for r in db.rows(sa.select(t.outbox))} == {"sent"}
    assert len(db.rows(sa.select(t.sent))) == people
    items = db.rows(sa.select(t.sent_item))
    assert len(items) == people * 10
    assert {r["next_at"] for r in db.rows(sa.select(t.subscriber))} == {next_run(now, "weekly", "UTC", 7)}
    db.close()


def test_a_worker_ends_with_its_killed_server(tmp_path, make_server):
    """kill -9 of the server alone: its worker leaves, so restarts gather no orphans."""
    server = make_server(tmp_path, 1).start()
    group = server.process.pid
    try:
        listed = f"ps -o pid= -g {group}"
        assert len(subprocess.run(listed.split(), capture_output=True, text=True).stdout.split()) >= 2
        server.stop(signal.SIGKILL, alone=True)
        until = time.monotonic() + 60
        while subprocess.run(listed.split(), capture_output=True, text=True).stdout.split():
            assert time.monotonic() < until, "the worker is still there"
            time.sleep(0.2)
        server.start()
    finally:
        server.stop()


def test_a_killed_worker_is_replaced(tmp_path, make_server):
    """kill -9 of the worker alone: the server starts another one."""
    import psutil

    server = make_server(tmp_path, 1).start()
    try:
        own = psutil.Process(server.process.pid)
        (worker,) = own.children()
        worker.kill()
        until = time.monotonic() + 60
        while not (alive := [c for c in own.children() if c.pid != worker.pid and c.status() != "zombie"]):
            assert time.monotonic() < until, "no other worker was started"
            time.sleep(0.2)
        assert "worker" in alive[0].cmdline()
    finally:
        server.stop()


def test_sigterm_ends_the_server_its_worker_and_the_write_ahead_log(tmp_path, make_server):
    """What systemd sends ends the page as Ctrl-C does."""
    import psutil

    server = make_server(tmp_path, 1).start()
    process = server.process
    try:
        (worker,) = psutil.Process(process.pid).children()
        assert (tmp_path / "etude.sqlite-wal").exists()
        server.stop(alone=True)
        assert process.returncode == 0
        assert not worker.is_running()
        assert {p.name for p in tmp_path.iterdir()} == {"etude.sqlite", "etude.secret"}
    finally:
        server.stop()
