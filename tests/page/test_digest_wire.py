"""Digests as servers and readers get them: raw headers, who is kept on the list, what one reader's wishes may break."""

from datetime import datetime
from zoneinfo import ZoneInfo

import pytest
import sqlalchemy as sa

pytest.importorskip("fastapi", reason="the extra web is not installed")
pytest.importorskip("aiosmtpd", reason="the extra test is not installed")

from tests.page.test_community import single  # noqa: F401
from tests.page.test_smtp import NOW, box, db, queue, send, state, subscriber  # noqa: F401

from etude.errors import UsageError
from etude.page import store
from etude.page import tables as t
from etude.page.digest import compose, mail, subscribe
from etude.page.digest.schedule import next_run, window
from etude.page.digest.send import Folder, Smtp, claim, send_due
from etude.page.identity import arxiv_id, doi
from etude.page.records import make_record
from etude.page.retention import purge
from etude.page.search.lexical import index_matches
from etude.page.settings import Settings

DAY = 86_400
WEEKLY = {"status": "active", "frequency": "weekly", "zone": "UTC", "hour": 7, "filters": {}, "soft_failures": 0,
          "created_at": NOW - 90 * DAY, "confirmed_at": NOW - 90 * DAY, "next_at": NOW, "language": "en"}  # fmt: skip


def member(db, email, **more):  # noqa: F811
    with db.begin() as c:
        return c.execute(sa.insert(t.subscriber).values(email=email, **WEEKLY | more)).inserted_primary_key[0]


def digest(settings, row):
    papers = [{"id": 1, "slug": "a", "title": "A", "short": "b", "names": "N"}]
    token = subscribe.unsubscribe_token(settings, row["id"], row["created_at"])
    return mail.digest(settings, row, papers, [], token=token, period="p", now=NOW)


def header(raw, name):
    """The bytes of a header as they are on the wire, up to the line's end."""
    (line,) = [x for x in raw.split(b"\r\n") if x.lower().startswith(name.lower() + b":")]
    return line.partition(b":")[2].strip()


def test_the_way_out_is_plain_on_the_wire(db, box, tmp_path):  # noqa: F811
    settings = Settings(secret="a" * 60, base_url="https://papers.a-long-name-of-a-lab.example.org",
                        mail_from="Étude <etude@example.org>")  # fmt: skip
    row = db.rows(sa.select(t.subscriber).where(t.subscriber.c.id == member(db, "ann@example.org")))[0]
    made = digest(settings, row)
    with db.begin() as c:
        mail.queue(c, made, now=NOW)
    assert send(db, box)["sent"] == 1
    with db.begin() as c:
        c.execute(sa.update(t.outbox).values(status="queued"))
    assert send_due(db, Folder(tmp_path / "mails"), clock=lambda: NOW)["sent"] == 1
    (file,) = (tmp_path / "mails").glob("*.eml")
    assert file.stat().st_mode & 0o077 == 0  # it holds an address, and others hold links that sign in
    for raw in (box.mails[-1][2], file.read_bytes()):
        way = header(raw, b"List-Unsubscribe")
        assert way.startswith(b"<https://papers.a-long-name-of-a-lab.example.org/u/"), way
        assert way.endswith(b">, <mailto:etude@example.org?subject=unsubscribe>")
        assert header(raw, b"List-Unsubscribe-Post") == b"List-Unsubscribe=One-Click"
        assert b"<etude@example.org>" in header(raw, b"From")
        assert max(map(len, raw.split(b"\r\n"))) <= 998


def test_a_server_that_is_away_for_hours_says_nothing_of_the_readers(db, box):  # noqa: F811
    who = subscriber(db, "ann@example.org")
    queue(db, "ann@example.org", "a", who)
    away, now = "smtp+plain://127.0.0.1:1", NOW
    for _ in range(6):
        assert send_due(db, Smtp(away, "e@example.org"), clock=lambda at=now: at, sleep=lambda _: None)["later"] == 1
        now += 3600
    row = state(db, t.subscriber)
    assert (row["status"], row["soft_failures"], row["next_at"]) == ("active", 0, NOW)
    assert send(db, box, now)["sent"] == 1


def test_a_mailbox_that_takes_mail_again_gets_it_again(db, box):  # noqa: F811
    who = subscriber(db, "ann@example.org")
    queue(db, "ann@example.org", "a", who)
    box.refuse, now = {"ann@example.org": "451 full"}, NOW
    for _ in range(3):
        send(db, box, now)
        now = state(db)["next_at"]
    assert state(db, t.subscriber)["status"] == "paused"
    box.refuse = {}
    assert send(db, box, now)["sent"] == 1
    row = state(db, t.subscriber)
    assert (row["status"], row["next_at"]) == ("active", next_run(now, "weekly", "UTC", 7))


