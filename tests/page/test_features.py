"""Authors of papers, disputes, heat of readers' studies, the digest in one's own order, badges of search quality."""

import os
import re
import shutil
from email import message_from_bytes
from email.policy import SMTP

import numpy as np
import pytest
import sqlalchemy as sa

pytest.importorskip("fastapi", reason="the extra web is not installed")
from fastapi.testclient import TestClient

from etude.errors import LedgerError, UsageError
from etude.lab.queue import request_table
from etude.page import accounts, authorship, commands, fetch, library, notes, upkeep
from etude.page import tables as t
from etude.page.database import Database
from etude.page.digest.compose import contents, due
from etude.page.digest.subscribe import unsubscribe_token
from etude.page.search import quality
from etude.page.search.semantic import MODEL, SemanticIndex, digest, embed_pending
from etude.page.settings import Settings, from_environment
from etude.page.web.app import create_app

SECRET = "a test's secret, long enough to be taken"
BASE = "http://127.0.0.1:8000"
NOW = 1_790_000_000
DAY = 86_400


class Clock:
    now = float(NOW)

    def __call__(self):
        return self.now


def make(folder, mode):
    shutil.copyfile(os.environ["ETUDE_TEST_PAGE"], folder / f"{mode}.sqlite")
    settings = Settings(
        database=str(folder / f"{mode}.sqlite"), secret=SECRET, mail_folder=str(folder / "mail"), mode=mode,
        admin="boss@example.org", embed=False,
    )  # fmt: skip
    return create_app(settings, clock=Clock())


@pytest.fixture
def app(tmp_path):
    return make(tmp_path, "accounts")


@pytest.fixture
def page(tmp_path):
    with TestClient(make(tmp_path, "single"), base_url=BASE, follow_redirects=False) as client:
        client.site = client.app.state.site
        yield client


def csrf(client):
    return re.search(r'name="csrf" value="([^"]+)"', client.get("/subscribe").text).group(1)


def post(client, path, **data):
    return client.post(path, data={"csrf": csrf(client)} | data)


def person(app, handle, role="member"):
    """A signed-in reader."""
    db = app.state.site.db
    with db.begin() as c:
        row = {"handle": handle, "role": role, "created_at": 0, "for_you": False}
        who = c.execute(sa.insert(t.account).values(**row)).inserted_primary_key[0]
        token = accounts.open_session(c, who, NOW)
    client = TestClient(app, base_url=BASE, follow_redirects=False, cookies={"etude": token})
    client.site, client.id = app.state.site, who
    return client


def newest_mail(folder):
    path = sorted((folder / "mail").glob("*.eml"))[-1]
    return message_from_bytes(path.read_bytes(), policy=SMTP)


# Authors


def test_an_address_proves_and_a_moderator_decides(app, tmp_path):
    ann, mod = person(app, "ann"), person(app, "mod", "moderator")
    assert ann.get("/paper/gpicl/edit").status_code == 403
    assert post(ann, "/paper/gpicl/author", how="address", email="ann@uni.example").status_code == 303
    message = newest_mail(tmp_path)
    assert message["To"] == "ann@uni.example"
    link = re.search(r"/author/(\S+)", message.get_body(("plain",)).get_content()).group(1)
    db = app.state.site.db
    assert link not in str(db.rows(sa.select(t.authorship)))
    assert "ann@uni.example" not in str(db.rows(sa.select(t.authorship)) + db.rows(sa.select(t.outbox)))
    for _ in range(2):  # looking proves nothing
        assert "Yes, I read this address" in ann.get(f"/author/{link}").text
    assert "asked a...@uni.example" in mod.get("/moderation").text
    assert "Thank you" in post(ann, f"/author/{link}").text
    assert "does not work any more" in post(ann, f"/author/{link}").text
    assert "reads a...@uni.example" in mod.get("/moderation").text
    claim = db.rows(sa.select(t.authorship))[0]["id"]
    assert post(ann, f"/authors/{claim}/state", state="verified").status_code == 403
    assert ann.get("/paper/gpicl/edit").status_code == 403
    assert post(mod, f"/authors/{claim}/state", state="verified").status_code == 303
    assert ann.get("/paper/gpicl/edit").status_code == 200
    assert ann.get("/paper/phyll/edit").status_code == 403
    assert "Written by ann" in ann.get("/paper/gpicl").text
    assert any(r["what"] == "author verified" for r in db.rows(sa.select(t.audit)))


