"""What keeps a page of very many papers quick: kept lists, few statements, indices, vectors read as they come, signs."""

import os
import re
import shutil
import time
import unicodedata

import numpy as np
import pytest
import sqlalchemy as sa
import torch
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("fastapi", reason="the extra web is not installed")
pytest.importorskip("httpx2", reason="the extra web is not installed")

from fastapi.testclient import TestClient

from etude.errors import EtudeError
from etude.page import store
from etude.page import tables as t
from etude.page.database import Database
from etude.page.identity import clean, clean_lines
from etude.page.records import make_record
from etude.page.search import lexical, scan, semantic
from etude.page.search.query import parse
from etude.page.search.scan import SignScan
from etude.page.search.semantic import SemanticIndex, digest, embed_pending, store_vectors
from etude.page.settings import Settings
from etude.page.web.app import create_app

SECRET = "a test's secret, long enough to be taken"


class Clock:
    now = 1_790_000_000.0

    def __call__(self):
        return self.now


@pytest.fixture
def page(tmp_path):
    shutil.copyfile(os.environ["ETUDE_TEST_PAGE"], tmp_path / "p.sqlite")
    settings = Settings(database=str(tmp_path / "p.sqlite"), secret=SECRET, embed=False)
    with TestClient(create_app(settings, clock=Clock()), base_url="http://127.0.0.1:8000") as client:
        client.site = client.app.state.site
        yield client


@pytest.fixture
def db(tmp_path):
    made = Database(tmp_path / "p.sqlite")
    yield made
    made.close()


class Statements:
    """The SQL that an engine runs while it is watched."""

    def __init__(self, engine):
        self.engine, self.seen = engine, []

    def _see(self, connection, cursor, statement, *rest):
        self.seen.append(statement)

    def __enter__(self):
        sa.event.listen(self.engine, "before_cursor_execute", self._see)
        return self.seen

    def __exit__(self, *_):
        sa.event.remove(self.engine, "before_cursor_execute", self._see)


# --- kept lists and few statements -----------------------------------------------------------------------------------


def asked_for_papers(statements):
    return [s for s in statements if "FROM paper" in s]


def test_a_list_is_kept_until_something_changes(page):
    page.get("/")
    with Statements(page.site.db.engine) as seen:
        again = page.get("/")
    assert asked_for_papers(seen) == []
    slug = re.search(r'action="/vote/([^"]+)"', again.text).group(1)
    me = page.site.me()["id"]
    paper = page.site.db.rows(sa.select(t.paper.c.id).where(t.paper.c.slug == slug))[0]["id"]
    store.set_vote(page.site.db, paper, me, True, now=page.site.now)
    changed = page.get("/").text
    assert "Take back your vote for" in changed
    assert changed != again.text


def test_a_change_by_another_process_is_seen(page):
    before = page.get("/?sort=new").text
    other = Database(page.site.settings.database)
    store.add_all(other, [make_record(title="Quite another paper")], source="form", now=page.site.now)
    other.close()
    assert "Quite another paper" in page.get("/?sort=new").text
    assert "Quite another paper" not in before


def test_a_kept_list_carries_every_readers_own_token(page):
    token = lambda text: set(re.findall(r'name="csrf" value="([^"]+)"', text))
    mine = token(page.get("/").text)
    with TestClient(page.app, base_url="http://127.0.0.1:8000") as other:
        theirs = token(other.get("/").text)
    assert len(mine) == len(theirs) == 1
    assert mine != theirs
    assert page.site.kept.mark not in page.get("/").text


def test_a_window_moves_on_without_any_change(page):
    page.site.clock.now += 60  # after the catalogue: among equals the latest stands first
    store.add_all(page.site.db, [make_record(title="Of this hour")], source="form", now=page.site.now)
    assert "Of this hour" in page.get("/?window=day").text
    page.site.clock.now += 2 * 86_400
    assert "Of this hour" not in page.get("/?window=day").text


def test_a_vote_takes_one_transaction_and_few_statements(page):
    csrf = re.search(r'name="csrf" value="([^"]+)"', page.get("/subscribe").text).group(1)
    commits = []
    sa.event.listen(page.site.db.engine, "commit", commits.append)
    with Statements(page.site.db.engine) as seen:
        form = {"csrf": csrf, "wanted": "true"}
        answer = page.post("/vote/rnn-sparsity", data=form, headers={"hx-request": "true"})
    assert "<b>1</b>" in answer.text
    assert 'aria-pressed="true"' in answer.text
    assert len(commits) == 1
    assert len([s for s in seen if not s.startswith("BEGIN")]) <= 9


def test_pinned_papers_are_found_by_their_index(db):
    plan = db.rows(sa.text("EXPLAIN QUERY PLAN SELECT * FROM paper WHERE hidden IS 0 AND pinned = 1 ORDER BY heat_72"))
    assert any("ix_paper_pinned" in r["detail"] for r in plan)
    plan = db.rows(sa.text("EXPLAIN QUERY PLAN SELECT id FROM paper WHERE hidden = 1"))
    assert any("ix_paper_hidden" in r["detail"] for r in plan)
    plan = db.rows(sa.text("EXPLAIN QUERY PLAN SELECT id FROM paper WHERE version > 1 AND version > 3"))
    assert any("ix_paper_edited" in r["detail"] for r in plan)


