"""The outbox against a real SMTP server: sent, put off (4xx), bounced (5xx), paused after three soft failures."""

import socket
from email import message_from_bytes
from email.policy import SMTP

import pytest
import sqlalchemy as sa

pytest.importorskip("aiosmtpd", reason="the extra test is not installed")
pytest.importorskip("email_validator", reason="the extra web is not installed")
from aiosmtpd.controller import Controller

from etude.page import tables as t
from etude.page.database import Database
from etude.page.digest import mail
from etude.page.digest.send import GIVE_UP, LEASE, RETRY_MINUTES, Smtp, claim, send_due, transport
from etude.page.settings import Settings

SETTINGS = Settings(secret="a test's secret, long enough to be taken", mail_from="Etude <etude@example.org>")
NOW = 1_790_000_000


class Mailbox:
    """Takes every mail, or refuses recipients, or hangs up on them, as it is told."""

    def __init__(self):
        self.mails, self.refuse, self.hang_up, self.tries = [], {}, set(), []

    async def handle_RCPT(self, server, session, envelope, address, options):
        if address in self.refuse:
            return self.refuse[address]
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server, session, envelope):
        self.tries += envelope.rcpt_tos
        if self.hang_up & set(envelope.rcpt_tos):
            server.transport.close()
        self.mails.append((envelope.mail_from, envelope.rcpt_tos, envelope.original_content or envelope.content))
        return "250 OK"


@pytest.fixture
def box():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    made = Mailbox()
    server = Controller(made, hostname="127.0.0.1", port=port)
    server.start()
    made.url = f"smtp+plain://127.0.0.1:{port}"
    yield made
    server.stop()


@pytest.fixture
def db(tmp_path):
    made = Database(tmp_path / "p.sqlite")
    yield made
    made.close()


def subscriber(db, email):
    values = {"email": email, "status": "active", "frequency": "weekly", "zone": "UTC", "hour": 7, "filters": {},
              "soft_failures": 0, "created_at": NOW, "next_at": NOW}  # fmt: skip
    with db.begin() as c:
        return c.execute(sa.insert(t.subscriber).values(**values)).inserted_primary_key[0]


def queue(db, email, key, who=None, now=NOW):
    raw = mail.build(SETTINGS, email, "Tëst", "text é", "<p>hôtel</p>", now)
    with db.begin() as c:
        return mail.queue(c, mail.Mail(email, "Tëst", raw, key, who), now=now)


def send(db, box, now=NOW):
    return send_due(db, Smtp(box.url, "etude@example.org"), clock=lambda: now, sleep=lambda _: None)


def state(db, table=t.outbox):
    return db.rows(sa.select(table).order_by(table.c.id))[-1]


def test_a_mail_arrives_once(db, box):
    assert queue(db, "ann@example.org", "a")
    assert not queue(db, "ann@example.org", "a")
    assert send(db, box) == {"sent": 1, "later": 0, "bounced": 0}
    assert send(db, box, NOW + 999_999) == {"sent": 0, "later": 0, "bounced": 0}
    ((sender, recipients, raw),) = box.mails
    message = message_from_bytes(raw, policy=SMTP)
    assert (sender, recipients, message["Subject"]) == ("etude@example.org", ["ann@example.org"], "Tëst")
    assert message.get_body(("plain",)).get_content().strip() == "text é"


def test_4xx_is_tried_again_later(db, box):
    who = subscriber(db, "ann@example.org")
    queue(db, "ann@example.org", "a", who)
    box.refuse = {"ann@example.org": "451 greylisted"}
    assert send(db, box) == {"sent": 0, "later": 1, "bounced": 0}
    row = state(db)
    assert (row["status"], row["next_at"], row["tries"]) == ("queued", NOW + 300, 1)
    assert "451" in row["error"]
    assert send(db, box, NOW + 299)["later"] == 0
    box.refuse = {}
    assert send(db, box, NOW + 300)["sent"] == 1
    assert state(db, t.subscriber)["soft_failures"] == 0


def test_three_soft_failures_pause_and_the_tries_end(db, box):
    who = subscriber(db, "ann@example.org")
    queue(db, "ann@example.org", "a", who)
    box.refuse = {"ann@example.org": "451 later"}
    now = NOW
    for n, minutes in enumerate(RETRY_MINUTES, start=1):
        assert send(db, box, now)["later"] == 1
        assert state(db)["next_at"] == now + 60 * minutes
        assert state(db, t.subscriber)["status"] == ("paused" if n >= 3 else "active")
        now += 60 * minutes
    send(db, box, now)
    assert state(db)["status"] == "failed"
    assert state(db, t.subscriber)["next_at"] is None