def test_an_old_link_of_an_author_is_dead(app, tmp_path):
    ann = person(app, "ann")
    post(ann, "/paper/gpicl/author", how="address", email="ann@uni.example")
    link = re.search(r"/author/(\S+)", newest_mail(tmp_path).get_body(("plain",)).get_content()).group(1)
    app.state.site.clock = lambda: NOW + authorship.LINK_SECONDS + 1
    assert authorship.pending_link(app.state.site.db, link, NOW + authorship.LINK_SECONDS) is None
    assert not authorship.follow_link(app.state.site.db, link, NOW + authorship.LINK_SECONDS)


def test_a_line_in_the_repository(app, monkeypatch):
    """Without fetching a moderator looks; with it the line alone is proof, and everybody has another line."""
    s = app.state.site
    paper = s.db.rows(sa.select(t.paper).where(t.paper.c.code_url.is_not(None)))[0]
    ann, ben, mod = person(app, "ann"), person(app, "ben"), person(app, "mod", "moderator")
    lines = [authorship.repository_token(s.settings, paper["id"], who.id) for who in (ann, ben)]
    assert len(set(lines)) == 2
    assert lines[0] in ann.get(f"/paper/{paper['slug']}").text
    monkeypatch.delenv("ETUDE_FETCH", raising=False)
    post(ann, f"/paper/{paper['slug']}/author", how="repository")
    assert "says it is in https://github.com" in mod.get("/moderation").text
    assert ann.get(f"/paper/{paper['slug']}/edit").status_code == 403
    monkeypatch.setenv("ETUDE_FETCH", "1")
    monkeypatch.setattr(fetch, "readme_holds", lambda url, token: token == lines[1])
    post(ben, f"/paper/{paper['slug']}/author", how="repository")
    post(ann, f"/paper/{paper['slug']}/author", how="repository")
    assert ben.get(f"/paper/{paper['slug']}/edit").status_code == 200
    assert ann.get(f"/paper/{paper['slug']}/edit").status_code == 403


def test_refused_is_refused(app):
    ann, mod = person(app, "ann"), person(app, "mod", "moderator")
    post(ann, "/paper/gpicl/author", how="address", email="ann@uni.example")
    post(mod, f"/authors/{app.state.site.db.rows(sa.select(t.authorship))[0]['id']}/state", state="refused")
    assert post(ann, "/paper/gpicl/author", how="address", email="ann@uni.example").status_code == 400
    assert post(ann, "/paper/gpicl/author", how="shouting").status_code == 400


# Disputes


def test_a_dispute_marks_its_claim_once_a_moderator_lets_it_stand(app):
    ann, mod = person(app, "ann"), person(app, "mod", "moderator")
    claim = re.search(r'<option value="([^"]+)">claim', ann.get("/paper/prototype-network").text).group(1)
    assert post(ann, "/paper/prototype-network/notes", text="No.", kind="dispute").status_code == 400
    assert post(ann, "/paper/prototype-network/notes", text="x", kind="shout", claim=claim).status_code == 400
    post(ann, "/paper/prototype-network/notes", text="The margin is wrong.", kind="dispute", claim=claim)
    db = app.state.site.db
    paper = db.rows(sa.select(t.paper.c.id).where(t.paper.c.slug == "prototype-network"))[0]["id"]
    assert notes.disputed(db, paper) == {}
    assert "disputed, 1 note" not in mod.get("/paper/prototype-network").text
    assert "<b>Dispute</b>" in mod.get("/moderation").text
    post(mod, f"/notes/{db.rows(sa.select(t.note))[0]['id']}/state", state="shown")
    assert notes.disputed(db, paper) == {claim: 1}
    assert "disputed, 1 note" in ann.get("/paper/prototype-network").text


