"""Following authors, rooms and tags; images of verdicts; related papers in three orders and papers of the same parts;
mails in four languages; what other hosts know."""

import http.client
import json
import os
import re
import shutil
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from xml.etree import ElementTree

import numpy as np
import pytest
import sqlalchemy as sa

pytest.importorskip("fastapi", reason="the extra web is not installed")
pytest.importorskip("httpx2", reason="the extra web is not installed")

from fastapi.testclient import TestClient

from etude.errors import DataError, UsageError
from etude.lab.judge import Verdict
from etude.page import enrich, following, personal, store, upkeep
from etude.page import tables as t
from etude.page.components import components, sharing
from etude.page.database import Database
from etude.page.digest.compose import contents
from etude.page.digest.words import _WORDS, LANGUAGES, words
from etude.page.enrich import ordered, recommendations
from etude.page.fetch import HOSTS, Fetcher
from etude.page.listing import Filters, listing
from etude.page.records import make_record
from etude.page.search.semantic import store_vectors
from etude.page.settings import Settings
from etude.page.web.app import create_app

SECRET = "a test's secret, long enough to be taken"
NOW = 1_790_000_000
DAY = 86_400


@pytest.fixture
def page(tmp_path):
    shutil.copyfile(os.environ["ETUDE_TEST_PAGE"], tmp_path / "p.sqlite")
    settings = Settings(
        database=str(tmp_path / "p.sqlite"), secret=SECRET, mail_folder=str(tmp_path / "mail"), embed=False
    )
    app = create_app(settings, clock=lambda: float(NOW))
    with TestClient(app, base_url="http://127.0.0.1:8000", follow_redirects=False) as client:
        client.site, client.db = app.state.site, app.state.site.db
        client.me = client.site.me()["id"]
        yield client


@pytest.fixture
def db(tmp_path):
    made = Database(tmp_path / "q.sqlite")
    yield made
    made.close()


def post(client, path, **data):
    csrf = re.search(r'name="csrf" value="([^"]+)"', client.get("/subscribe").text).group(1)
    return client.post(path, data={"csrf": csrf} | data)


def put(db, *records):
    store.add_all(db, records, source="form", now=NOW)


def account(db, handle="ann"):
    with db.begin() as c:
        row = {"handle": handle, "role": "member", "created_at": 0, "for_you": False}
        return c.execute(sa.insert(t.account).values(**row)).inserted_primary_key[0]


# --- following -------------------------------------------------------------------------------------------------------


def test_only_the_whole_name_is_followed(db):
    put(
        db, make_record(title="By Ann", authors=["Ann Lee"]), make_record(title="By Annette", authors=["Ann Leeway"]),
        make_record(title="By both", authors=["Bo", "Ann Lee"]), make_record(title="Of a tag", tags=["graphs"]),
        make_record(title="Quoted", authors=['O"Hara %_']),
    )  # fmt: skip
    found = lambda *follows: {
        r["title"] for r in listing(db, filters=Filters(followed=follows), sort="new", now=NOW).rows
    }
    assert found(("author", "Ann Lee")) == {"By Ann", "By both"}
    assert found(("author", "ann")) == set()
    assert found(("tag", "graphs"), ("author", "Bo")) == {"By both", "Of a tag"}
    assert found(("author", 'O"Hara %_')) == {"Quoted"}
    assert found(("author", "%")) == set()
    assert found() == set()