def test_a_paused_subscription_stays_as_it_is_until_the_wish_is_confirmed(db, monkeypatch):  # noqa: F811
    settings, paused = Settings(secret="a" * 60), {"status": "paused", "next_at": None, "soft_failures": 3}
    who = member(db, "ann@example.org", **paused)
    before, tokens = state(db, t.subscriber), iter("abc")
    monkeypatch.setattr(subscribe, "new_token", lambda: next(tokens))
    wish = subscribe.Wish(email="ann@example.org", frequency="monthly", hour=9, language="de")
    ask = lambda: subscribe.subscribe(db, settings, wish, network="n", now=NOW)
    kept = ("status", "frequency", "hour", "language", "account_id")
    ask()
    assert {k: state(db, t.subscriber)[k] for k in kept} == {k: before[k] for k in kept}
    purge(db, NOW + 8 * DAY)
    late = state(db, t.subscriber)
    assert (late["status"], late["wish"], subscribe.confirm(db, "a", NOW + 8 * DAY)) == ("paused", None, False)
    ask()
    assert subscribe.pending(db, "b", NOW)["id"] == who
    assert subscribe.confirm(db, "b", NOW)
    assert not subscribe.confirm(db, "b", NOW), "the link works once"
    row = state(db, t.subscriber)
    assert (row["status"], row["frequency"], row["hour"], row["language"]) == ("active", "monthly", 9, "de")
    assert (row["next_at"], row["soft_failures"]) == (next_run(NOW, "monthly", "UTC", 9), 0)
    with db.begin() as c:
        c.execute(sa.update(t.subscriber).values(**paused))
    ask()
    assert subscribe.unsubscribe(db, settings, subscribe.unsubscribe_token(settings, who, row["created_at"]))
    assert not subscribe.confirm(db, "c", NOW), "who left afterwards has left"


def test_leaving_stops_a_mail_that_somebody_began_to_send(db, box):  # noqa: F811
    settings = Settings(secret="a" * 60)
    row = db.rows(sa.select(t.subscriber).where(t.subscriber.c.id == member(db, "ann@example.org")))[0]
    queue(db, "ann@example.org", "a", row["id"])
    assert claim(db, NOW) is not None  # its sender dies here
    assert subscribe.unsubscribe(db, settings, subscribe.unsubscribe_token(settings, row["id"], row["created_at"]))
    assert send(db, box, NOW + DAY) == {"sent": 0, "later": 0, "bounced": 0}


def test_one_readers_odd_search_stops_nobodys_digest(single):  # noqa: F811
    s, now = single.site, int(single.site.now)
    with s.db.begin() as c:
        c.execute(sa.update(t.paper).values(submitted_at=now - 60))
    member(s.db, "odd@example.org", filters={"q": "http://[x"}, next_at=now)
    member(s.db, "ann@example.org", next_at=now)
    compose.due(s.db, s.settings, now)
    assert [r["recipient"] for r in s.db.rows(sa.select(t.outbox.c.recipient))] == ["ann@example.org"]


def test_a_digest_that_cannot_be_made_stops_no_other(single, monkeypatch, caplog):  # noqa: F811
    s, now = single.site, int(single.site.now)
    with s.db.begin() as c:
        c.execute(sa.update(t.paper).values(submitted_at=now - 60))
    odd = member(s.db, "odd@example.org", next_at=now)
    member(s.db, "ann@example.org", next_at=now)
    whole = compose.contents

    def breaks(db, row, *more):  # noqa: F811
        if row["id"] == odd:
            raise RuntimeError("odd")
        return whole(db, row, *more)

    monkeypatch.setattr(compose, "contents", breaks)
    assert compose.due(s.db, s.settings, now) == 1
    assert f"subscriber {odd}" in caplog.text
    assert "odd@example.org" not in caplog.text


@pytest.mark.parametrize("path", ["/search", "/api/papers", "/feed.atom"])
@pytest.mark.parametrize("q", ["http://[x", "//[x", "https://[::1/abs/1706.03762"])
def test_what_looks_like_an_address_is_searched_for(single, path, q):  # noqa: F811
    assert single.get(path, params={"q": q}).status_code == 200


def test_identifiers_come_from_their_own_hosts():
    assert arxiv_id("https://export.arxiv.org/abs/1706.03762v2") == ("1706.03762", 2)
    assert doi("https://dx.doi.org/10.1000/XYZ") == "10.1000/xyz"
    for other in ("https://evilarxiv.org/abs/1706.03762", "https://evildoi.org/10.1000/xyz", "http://[x"):
        assert arxiv_id(other) is None
        assert doi(other) is None