def test_the_migration_of_authors_and_disputes_goes_both_ways(database):
    database.migrate(4)
    assert not sa.inspect(database.engine).has_table("authorship")
    assert "kind" not in {c["name"] for c in sa.inspect(database.engine).get_columns("note")}
    database.migrate()
    assert database.rows(sa.select(t.authorship)) == database.rows(sa.select(t.note.c.kind)) == []


# Heat


def test_a_readers_study_warms_once(page):
    s = page.site
    paper = s.db.rows(sa.select(t.paper).where(t.paper.c.slug == "prototype-network"))[0]
    for _ in range(2):
        request = post(page, "/run/prototype-network", tier="quick").headers["location"].rsplit("/", 1)[1]
        page.get(f"/runs/{request}")
        kinds = [e["kind"] for e in s.db.rows(sa.select(t.event).where(t.event.c.paper_id == paper["id"]))]
        assert kinds.count("study") == (0 if _ == 0 else 1)  # not before it is done, and not again
        with s.ledger.engine.begin() as c:
            c.execute(sa.update(request_table).values(state="done", ended=float(NOW)))
        s.refresh_verdicts()  # as the thread beside the page does; no view writes
        assert page.get(f"/runs/{request}").status_code == 200
    (event,) = s.db.rows(sa.select(t.event).where(t.event.c.kind == "study"))
    assert (event["weight"], event["paper_id"], event["at"]) == (1.5, paper["id"], NOW)
    after = s.db.rows(sa.select(t.paper).where(t.paper.c.slug == "prototype-network"))[0]
    assert after["heat_72"] > paper["heat_72"]


# Digest


def vectors(db, dimension=8):
    """Vectors in which papers of a room are near to each other."""
    rows = db.rows(sa.select(t.paper).order_by(t.paper.c.id))
    rooms = sorted({r["room"] for r in rows})
    rng = np.random.default_rng(0)
    centre = {room: rng.normal(size=dimension) for room in rooms}
    with db.begin() as c:
        for r in rows:
            x = centre[r["room"]] + 0.05 * rng.normal(size=dimension)
            x = (x / np.linalg.norm(x)).astype(np.float16)
            values = {"paper_id": r["id"], "model": MODEL, "digest": digest(r["title"], r["abstract"])}
            c.execute(sa.insert(t.vector).values(**values, f16=x.tobytes()))
    return rows


def subscriber(db, **more):
    values = {"email": "ann@example.org", "status": "active", "frequency": "weekly", "zone": "UTC", "hour": 7,
              "filters": {}, "soft_failures": 0, "created_at": 1, "confirmed_at": 1, "next_at": NOW} | more  # fmt: skip
    with db.begin() as c:
        return c.execute(sa.insert(t.subscriber).values(**values)).inserted_primary_key[0]


def test_for_you_in_the_digest_is_opt_in_twice(page):
    s, me = page.site, page.site.me()["id"]
    rows = vectors(s.db)
    room = max({r["room"] for r in rows}, key=lambda x: sum(r["room"] == x for r in rows))
    own = [r["id"] for r in rows if r["room"] == room]
    with s.db.begin() as c:
        for paper in own[:3]:
            library.keep(c, paper, me, tags=[], note="", read=False, now=NOW)
    who = subscriber(s.db, filters={"for_you": True}, account_id=me)

    def mail():
        row = s.db.rows(sa.select(t.subscriber).where(t.subscriber.c.id == who))[0]
        return [p["id"] for p in contents(s.db, row, NOW + 1, s.settings)[0]]

    by_heat = mail()
    with s.db.begin() as c:
        c.execute(sa.update(t.account).values(for_you=True))
    mine = mail()
    left = set(own[3:])
    assert mine != by_heat
    assert set(mine[: len(left)]) == left if len(left) < 10 else set(mine) <= left
    assert not set(mine) & set(own[:3])
    with s.db.begin() as c:
        c.execute(sa.update(t.subscriber).values(filters={}))
    assert mail() == by_heat
    assert due(s.db, s.settings, NOW) == 1