def test_of_et_al_the_person_is_followed(page):
    """As cards and BibTeX write it; also one followed before as it stands there finds its papers and can be left."""
    with page.db.begin() as c:
        record = make_record(title="Many hands", authors=["Ann Lee", "Bo Ito et al."])
        store.add(c, record, source="bibtex", now=NOW)
        c.execute(sa.insert(t.follow).values(account_id=page.me, kind="author", value="Cy Ro et al.", at=NOW))
        following.follow(c, page.me, "author", "Bo Ito et al.", True, NOW)
    assert following.follows_of(page.db, page.me) == [("author", "Bo Ito"), ("author", "Cy Ro et al.")]
    for name in ("Bo Ito", "Bo Ito et al.", "Ann Lee"):
        rows = listing(page.db, filters=Filters(followed=(("author", name),)), now=NOW).rows
        assert [r["slug"] for r in rows] == ["many-hands"]
    assert 'name="value" value="Bo Ito"' in page.get("/paper/many-hands").text
    with page.db.begin() as c:
        following.follow(c, page.me, "author", "Cy Ro et al.", False, NOW)
    assert following.follows_of(page.db, page.me) == [("author", "Bo Ito")]


@pytest.mark.parametrize(("kind", "value"), [("venue", "X"), ("room", "nowhere"), ("author", " \n"), ("tag", "")])
def test_what_cannot_be_followed(kind, value):
    with pytest.raises(UsageError):
        following.tidy(kind, value)


def test_following_twice_is_once_and_bounded(db, monkeypatch):
    monkeypatch.setattr(following, "MOST", 2)
    who = account(db)
    with db.begin() as c:
        for value in ("Graphs", "graphs", "nets"):
            following.follow(c, who, "tag", value, True, NOW)
        with pytest.raises(UsageError, match="up to 2"):
            following.follow(c, who, "tag", "third", True, NOW)
        following.follow(c, who, "tag", "nets", False, NOW)
        following.follow(c, who, "tag", "nets", False, NOW)
    assert following.follows_of(db, who) == [("tag", "graphs")]


def test_the_page_of_what_is_followed(page):
    put(page.db, make_record(title="Hers", authors=["Ann <b>Lee</b>"]))
    shown = page.get("/paper/hers").text
    assert "Follow author" in shown
    assert (
        post(page, "/follow", kind="author", value="Ann <b>Lee</b>", next="/paper/hers").headers["location"]
        == "/paper/hers"
    )
    assert "Following author" in page.get("/paper/hers").text
    text = page.get("/following").text
    assert "Hers" in text
    assert "<b>Lee" not in text
    assert page.post("/follow", data={"csrf": "forged", "kind": "tag", "value": "x"}).status_code == 403
    assert post(page, "/follow", kind="room", value="nowhere").status_code == 400
    assert post(page, "/follow", kind="tag", value="x", next="//evil.example").headers["location"] == "/following"
    parts = personal.export(page.db, page.site.settings, page.site.me(), NOW)
    assert {"kind": "author", "value": "Ann <b>Lee</b>"} in parts["follows"]
    post(page, "/follow", kind="author", value="Ann <b>Lee</b>", wanted="false")
    assert "Hers" not in page.get("/following").text


def test_follows_come_back_with_the_zip_and_go_with_the_person(page):
    post(page, "/follow", kind="tag", value="graphs")
    raw = personal.pack(personal.export(page.db, page.site.settings, page.site.me(), NOW))
    who = account(page.db)
    row = page.db.rows(sa.select(t.account).where(t.account.c.id == who))[0]
    assert personal.restore(page.db, row, personal.read_bundle(raw), NOW)["follows"] == 1
    assert personal.restore(page.db, row, personal.read_bundle(raw), NOW)["follows"] == 0
    personal.erase(page.db, page.site.settings, row)
    assert [r["account_id"] for r in page.db.rows(sa.select(t.follow))] == [page.me]


def test_the_digest_of_what_is_followed(page):
    put(page.db, make_record(title="Wanted", tags=["graphs"]), make_record(title="Other"))
    row = {"id": 1, "email": "a@x.org", "frequency": "weekly", "zone": "UTC", "hour": 8, "filters": {"following": True}}
    row["confirmed_at"] = 1
    titles = lambda owner: {
        p["title"] for p in contents(page.db, row | {"account_id": owner}, NOW, page.site.settings)[0]
    }
    assert titles(page.me) == set()
    post(page, "/follow", kind="tag", value="graphs")
    assert titles(page.me) == {"Wanted"}
    assert titles(None) == set()  # nobody's subscription follows nothing


