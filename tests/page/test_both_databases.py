"""The same page on SQLite and on PostgreSQL: sign in, vote, search, follow, subscribe, the digest, one's own data."""

import re
from email import message_from_bytes
from email.policy import SMTP

import pytest
import sqlalchemy as sa

pytest.importorskip("fastapi", reason="the extra web is not installed")
pytest.importorskip("httpx2", reason="the extra web is not installed")

from fastapi.testclient import TestClient

from etude.page import store
from etude.page import tables as t
from etude.page.database import Database, steps
from etude.page.digest.compose import due
from etude.page.digest.send import Folder, send_due
from etude.page.listing import Filters, listing
from etude.page.records import make_record
from etude.page.search.finding import find
from etude.page.search.hybrid import search
from etude.page.search.lexical import index_matches
from etude.page.search.query import parse
from etude.page.settings import Settings
from etude.page.web.app import create_app

DAY = 86_400


class Clock:
    now = 1_790_000_000.0

    def __call__(self):
        return self.now


@pytest.fixture
def app(database, tmp_path):
    url = database.engine.url.render_as_string(hide_password=False)
    settings = Settings(
        database=url, secret="a test's secret, long enough to be taken", mode="accounts", embed=False,
        mail_folder=str(tmp_path / "mail"),
    )  # fmt: skip
    made = create_app(settings, clock=Clock())
    made.state.mail = tmp_path / "mail"
    yield made
    made.state.site.db.close()
    made.state.site.ledger.engine.dispose()


def browser(app):
    return TestClient(app, base_url="http://127.0.0.1:8000", follow_redirects=False)


def post(client, path, **data):
    csrf = re.search(r'name="csrf" value="([^"]+)"', client.get("/subscribe").text).group(1)
    return client.post(path, data={"csrf": csrf} | data)


def newest_mail(app):
    send_due(app.state.site.db, Folder(app.state.mail), clock=app.state.site.clock)
    return message_from_bytes(sorted(app.state.mail.glob("*.eml"))[-1].read_bytes(), policy=SMTP)


def link(mail, what):
    return re.search(rf"8000(/{what}/\S+)", mail.get_body(("plain",)).get_content()).group(1)


def signed_in(app, address):
    client = browser(app)
    assert post(client, "/login", email=address).status_code == 200
    assert post(client, link(newest_mail(app), "login")).status_code == 303
    return client


def test_sign_in_vote_search_and_follow(app):
    ann, site = signed_in(app, "ann@example.org"), app.state.site
    assert "rnn-sparsity" in ann.get("/?sort=new").text
    assert post(ann, "/vote/rnn-sparsity", wanted="true").status_code == 303
    assert post(ann, "/vote/rnn-sparsity", wanted="true").status_code == 303
    assert ann.get("/api/papers/rnn-sparsity").json()["votes"] == 1
    assert post(ann, "/vote/rnn-sparsity", wanted="false").status_code == 303
    assert ann.get("/api/papers/rnn-sparsity").json()["votes"] == 0
    for words in ("sparsity recurrent", '"recurrent neural"', "sparsity -networks", "room:kernels width", "' OR 1=1"):
        assert ann.get("/search", params={"q": words}).status_code == 200
    found = ann.get("/api/papers", params={"q": "sparsity recurrent networks"}).json()["papers"]
    assert found[0]["slug"] == "rnn-sparsity"
    new = make_record(title="Fresh words", abstract="of hers", authors=["Ann Lee"], arxiv_id="2601.00001", tags=["odd"])
    store.add_all(site.db, [new], source="form", now=site.now, after=index_matches)
    for kind, value in (("author", "Ann Lee"), ("tag", "Odd"), ("room", "kernels")):
        assert post(ann, "/follow", kind=kind, value=value).status_code == 303
    shown = re.findall(r'<h2><a href="/paper/([^"]+)"', ann.get("/following").text)
    assert shown[0] == "fresh-words"
    kernels = site.db.rows(sa.select(t.paper.c.slug).where(t.paper.c.room == "kernels"))
    assert set(shown) == {"fresh-words", *(r["slug"] for r in kernels)}
    assert ann.get("/account/export.zip").status_code == 200 or ann.get("/account").status_code == 200