# --- importing -------------------------------------------------------------------------------------------------------


def by_character(text):
    """What `clean` must do, one character after another."""
    text = unicodedata.normalize("NFC", text.replace("\r\n", "\n").replace("\r", "\n"))
    kept = "".join(ch for ch in text if ch in "\n\t\u200c\u200d" or unicodedata.category(ch)[0] != "C")
    return "\n\n".join(" ".join(p.split()) for p in re.split(r"\n\s*\n", kept)).strip(), kept.strip()


@given(
    st.text(st.characters(exclude_categories=()), max_size=60)
    | st.text("a \n\r\t\x00\x1f\x7f\u0301é\u200b", max_size=40)
)
def test_clean_is_the_same_as_character_by_character(text):
    assert (clean(text), clean_lines(text)) == by_character(text)


def test_new_papers_are_indexed_as_when_read_back(db, now):
    records = [
        make_record(title=f"Paper {i} on graphs", abstract=f"about {i}", authors=["A B", "C"], tags=["x", "y z"])
        for i in range(5)
    ]
    rows = lambda: [
        tuple(r.values()) for r in db.rows(sa.text("SELECT rowid, title, tags, authors, abstract FROM fts"))
    ]
    matches = store.add_all(db, records, source="form", now=now, after=lexical.index_matches)
    at_once = rows()
    with db.begin() as c:
        lexical.reindex(c, [m.paper_id for m in matches])
    assert sorted(at_once) == sorted(rows())
    assert len(at_once) == 5


def test_words_that_very_many_papers_hold(db, now, monkeypatch):
    """Titles first, then the newest; no paper twice; rarer words are ranked as ever."""
    records = [make_record(title=f"Paper {i}", abstract=f"networks of kind {i}") for i in range(20)]
    records += [make_record(title=f"Networks {i}", abstract="nothing") for i in range(3)]
    matches = store.add_all(db, records, source="form", now=now, after=lexical.index_matches)
    ids = [m.paper_id for m in matches]

    def ask(text, depth=200):
        with db.engine.connect() as c:
            return lexical.rank(c, parse(text), depth=depth)

    everything = ask("networks")
    assert set(everything) == set(ids)
    monkeypatch.setattr(lexical, "COMMON", 5)
    some = ask("networks")
    assert set(some[:3]) == set(ids[20:])
    assert some[3:] and set(some[3:]) <= set(ids[14:20]) | set(ids[20:])
    assert len(some) == len(set(some))
    assert ask("networks", 2) == some[:2]
    assert ask("networks kind 7")[0] == ids[7]
    assert ids[20] not in ask("networks -nothing")


def test_the_last_word_may_be_a_beginning(db, now):
    records = [make_record(title="Pruning nets"), make_record(title="Other things")]
    (first, _) = store.add_all(db, records, source="form", now=now, after=lexical.index_matches)
    with db.engine.connect() as c:
        assert lexical.rank(c, parse("pruni")) == [first.paper_id]


# --- vectors ---------------------------------------------------------------------------------------------------------


def unit(n, d=32, seed=0):
    x = np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def papers(db, n, now=1):
    store.add_all(
        db, [make_record(title=f"Paper number {i}", abstract=f"text {i}") for i in range(n)], source="form", now=now
    )


def put(db, ids, vectors):
    rows = [{"paper_id": i, "digest": "", "f16": v.astype(np.float16).tobytes()} for i, v in zip(ids, vectors)]
    with db.begin() as c:
        store_vectors(c, rows)


@pytest.mark.parametrize("most", [1000, 0], ids=["exact", "signs"])
def test_vectors_are_read_as_they_come_and_as_they_change(db, most):
    papers(db, 30)
    x = unit(31)
    index = SemanticIndex(db, exact_up_to=most)
    put(db, range(1, 21), x[:20])
    index.refresh()
    assert len(index) == 20
    put(db, range(21, 31), x[20:30])
    with Statements(db.engine) as seen:
        index.refresh()
        index.refresh()
    assert len(seen) == 2 + 1 + 2  # two stamps, one reading, and what begins a transaction
    for i in range(30):
        assert index.nearest(x[i], 1) == [i + 1]
    put(db, [7], x[30:])
    index.refresh()
    assert index.nearest(x[30], 1) == [7]
    assert index.nearest(x[6], 5)[0] != 7
    assert len(set(index.nearest(x[0], 30))) == 30


def test_rows_written_past_us_are_read_too(db):
    papers(db, 3)
    x, index = unit(3), SemanticIndex(db)
    for i in range(3):
        with db.begin() as c:
            row = {"paper_id": i + 1, "model": semantic.MODEL, "digest": "", "f16": x[i].astype(np.float16).tobytes()}
            c.execute(sa.insert(t.vector).values(**row))
        index.refresh()
        assert len(index) == i + 1