def test_who_was_here_before_is_not_forgotten(single):  # noqa: F811
    s, now = single.site, int(single.site.now)
    who = member(s.db, "ann@example.org", created_at=now - 90 * DAY, confirmed_at=now - 90 * DAY)
    row = s.db.rows(sa.select(t.subscriber))[0]
    token = subscribe.unsubscribe_token(s.settings, who, row["created_at"])
    with s.db.begin() as c:
        c.execute(sa.insert(t.sent_item).values(subscriber_id=who, paper_id=1))
    assert subscribe.unsubscribe(s.db, s.settings, token)
    wish = subscribe.Wish(email="ann@example.org")
    subscribe.subscribe(s.db, s.settings, wish, network="n", now=now)
    purge(s.db, now + 900)
    assert s.db.rows(sa.select(t.subscriber))[0]["status"] == "pending", "the link of the new mail works"
    subscribe.subscribe(s.db, s.settings, subscribe.Wish(email="new@example.org"), network="n", now=now)
    purge(s.db, now + 8 * DAY)
    (left,) = s.db.rows(sa.select(t.subscriber))
    assert (left["email"], left["status"], left["confirm_hash"]) == ("ann@example.org", "unsubscribed", None)
    assert subscribe.by_token(s.db, s.settings, token) is not None
    assert len(s.db.rows(sa.select(t.sent_item))) == 1, "no paper is sent twice"


def test_addresses_are_written_in_ascii(single):  # noqa: F811
    with pytest.raises(UsageError, match="no e-mail address"):
        subscribe.check_address("josé@example.org")
    assert subscribe.check_address("Ann@exämple.org") == "ann@xn--exmple-cua.org"
    page = single.get("/subscribe").text
    form = {"email": "josé@example.org", "csrf": page.split('name="csrf" value="')[1].split('"')[0]}
    answer = single.post("/subscribe", data=form)
    assert answer.status_code == 400
    assert "no e-mail address" in answer.text


@pytest.mark.parametrize("language", ["en", "de", "es", "fr"])
def test_a_second_wish_is_answered_in_its_language(language):
    row = {"frequency": "weekly", "language": language}
    said = mail.already_subscribed(Settings(), "ann@example.org", row, NOW).raw
    assert ("unchanged" in said) is False
    assert ("Nothing has changed" in said) == (language == "en")


@pytest.mark.parametrize(
    ("zone", "hour"),
    [
        ("Europe/Berlin", 7), ("America/New_York", 7), ("UTC", 7), ("Australia/Lord_Howe", 7),
        ("Africa/Cairo", 0), ("Australia/Lord_Howe", 2),  # hours that a change of clocks skips
    ],
)  # fmt: skip
@pytest.mark.parametrize("frequency", ["weekdays", "weekly", "monthly"])
def test_every_moment_of_three_years_is_in_some_mail(zone, hour, frequency):
    at = next_run(1_770_000_000, frequency, zone, hour)
    while at < 1_770_000_000 + 1000 * DAY:
        following = next_run(at, frequency, zone, hour)
        assert window(following, frequency, zone, hour) <= at, datetime.fromtimestamp(following, ZoneInfo(zone))
        at = following


@pytest.mark.parametrize(
    ("filters", "papers", "changes"),
    [
        ({}, {"of-trust", "of-speed"}, 40),
        ({"rooms": ["trust"]}, {"of-trust"}, 0),
        ({"rooms": ["kernels"]}, {"of-speed"}, 40),
        ({"q": "room:trust"}, {"of-trust"}, 0),
        ({"q": "tag:quick"}, {"of-speed"}, 40),
        ({"q": "author:ann -words"}, {"of-speed"}, 40),
        ({"q": "verdict:holds"}, {"of-speed"}, 40),
        ({"q": "words verdict:holds"}, set(), 0),
        ({"q": "has:study"}, set(), 0),
    ],
)
def test_filters_of_a_digest_mean_what_they_mean_on_the_page(db, filters, papers, changes):  # noqa: F811
    made = [
        make_record(title="Of trust", abstract="words", room="trust", authors=["Ann"]),
        make_record(title="Of speed", abstract="figures", room="kernels", tags=["quick"], authors=["Ann"]),
    ]
    store.add_all(db, made, source="form", now=NOW - DAY, after=index_matches)
    log = {"slug": "of-speed", "protocol": "p", "tier": "laptop", "verdict": "holds", "record": {}, "run": "r"}
    with db.begin() as c:
        c.execute(sa.insert(t.verdict_log), [log | {"claim": f"T{i}", "at": NOW - DAY + i} for i in range(40)])
    who = member(db, "ann@example.org", filters=filters)
    row = db.rows(sa.select(t.subscriber).where(t.subscriber.c.id == who))[0]
    got = compose.contents(db, row, NOW)
    assert ({p["slug"] for p in got[0]}, len(got[1])) == (papers, changes)
    if changes:
        text = compose.preview(db, Settings(secret="a" * 60), row, NOW).raw
        assert f"{changes} re-tested" in text and "+ 10: http" in text