def test_subscribe_digest_and_out(app):
    ann, site = signed_in(app, "ann@example.org"), app.state.site
    site.clock.now += 10 * DAY  # the catalogue's papers are no news to her
    answer = post(ann, "/subscribe", email="ann@example.org", frequency="weekly", zone="Europe/Berlin", language="de")
    assert "on its way" in answer.text
    asked = newest_mail(app)
    assert "Öffne diesen Link" in asked.get_body(("plain",)).get_content()
    assert "You are in" in post(ann, link(asked, "confirm")).text
    site.clock.now += 8 * DAY
    papers = [make_record(title="Fresh paper", abstract="y", arxiv_id="2601.00002")]
    store.add_all(site.db, papers, source="form", now=site.now - 60, after=index_matches)
    assert due(site.db, site.settings, site.now) == 1
    assert due(site.db, site.settings, site.now) == 0
    mail = newest_mail(app)
    assert mail["Subject"].startswith("Etude weekly: 1 papers")
    assert "Diese Mail kommt jede Woche." in mail.get_body(("plain",)).get_content()
    out = re.search(r"<http://127.0.0.1:8000(/u/[^>]+)>", mail["List-Unsubscribe"].replace("\r\n ", "")).group(1)
    one_click = {"content": "List-Unsubscribe=One-Click"}
    headers = {"content-type": "application/x-www-form-urlencoded"}
    assert [browser(app).post(out, **one_click, headers=headers).text for _ in range(2)] == ["unsubscribed"] * 2
    assert [r["status"] for r in site.db.rows(sa.select(t.subscriber))] == ["unsubscribed"]
    site.clock.now += 30 * DAY
    assert due(site.db, site.settings, site.now) == 0


def test_filters_reach_papers_that_words_alone_rank_far_down(database, now):
    rare = make_record(
        title="Old", abstract="widgets " + "of many other words " * 40, authors=["Zoë Ray"], tags=["rare"]
    )
    many = [make_record(title=f"Widgets {i}", abstract="widgets", tags=["common"]) for i in range(260)]
    store.add_all(database, [rare, *many], source="form", now=now, after=index_matches)
    found = [h.row["title"] for h in search(database, parse("widgets"), limit=200)]
    assert len(found) == 200
    assert "Old" not in found
    for text in ("widgets tag:rare", 'widgets author:"zoë ray"'):
        assert [h.row["title"] for h in search(database, parse(text))] == ["Old"]
    for filters in (Filters(tags=("rare", "none")), Filters(authors=("nobody", "ZOË RAY"))):
        assert [h.row["title"] for h in search(database, parse("widgets"), filters=filters)] == ["Old"]
        assert [r["title"] for r in listing(database, filters=filters, now=now).rows] == ["Old"]
    assert search(database, parse("widgets"), filters=Filters(rooms=("layers", "text"))) == []


def test_every_filter_and_exclusion_counts(database, now):
    papers = [
        make_record(title="On graphs", abstract="graph", authors=["Ann Lee", "Bo Na"], tags=["zeta", "eta"]),
        make_record(title="On words", abstract="text", authors=["Cy"], tags=["zeta"]),
    ]
    store.add_all(database, papers, source="form", now=now, after=index_matches)
    for text, titles in (
        ("-graph", ["On words"]), ('-"on words" tag:zeta', ["On graphs"]), ("tag:zeta tag:nothing", []),
        ("tag:zeta tag:eta", ["On graphs"]), ("author:name", []), ("author:na", ["On graphs"]),
        ("author:lee author:bo", ["On graphs"]), ("author:lee author:cy", []), ("-graph -text", []),
        ("verdict:holds", ["On words"]), ("on verdict:holds -graph", ["On words"]), ("has:study", []),
    ):  # fmt: skip
        hits = find(database, parse(text), Filters(), with_verdict=lambda _: frozenset({"on-words"}), now=now)
        assert [h.row["title"] for h in hits] == titles, text


def test_a_filter_with_a_minus_leaves_out(database, now):
    """Also in searches by meaning; what is not known of a paper (a day, a venue) is no reason to leave it out."""
    papers = [
        make_record(title="One net", authors=["Ann Lee"], tags=["zeta"], published_at=1_560_000_000, venue="A Place"),
        make_record(title="Two nets", authors=["Bo Na"], tags=["eta"], published_at=1_660_000_000),
        make_record(title="Three nets", authors=["Cy Lee"], room="layers"),
    ]
    store.add_all(database, papers, source="form", now=now, after=index_matches)

    class Everything:
        def rank(self, text, depth):
            return [1, 2, 3]

    for text, titles in (
        ("-author:lee", {"Two"}), ('-author:"ann lee"', {"Two", "Three"}), ("-tag:zeta", {"Two", "Three"}),
        ("-tag:zeta -tag:eta", {"Three"}), ("-room:layers", {"One", "Two"}), ("-venue:place", {"Two", "Three"}),
        ("-year:2019", {"Two", "Three"}), ("-year:2019..2023", {"Three"}), ("author:lee -tag:zeta", {"Three"}),
        ("-verdict:holds", {"One", "Three"}), ("-has:study", {"One", "Two", "Three"}),
        ("-author:", {"One", "Two", "Three"}), ("-year:x", {"One", "Two", "Three"}),
    ):  # fmt: skip
        for words, meaning in (("", None), ("nets ", None), ("nets ", Everything())):
            query = parse(words + text)
            with_verdict = lambda _: frozenset({"two-nets"})
            hits = find(database, query, Filters(), with_verdict=with_verdict, now=now, meaning=meaning)
            found = {h.row["title"].split()[0] for h in hits}
            assert found == titles, (words, text)