def test_authors_as_a_filter(page):
    s = page.site
    row = s.db.rows(sa.select(t.paper))[0]
    name = row["authors"][0]["name"]
    answer = post(page, "/subscribe", email="ann@example.org", authors=f" {name.upper()} , ", frequency="weekly")
    assert "on its way" in answer.text
    subscribed = s.db.rows(sa.select(t.subscriber))[0]
    assert subscribed["filters"] == {"authors": [name.upper()]}
    papers, _ = contents(s.db, subscribed, NOW + 1, s.settings)
    assert papers
    assert all(name in p["names"] or p["id"] == row["id"] for p in papers)


def test_less_often_instead_of_leaving(page):
    s = page.site
    who = subscriber(s.db, frequency="weekdays")
    link = f"/u/{unsubscribe_token(s.settings, who, 1)}"
    assert "monthly" in page.get(link).text
    assert s.db.rows(sa.select(t.subscriber))[0]["frequency"] == "weekdays"
    assert "From now on: monthly" in page.post(f"{link}/frequency", data={"frequency": "monthly"}).text
    assert s.db.rows(sa.select(t.subscriber))[0]["frequency"] == "monthly"
    assert page.post("/u/1.forged/frequency", data={"frequency": "weekly"}).status_code == 404
    assert page.post(f"{link}/frequency", data={"frequency": "hourly"}).status_code == 400
    page.post(link, data={"List-Unsubscribe": "One-Click"})
    assert page.post(f"{link}/frequency", data={"frequency": "weekly"}).status_code == 404


def test_the_mail_that_would_be_sent(tmp_path, monkeypatch, capsys):
    """`etude digest --dry-run` shows what is sent then, and sends nothing."""
    monkeypatch.chdir(tmp_path)
    site = make(tmp_path, "single").state.site
    subscriber(site.db, next_at=NOW)
    path = str(tmp_path / "single.sqlite")
    at = "2026-09-21T14:13:20"
    commands.digest(dry_run=True, for_="ANN@example.org", at=at, ledger=path)
    shown = capsys.readouterr().out
    assert "To: ann@example.org" in shown
    assert "List-Unsubscribe-Post: List-Unsubscribe=One-Click" in shown
    assert site.db.rows(sa.select(t.outbox)) == []
    assert site.db.rows(sa.select(t.sent)) == []
    for bad in ({"for_": "nobody@example.org"}, {"for_": "ann@example.org", "at": "soon"}, {"due": True}):
        with pytest.raises(UsageError):
            commands.digest(**({"dry_run": True, "ledger": path} | bad))


# The API, settings, backup


def test_api_answers_have_tags(page):
    first = page.get("/api/papers")
    assert page.get("/api/papers", headers={"if-none-match": first.headers["etag"]}).status_code == 304
    post(page, "/vote/gpicl", wanted="true")
    changed = page.get("/api/papers", headers={"if-none-match": first.headers["etag"]})
    assert changed.status_code == 200
    assert changed.headers["etag"] != first.headers["etag"]
    assert changed.headers["content-encoding"] == "gzip"


def test_proxies_from_the_environment(monkeypatch):
    monkeypatch.setenv("ETUDE_PROXIES", "127.0.0.1, ::1")
    assert from_environment()["trusted_proxies"] == ("127.0.0.1", "::1")


def test_a_backup_comes_back(tmp_path):
    page = make(tmp_path, "single").state.site
    with page.db.begin() as c:
        library.save_search(c, page.me()["id"], "mine", "graphs", NOW)
    copy, back = tmp_path / "copy.sqlite", tmp_path / "back.sqlite"
    commands.backup(copy, ledger=str(tmp_path / "single.sqlite"))
    with pytest.raises(LedgerError, match="exists"):
        upkeep.restore(copy, ledger=str(tmp_path / "single.sqlite"))
    upkeep.restore(copy, ledger=str(back))
    again = Database(back)
    for table in t.meta.sorted_tables:
        assert again.rows(sa.select(table)) == page.db.rows(sa.select(table)), table.name
    again.close()
    (tmp_path / "bad").write_bytes(copy.read_bytes()[:5000])
    with pytest.raises(LedgerError, match="damaged|read"):
        upkeep.restore(tmp_path / "bad", ledger=str(tmp_path / "other.sqlite"))
    (tmp_path / "empty").touch()
    with pytest.raises(LedgerError, match="holds no page"):
        upkeep.restore(tmp_path / "empty", ledger=str(tmp_path / "other.sqlite"))
    with pytest.raises(LedgerError, match="no folder"):
        upkeep.restore(copy, ledger=str(tmp_path / "none" / "other.sqlite"))
    assert not [p.name for p in tmp_path.iterdir() if p.name.startswith("other")]