# --- languages of mails ----------------------------------------------------------------------------------------------


def test_every_phrase_is_there_in_every_language():
    for key, said in _WORDS.items():
        assert set(said) == set(LANGUAGES), key
        assert len(set(said.values())) > 1, key
    assert words("xx") == words("en")


def test_the_language_of_a_subscription(page):
    assert post(page, "/subscribe", email="a@x.org", language="fr").status_code == 200
    assert page.db.rows(sa.select(t.subscriber.c.language))[0]["language"] == "fr"
    assert post(page, "/subscribe", email="b@x.org", language="tlh").status_code == 400
    assert 'value="es"' in page.get("/subscribe").text


# --- images of verdicts ----------------------------------------------------------------------------------------------


def verdict(site, slug, claim, word, tier="laptop"):
    """As if a run had said so."""
    record = Verdict(
        slug=slug, claim=claim, verdict=word, tier=tier, protocol="p", effect=0.1, low=0.0, high=0.2, n=5, margin=0.0,
        relation="greater", paper_value=None, unit="1", expects="open",
    ).record()  # fmt: skip
    site.current.by_slug().setdefault(slug, []).append(record | {"run": "r", "at": NOW})


def test_an_image_says_the_verdicts(page):
    says = lambda path: ElementTree.fromstring(page.get(path).content).get("aria-label")
    assert says("/badge/rnn-sparsity.svg") == "re-tested by etude: not re-tested"
    for claim, word in (("S1", "holds"), ("S2", "holds"), ("S3", "fails")):
        verdict(page.site, "rnn-sparsity", claim, word)
    answer = page.get("/badge/rnn-sparsity.svg")
    assert says("/badge/rnn-sparsity.svg") == "re-tested by etude: 2 hold, 1 fail"
    assert answer.headers["content-type"].startswith("image/svg+xml")
    assert answer.headers["cross-origin-resource-policy"] == "cross-origin"
    assert says("/badge/rnn-sparsity.svg?claim=S3") == "re-tested by etude: S3 fails"
    assert says("/badge/rnn-sparsity.svg?claim=S9") == "re-tested by etude: not re-tested"
    assert page.get("/badge/nobody.svg").status_code == 404
    again = page.get("/badge/rnn-sparsity.svg", headers={"if-none-match": answer.headers["etag"]})
    assert again.status_code == 304
    assert "/badge/rnn-sparsity.svg" in page.get("/paper/rnn-sparsity").text


def test_an_image_gives_no_cookie_and_takes_no_markup(page):
    page.cookies.clear()
    assert "set-cookie" not in page.get("/badge/rnn-sparsity.svg").headers
    verdict(page.site, "rnn-sparsity", "<x>", "holds")
    text = page.get("/badge/rnn-sparsity.svg", params={"claim": "<x>"}).text
    assert "<x>" not in text
    assert "&lt;x&gt;" in text


# --- related papers --------------------------------------------------------------------------------------------------


def test_related_papers_in_three_orders(page):
    rows = page.db.rows(sa.select(t.paper.c.id, t.paper.c.slug).order_by(t.paper.c.id).limit(12))
    x = np.random.default_rng(0).normal(size=(12, 8))
    made = [
        {"paper_id": r["id"], "digest": "", "f16": (v / np.linalg.norm(v)).astype(np.float16).tobytes()}
        for r, v in zip(rows, x)
    ]
    with page.db.begin() as c:
        store_vectors(c, made)
        for i, r in enumerate(rows):
            c.execute(sa.update(t.paper).where(t.paper.c.id == r["id"]).values(published_at=i, heat_72=-float(i)))
    slug, place = rows[0]["slug"], {r["slug"]: i for i, r in enumerate(rows)}
    found = {
        k: [p["slug"] for p in page.get(f"/api/papers/{slug}/related?sort={k}").json()]
        for k in ("similarity", "date", "heat")
    }
    assert len(found["similarity"]) == 8
    assert set(found["date"]) == set(found["heat"]) == set(found["similarity"])
    assert [place[s] for s in found["date"]] == sorted((place[s] for s in found["date"]), reverse=True)
    assert [place[s] for s in found["heat"]] == sorted(place[s] for s in found["heat"])
    assert page.get(f"/api/papers/{slug}/related?sort=odd").status_code == 422
    assert page.get(f"/paper/{slug}?related=odd").status_code == 400
    text = page.get(f"/paper/{slug}?related=date").text
    listed = text[text.index('id="related"') :]
    assert listed.index(found["date"][0]) < listed.index(found["date"][-1])