def test_phrases_and_exclusions_hold_however_a_paper_was_found(database, now):
    """By a typo's trigrams, by some of the words, by meaning: a word with a minus never shows, a phrase always."""
    papers = [
        make_record(title="Autognn for chairs", abstract="red paint"),
        make_record(title="Autognn for tables", abstract="blue paint"),
    ]
    store.add_all(database, papers, source="form", now=now, after=index_matches)

    class Both:
        def rank(self, text, depth):
            return [1, 2]

    for meaning in (None, Both()):
        for text in ("autognm -red", "autognn nonsense -red", '"blue paint" autognm', '"blue paint" autognn nonsense'):
            assert [h.row["id"] for h in search(database, parse(text), meaning=meaning)] == [2], text
        assert search(database, parse('autognn "red chairs"'), meaning=meaning) == []


def test_the_warmer_of_equal_papers_comes_first(database, now):
    """Heat decides between equals, by words or where words and meaning add up to the same, and nothing else."""
    alike = [make_record(title=f"Widgets {i}", abstract="of a kind") for i in "abc"]
    better = make_record(title="Widgets of widgets", abstract="widgets repeated")
    store.add_all(database, [*alike, better], source="form", now=now, after=index_matches)
    titles = lambda q="widgets", **how: [h.row["title"][-1] for h in search(database, parse(q), **how)]
    before = [x for x in titles() if x != "s"]
    assert before == ["a", "b", "c"]
    with database.begin() as c:
        store.happened(c, 2, "vote", 1.0, now=now)
        store.happened(c, 3, "vote", 5.0, now=now)
    best = titles().index("s")
    assert [x for x in titles() if x != "s"] == ["c", "b", "a"]
    with database.begin() as c:
        store.happened(c, 4, "vote", 0.5, now=now)
    assert titles().index("s") == best

    class Coldest:
        def rank(self, text, depth):
            return [1, 2, 3]  # the order of words the other way round, so that the first and the last are equal

    assert titles("widgets -repeated", meaning=Coldest()) == ["c", "a", "b"]


def test_typos_and_joined_words_find_titles(database, now):
    titles = (
        "Sparse Transformers at scale",
        "Auto-GNN: search of graph networks",
        "Learning trains: scaling, and ranking",
    )
    many = [make_record(title=f"On learning and training, part {i}", abstract="words") for i in range(300)]
    store.add_all(database, [*many, *(make_record(title=x, abstract="y") for x in titles)], source="form", now=now,
                  after=index_matches)  # fmt: skip
    for text, title in (("transfomers", titles[0]), ("autognn", titles[1]), ("transfomers room:none", None)):
        found = [h.row["title"] for h in search(database, parse(text))]
        assert found[:1] == ([title] if title else [])


def test_every_migration_down_and_up_keeps_what_it_can(database, now):
    """From the newest version to every older one and back: the papers and their votes are there as before."""
    with database.begin() as c:
        row = {"handle": "ann", "role": "member", "created_at": 0, "for_you": False}
        who = c.execute(sa.insert(t.account).values(**row)).inserted_primary_key[0]
    store.add_all(database, [make_record(title="A paper", abstract="of words")], source="form", now=now)
    assert store.set_vote(database, 1, who, True, now=now) == 1
    newest = steps()[-1][0]
    for number in range(newest - 1, 1, -1):  # below 2 the words of the index go
        database.migrate(number)
        assert database.version() == number
        database.migrate()
        assert database.version() == newest
        assert [r["votes"] for r in database.rows(sa.select(t.paper.c.votes))] == [1]
    names = {i["name"] for table in ("paper", "vector", "vote") for i in sa.inspect(database.engine).get_indexes(table)}
    assert {"ix_paper_pinned", "ix_paper_edited", "ix_vector_n"} <= names
    assert "ix_vote_paper_id" not in names


def test_a_commit_of_anybody_changes_the_stamp(database, now):
    other = Database(database.engine.url.render_as_string(hide_password=False), migrate=False)
    first = database.stamp()
    assert database.stamp() == first
    store.add_all(other, [make_record(title="From another process")], source="form", now=now)
    second = database.stamp()
    assert second != first
    store.add_all(database, [make_record(title="From our own")], source="form", now=now)
    assert database.stamp() != second
    other.close()