def test_5xx_bounces_and_the_others_get_theirs(db, box):
    gone, here = subscriber(db, "gone@example.org"), subscriber(db, "here@example.org")
    queue(db, "gone@example.org", "a", gone)
    queue(db, "here@example.org", "b", here)
    box.refuse = {"gone@example.org": "550 no such user"}
    assert send(db, box) == {"sent": 1, "later": 0, "bounced": 1}
    assert [r["status"] for r in db.rows(sa.select(t.outbox).order_by(t.outbox.c.id))] == ["bounced", "sent"]
    assert [r["status"] for r in db.rows(sa.select(t.subscriber).order_by(t.subscriber.c.id))] == ["bounced", "active"]
    assert send(db, box, NOW + 999_999)["bounced"] == 0


def test_a_server_that_is_away_loses_nothing(db, box):
    queue(db, "ann@example.org", "a")
    away = Smtp("smtp+plain://127.0.0.1:1", "etude@example.org")
    assert send_due(db, away, clock=lambda: NOW, sleep=lambda _: None)["later"] == 1
    assert send(db, box, NOW + 300)["sent"] == 1


def test_a_worker_that_died_is_followed_by_another(db, box):
    queue(db, "ann@example.org", "a")
    assert claim(db, NOW) is not None
    assert claim(db, NOW) is None  # two workers never hold one mail
    assert send(db, box, NOW + LEASE)["sent"] == 0
    assert send(db, box, NOW + LEASE + 1)["sent"] == 1


def test_starttls_is_not_left_out(db, box):
    """A server without STARTTLS gets no mail over a connection that should be encrypted."""
    queue(db, "ann@example.org", "a")
    way = Smtp(box.url.replace("smtp+plain", "smtp"), "etude@example.org")
    assert send_due(db, way, clock=lambda: NOW, sleep=lambda _: None)["later"] == 1
    assert box.mails == []


def test_the_sender_is_the_settings_address():
    made = transport(Settings(smtp_url="smtp://user:p%40ss@mail.example.org:587", mail_from="E <e@example.org>"))
    assert isinstance(made, Smtp)
    assert made._sender == "e@example.org"


def test_a_server_that_refuses_us_says_nothing_of_the_readers(db, box):
    async def refuse(server, session, envelope, address, options):
        return "550 sender unknown"

    who = subscriber(db, "ann@example.org")
    queue(db, "ann@example.org", "a", who)
    queue(db, "ann@example.org", "b", who)
    box.handle_MAIL = refuse
    assert send(db, box) == {"sent": 0, "later": 2, "bounced": 0}
    assert {r["status"] for r in db.rows(sa.select(t.outbox))} == {"queued"}
    row = state(db, t.subscriber)
    assert (row["status"], row["soft_failures"]) == ("active", 0)
    del box.handle_MAIL
    assert send(db, box, NOW + 3600)["sent"] == 2


def test_a_mail_that_makes_the_server_hang_up_holds_up_no_other_and_ends(db, box):
    who = subscriber(db, "odd@example.org")
    queue(db, "odd@example.org", "a", who)
    for name in ("b", "c"):
        queue(db, f"{name}@example.org", name)
    box.hang_up = {"odd@example.org"}
    assert send(db, box) == {"sent": 2, "later": 1, "bounced": 0}
    now = NOW
    while (row := db.rows(sa.select(t.outbox))[0])["status"] == "queued":
        assert row["next_at"] - now in {60 * minutes for minutes in RETRY_MINUTES}
        now = row["next_at"]
        send(db, box, now)
    assert row["status"] == "failed"
    assert NOW + GIVE_UP <= now < NOW + GIVE_UP + 60 * RETRY_MINUTES[-1]
    assert box.tries.count("odd@example.org") < 25
    assert state(db, t.subscriber)["soft_failures"] == 0


def test_a_server_that_hangs_up_on_everybody_is_left_alone(db, box):
    box.hang_up = {f"{n}@example.org" for n in range(5)}
    for address in sorted(box.hang_up):
        queue(db, address, address)
    assert send(db, box)["later"] == 2
    box.hang_up = set()
    assert send(db, box, NOW + 300)["sent"] == 5


@pytest.mark.parametrize(("key", "life"), [(mail.LOGIN_KEY, 900), (mail.AUTHOR_KEY, 48 * 3600)])
def test_a_link_that_is_dead_is_not_sent(db, box, key, life):
    queue(db, "ann@example.org", f"{key}x")
    queue(db, "bob@example.org", f"{key}y", now=NOW + 1)
    assert send(db, box, NOW + life)["sent"] == 1
    rows = [(r["status"], r["recipient"], r["raw"]) for r in db.rows(sa.select(t.outbox).order_by(t.outbox.c.id))]
    assert rows == [("failed", "", ""), ("sent", "", "")]
    assert box.tries == ["bob@example.org"]