def test_papers_of_the_same_parts(page):
    known = components()
    assert len(known) > 10
    for slug in known:
        for other, parts in sharing(slug):
            assert other != slug
            assert set(parts) == known[slug] & known[other] != set()
            assert slug in dict(sharing(other, most=99))
    with_parts = next(slug for slug in known if sharing(slug))
    assert "Built from the same parts" in page.get(f"/paper/{with_parts}").text
    assert sharing("no-such-paper") == []


def test_a_file_that_studies_share_is_read_once(monkeypatch):
    """The first page of a paper waits for this."""
    from etude.page import components as module

    asked, imports_of = [], module.imports_of
    monkeypatch.setattr(module, "imports_of", lambda source: asked.append(source) or imports_of(source))
    module._parts.cache_clear()
    module.components.cache_clear()
    module.components()
    assert len(asked) == len(set(asked)) > 40


# --- what other hosts know -------------------------------------------------------------------------------------------


@pytest.fixture
def host():
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            size = int(self.headers.get("content-length") or 0)
            server.asked.append((self.path, self.rfile.read(size)))
            status, body = server.answers.pop(0)
            raw = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

        do_POST = do_GET

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    server.asked, server.answers = [], []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def fetcher(host):
    waits = []
    made = Fetcher(
        lambda name, timeout: http.client.HTTPConnection("127.0.0.1", host.server_port, timeout=5), public=False,
        clock=lambda: sum(waits), sleep=waits.append,
    )  # fmt: skip
    connect = made._connect

    def opened(name, timeout):
        c = connect(name, timeout)
        c.connect()
        return c

    made._connect, made.waits = opened, waits
    return made


def test_the_inverted_index_is_put_in_order():
    assert ordered({"nets": [1, 3], "Graph": [0], "of": [2]}) == "Graph nets of nets"
    for bad in ([], {"a": 1}, {"a": list(range(20_000))}):
        with pytest.raises(DataError):
            ordered(bad)


def test_gaps_are_filled_once_and_nothing_is_overwritten(db, host, fetcher):
    put(
        db, make_record(title="Gap", arxiv_id="2601.00001"),
        make_record(title="Whole", abstract="ours", venue="Here", doi="10.1000/x"), make_record(title="Nameless"),
    )  # fmt: skip
    place = {"source": {"display_name": "There"}}
    said = {"abstract_inverted_index": {"theirs": [0]}, "cited_by_count": 7, "primary_location": place}
    host.answers = [(200, said), (200, said)]
    assert enrich.enrich(db, "openalex", now=NOW, fetcher=fetcher) == {"asked": 2, "filled": 1, "unknown": 0}
    rows = {r["title"]: r for r in db.rows(sa.select(t.paper))}
    assert (rows["Gap"]["abstract"], rows["Gap"]["venue"], rows["Gap"]["version"]) == ("theirs", "There", 2)
    assert (rows["Whole"]["abstract"], rows["Whole"]["venue"], rows["Whole"]["version"]) == ("ours", "Here", 1)
    assert {path.split("?")[0] for path, _ in host.asked} == {
        "/works/doi:10.48550/arxiv.2601.00001", "/works/doi:10.1000/x",
    }  # fmt: skip
    assert enrich.known_elsewhere(db, rows["Whole"]["id"])["openalex"]["citations"] == 7
    assert enrich.enrich(db, "openalex", now=NOW + DAY, fetcher=fetcher)["asked"] == 0
    host.answers = [(200, said), (404, b"")]
    assert enrich.enrich(db, "openalex", now=NOW + 40 * DAY, fetcher=fetcher) == {"asked": 2, "filled": 0, "unknown": 1}