def test_from_few_to_very_many(db):
    """Where every vector was compared, signs take over, with the vectors read before."""
    papers(db, 60)
    x = unit(60)
    index = SemanticIndex(db, exact_up_to=40)
    put(db, range(1, 31), x[:30])
    index.refresh()
    few = index.nearest(x[3], 5)
    put(db, range(31, 61), x[30:])
    index.refresh()
    assert index.nearest(x[3], 1) == [4]
    assert set(index.nearest(x[3], 60)) == set(range(1, 61))
    assert few[0] == 4
    assert len(index.related(4, 6)) == 6
    ids, vectors = index.pool([1, 2], strangers=5)
    assert {1, 2} <= set(ids.tolist())
    assert vectors.shape == (len(ids), 32)


def test_recall_of_signs_with_a_short_list(monkeypatch):
    """0.97 of the exact ten at 4,000 clustered vectors, over several shards, and each the whole of its own."""
    monkeypatch.setattr(scan, "SHARD", 1000)
    g = np.random.default_rng(1)
    centres = g.normal(size=(40, 64))
    x = (centres[g.integers(0, 40, 4000)] + 0.7 * g.normal(size=(4000, 64))).astype(np.float32)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    ids = np.arange(4000) + 5
    made = SignScan(lambda wanted: (wanted, x[wanted - 5]), shortlist=400)
    for part in np.array_split(np.arange(4000), 7):
        made.add(ids[part], x[part])
    asked = x[::80]
    exact = np.argsort(-(asked @ x.T), axis=1)[:, :10] + 5
    shares = [len(set(made.nearest(q, 10)[0].tolist()) & set(right.tolist())) / 10 for q, right in zip(asked, exact)]
    assert np.mean(shares) >= 0.97
    found, cosine = made.nearest(x[17], 3)
    assert found[0] == 22
    assert cosine[0] == pytest.approx(1.0, abs=1e-5)
    assert (np.diff(cosine) <= 0).all()


def test_an_empty_scan_finds_nothing():
    assert SignScan(lambda wanted: (wanted, wanted)).nearest(unit(1)[0], 3)[0].tolist() == []
    with pytest.raises(ValueError, match="positive"):
        SignScan(lambda wanted: (wanted, wanted), shortlist=0)


def test_ones_are_counted_without_the_newest_numpy():
    words = np.random.default_rng(0).integers(0, 2**63, 50, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    assert scan._ones_by_table(words).tolist() == [int(w).bit_count() for w in words] == scan._ones(words).tolist()


def test_only_words_that_changed_are_embedded_again(db, now):
    asked = []

    def encode(texts):
        asked.extend(texts)
        return unit(len(texts), 8, seed=len(asked))

    papers(db, 5)
    assert embed_pending(db, encode, limit=3) == 3
    assert embed_pending(db, encode, limit=3) == 2
    assert embed_pending(db, encode) == 0
    asked.clear()
    with db.begin() as c:
        store.edit(c, 2, {"abstract": "other words"}, expected=1, by="ann", now=now)
        store.edit(c, 3, {"venue": "A place"}, expected=1, by="ann", now=now)
    while embed_pending(db, encode):
        pass
    assert asked == ["Paper number 1. other words"]
    row = db.rows(sa.select(t.vector).where(t.vector.c.paper_id == 2))[0]
    assert row["digest"] == digest("Paper number 1", "other words")
    assert row["version"] == 2


def test_a_page_that_changes_its_encoder_makes_its_vectors_anew(db, monkeypatch):
    monkeypatch.delenv("ETUDE_ENCODER", raising=False)
    papers(db, 3)
    embed_pending(db, lambda texts: unit(len(texts), 8))
    index = SemanticIndex(db)
    index.refresh()
    assert len(index) == 3
    monkeypatch.setenv("ETUDE_ENCODER", "static")
    other = SemanticIndex(db)
    other.refresh()
    assert len(other) == 0  # another model's vectors say nothing about its own
    assert semantic.forget_other_models(db) == 3
    while embed_pending(db, lambda texts: unit(len(texts), 6)):
        pass
    other.refresh()
    assert len(other) == 3
    assert {r["model"] for r in db.rows(sa.select(t.vector))} == {"all-MiniLM-L6-v2-static"}
    monkeypatch.setenv("ETUDE_ENCODER", "quick")
    with pytest.raises(EtudeError, match="ETUDE_ENCODER=quick: choose one of full, static"):
        semantic.model_name()


@pytest.mark.parametrize(("slow", "kept"), [(torch.float32, torch.bfloat16), (torch.bfloat16, torch.float32)])
def test_texts_are_embedded_in_the_quicker_precision(slow, kept):
    class Encoder(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(1))

        def forward(self, input_ids):
            time.sleep(0.03 if self.weight.dtype == slow else 0.001)

    model = Encoder()
    chosen = semantic.quicker_precision(model)
    assert chosen.weight.dtype == kept
    assert model.weight.dtype == torch.float32  # what was given stays as it is