def test_no_old_log_is_played_into_a_backup(tmp_path):
    live, copy = tmp_path / "live.sqlite", tmp_path / "copy.sqlite"
    shutil.copyfile(os.environ["ETUDE_TEST_PAGE"], live)
    db = Database(live)
    db.backup(copy)
    with db.begin() as c:
        c.execute(sa.update(t.paper).values(votes=7))
    log = live.with_name("live.sqlite-wal")
    written = log.read_bytes()  # as a killed server leaves it
    db.close()
    live.rename(tmp_path / "moved.sqlite")
    log.write_bytes(written)
    with pytest.raises(LedgerError, match="live.sqlite-wal belongs to the database that was there"):
        upkeep.restore(copy, ledger=str(live))
    log.unlink()
    upkeep.restore(copy, ledger=str(live))
    assert not {r["votes"] for r in Database(live).rows(sa.select(t.paper.c.votes))} & {7}


def test_nothing_is_copied_from_nowhere(tmp_path):
    with pytest.raises(LedgerError, match="nothing to copy"):
        commands.backup(tmp_path / "copy.sqlite", ledger=str(tmp_path / "typo.sqlite"))
    assert not list(tmp_path.iterdir())
    shutil.copyfile(os.environ["ETUDE_TEST_PAGE"], tmp_path / "p.sqlite")
    with pytest.raises(LedgerError, match="cannot be written"):
        commands.backup(tmp_path / "none" / "copy.sqlite", ledger=str(tmp_path / "p.sqlite"))


# The quality of search and taste


def words(texts):
    """An encoder by hashed words, good enough to tell papers apart."""
    out = np.zeros((len(texts), 256), np.float32)
    for i, text in enumerate(texts):
        for w in re.findall(r"\w+", text.lower()):
            out[i, sum(map(ord, w)) * 31 % 256] += 1
    return out / np.maximum(np.linalg.norm(out, axis=1, keepdims=True), 1e-9)


def test_index_check(page):
    while embed_pending(page.site.db, words):
        pass
    index = SemanticIndex(page.site.db, words)
    index.refresh()
    found = quality.check(page.site.db, index=index, most=20)
    assert found.papers == 20
    assert found.title_mrr >= 0.99
    assert set(found.sentence_mrr) == {"words", "meaning", "both"}
    assert 0.5 < found.recall_at_10 <= 1.0
    alone = quality.check(page.site.db, most=5)
    assert set(alone.sentence_mrr) == {"words"}


def test_leave_one_out_auc():
    """A taste that can be seen gives 1, one that is noise about one half; the peer is measured the same way."""
    rng = np.random.default_rng(0)
    ids = np.arange(60) + 100
    centre = rng.normal(size=16)
    x = rng.normal(size=(60, 16))
    x[:8] = centre * 3 + 0.1 * rng.normal(size=(8, 16))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    for model in (None, quality.tfidf_svm):
        assert quality.leave_one_out_auc(ids, x, ids[:8].tolist(), model=model) > 0.99
        noise = [
            quality.leave_one_out_auc(ids, x, (ids[8:][rng.permutation(52)[:10]]).tolist(), model=model)
            for _ in range(8)
        ]
        assert 0.3 < np.mean(noise) < 0.7
    with pytest.raises(ValueError, match="at least 4"):
        quality.leave_one_out_auc(ids, x, [100, 101, 102])
    rows = quality.tfidf(["graph nets learn", "graph search", "a vision net"])
    assert rows.shape[0] == 3