def test_new_stars_warm_once_a_day(db, host, fetcher):
    put(db, make_record(title="Coded", code_url="https://github.com/ann/nets.git"))
    heat = lambda: db.rows(sa.select(t.paper.c.heat_72))[0]["heat_72"]
    host.answers = [(200, {"stargazers_count": n}) for n in (100, 120, 130)]
    enrich.enrich(db, "github", now=NOW, fetcher=fetcher)
    first = heat()
    assert enrich.enrich(db, "github", now=NOW + DAY, fetcher=fetcher)["filled"] == 1
    assert heat() > first
    assert host.asked[0][0] == "/repos/ann/nets"
    assert enrich.enrich(db, "github", now=NOW + DAY + 60, fetcher=fetcher)["asked"] == 0
    assert [r["weight"] for r in db.rows(sa.select(t.event).where(t.event.c.kind == "stars"))] == [
        pytest.approx(0.3 * np.log1p(20))
    ]


@pytest.mark.parametrize("answer", [b"<html>", [], {"stargazers_count": "many"}, {"stargazers_count": True}])
def test_an_odd_answer_changes_nothing(db, host, fetcher, answer):
    put(db, make_record(title="Coded", code_url="https://github.com/ann/nets"))
    host.answers = [(200, answer)]
    try:
        assert enrich.enrich(db, "github", now=NOW, fetcher=fetcher)["unknown"] == 1
    finally:
        assert db.rows(sa.select(t.paper.c.version))[0]["version"] == 1


def test_each_host_has_a_pause_of_its_own(db, host, fetcher):
    put(
        db,
        *(
            make_record(title=f"P{i}", code_url=f"https://github.com/a/b{i}", arxiv_id=f"2601.0000{i}")
            for i in range(3)
        ),
    )
    host.answers = [(200, {"stargazers_count": 1})] * 3 + [(200, {})] * 3
    enrich.enrich(db, "github", now=NOW, fetcher=fetcher)
    assert fetcher.waits == [HOSTS["api.github.com"]] * 2
    enrich.enrich(db, "openalex", now=NOW, fetcher=fetcher)
    assert fetcher.waits[2:] == [HOSTS["api.openalex.org"]] * 2


def test_recommendations(host, fetcher):
    item = {"title": "Like it", "abstract": "yes", "authors": [{"name": "A"}], "externalIds": {"ArXiv": "2601.00009"}}
    host.answers = [(200, {"recommendedPapers": [item, {"title": None}, 3]})]
    reading = recommendations(["2601.00001"], ["2601.00002"], fetcher=fetcher)
    assert [r.arxiv_id for r in reading.records] == ["2601.00009"]
    assert len(reading.unreadable) == 2
    assert json.loads(host.asked[0][1]) == {
        "positivePaperIds": ["ArXiv:2601.00001"], "negativePaperIds": ["ArXiv:2601.00002"],
    }  # fmt: skip
    with pytest.raises(UsageError, match="at least one"):
        recommendations([], fetcher=fetcher)


def test_nothing_is_asked_unless_switched_on(tmp_path, monkeypatch):
    monkeypatch.delenv("ETUDE_FETCH", raising=False)
    for call in (lambda: upkeep.enrich("github"), lambda: upkeep.recommend()):
        with pytest.raises(UsageError, match="ETUDE_FETCH"):
            call()
    with pytest.raises(UsageError, match="unknown source"):
        enrich.enrich(Database(tmp_path / "p.sqlite"), "elsewhere", now=NOW)
