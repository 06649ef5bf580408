"""Papers, versions and votes: merging, conflicts, heat by a fake clock, two writers at once; migrations."""

import threading

import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st

from etude import catalogue
from etude.errors import LedgerError
from etude.page import heat as h
from etude.page import library, notes, store
from etude.page import tables as t
from etude.page.database import Database, steps
from etude.page.identity import arxiv_id, doi, norm_hash, same_abstract, slugify
from etude.page.listing import COLUMN, listing
from etude.page.records import make_record
from etude.page.sync import sync_catalogue

ABSTRACT = " ".join(f"word{i}" for i in range(80))
HOUR = 3600


def paper(title="Pointer Networks", **more):
    return make_record(title=title, abstract=more.pop("abstract", ABSTRACT), **more)


def person(db, name, created=0):
    with db.begin() as c:
        row = sa.insert(t.account).values(handle=name, role="member", created_at=created, for_you=False)
        return c.execute(row).inserted_primary_key[0]


def test_import_twice_is_all_duplicates(database, now):
    records = [paper(), paper("Attention Is All You Need", arxiv_id="1706.03762v1"), paper()]
    assert [m.status for m in store.preview(database, records)] == ["new", "new", "duplicate"]
    assert [m.status for m in store.add_all(database, records, source="form", now=now)] == ["new", "new", "duplicate"]
    assert [m.status for m in store.preview(database, records)] == ["duplicate"] * 3
    assert len(database.rows(sa.select(t.paper))) == 2


def test_et_al_takes_no_names_away(database, now):
    store.add_all(database, [paper(authors=["Ann Lee", "Bo Ito", "Cy Ro"])], source="arxiv-atom", now=now)
    cut = [paper(authors=["Lee, A. et al."])]
    assert [m.status for m in store.add_all(database, cut, source="bibtex", now=now)] == ["duplicate"]
    assert len(database.rows(sa.select(t.paper))[0]["authors"]) == 3


def test_same_title_alone_is_not_enough(database, now):
    other = paper(abstract=" ".join(f"other{i}" for i in range(80)))
    assert [m.status for m in store.add_all(database, [paper(), other], source="form", now=now)] == ["new", "new"]
    slugs = {r["slug"] for r in database.rows(sa.select(t.paper))}
    assert slugs == {"pointer-networks", "pointer-networks-2"}


def at(year):
    return (year - 1970) * 365 * 24 * HOUR + 30 * 24 * HOUR


@pytest.mark.parametrize(
    ("other", "same"),
    [
        ({"authors": ["Jo Jones"], "published_at": at(2009)}, False),
        ({"authors": ["A. Smith"], "published_at": at(2009)}, True),
        ({"authors": ["Jo Jones"], "published_at": at(2002)}, True),
        ({"authors": ["Jo Jones"]}, False),
        ({"authors": ["Jo Jones et al."]}, False),
        ({"authors": ["Smith, et al."]}, True),
        ({}, True),
    ],
)
def test_without_abstracts_author_or_year_must_agree(database, now, other, same):
    first = paper("Introduction to the special issue", abstract="", authors=["Ann Smith"], published_at=at(2001))
    records = [first, paper("Introduction to the special issue", abstract="", **other)]
    second = store.preview(database, records)[1].status
    assert [m.status for m in store.add_all(database, records, source="bibtex", now=now)][1] in (second, "changed")
    assert len(database.rows(sa.select(t.paper))) == (1 if same else 2)


def test_pinned_papers_that_find_no_room_on_the_first_page_stand_in_their_place(database, now):
    store.add_all(database, [paper(f"Paper {i}", abstract=f"words {i}") for i in range(20)], source="form", now=now)
    with database.begin() as c:
        c.execute(sa.update(t.paper).where(t.paper.c.id % 2 == 0).values(pinned=True))
    for limit in (1, 3, 25):
        seen, cursor = [], None
        while cursor is not None or not seen:
            page = listing(database, limit=limit, cursor=cursor, now=now)
            assert len(page.rows) <= limit
            seen, cursor = seen + [r["id"] for r in page.rows], page.cursor
        assert len(seen) == len(set(seen)) == 20
        assert limit < 2 or seen[0] % 2 == 0


def test_equal_heat_is_ordered_by_time_and_place_of_the_import(database, now):
    """The card's order, on one page and over cursors: heat, then the latest to come, then as it stood in the file."""
    early = [m.paper_id for m in store.add_all(database, [paper(f"E{i}") for i in range(4)], source="form", now=now)]
    late = [
        m.paper_id for m in store.add_all(database, [paper(f"L{i}") for i in range(4)], source="form", now=now + 60)
    ]
    with database.begin() as c:
        c.execute(sa.update(t.paper).where(t.paper.c.id.not_in(early[:1])).values(dict.fromkeys(h.HALF_LIVES, 5.0)))
    wanted = [early[0], *late, *early[1:]]
    for sort in ("trending", "hot", "slow"):
        got, cursor = [], None
        while cursor is not None or not got:
            page = listing(database, sort=sort, limit=3, cursor=cursor, now=now)
            got, cursor = got + [r["id"] for r in page.rows], page.cursor
        assert got == wanted
    assert [r["id"] for r in sorted(database.rows(sa.select(t.paper)), key=h.rank)] == wanted


@pytest.mark.parametrize("window", ["all", "week"])
def test_equal_votes_are_ordered_by_time(database, now, window):
    """The latest to come first, on every page; a later number says nothing, as when the clock went back."""
    voter = person(database, "ann")
    for title, at in (("Second", now - 20), ("First", now - 10), ("Third", now - 30), ("None", now)):
        (match,) = store.add_all(database, [paper(title)], source="form", now=at)
        store.set_vote(database, match.paper_id, voter, title != "None", now=now)
    titles, cursor = [], None
    for _ in range(3):
        page = listing(database, sort="top", window=window, limit=1, cursor=cursor, now=now)
        titles, cursor = titles + [r["title"] for r in page.rows], page.cursor
    assert titles == ["First", "Second", "Third"]


def test_lists_by_heat_are_read_off_an_index(database, now):
    """Neither the first page nor one behind a cursor sorts anything."""
    store.add_all(database, [paper(f"P{i}") for i in range(9)], source="form", now=now)
    if not database.is_sqlite:
        names = {i["name"] for i in sa.inspect(database.engine).get_indexes("paper")}
        assert {f"ix_paper_by_{c}" for c in h.HALF_LIVES} <= names
        return
    for sort, column in COLUMN.items():
        asked = []
        see = lambda connection, cursor, statement, values, *_: asked.append((statement, values))  # noqa: B023
        sa.event.listen(database.engine, "before_cursor_execute", see)
        cursor = listing(database, sort=sort, limit=3, now=now).cursor
        listing(database, sort=sort, limit=3, now=now, cursor=cursor)
        sa.event.remove(database.engine, "before_cursor_execute", see)
        lists = [(s, v) for s, v in asked if s.startswith("SELECT") and "pinned" not in s.partition("WHERE")[2]]
        with database.engine.connect() as c:
            plans = [str(c.exec_driver_sql(f"EXPLAIN QUERY PLAN {s}", v).all()) for s, v in lists]
        assert [f"ix_paper_by_{column}" in plan and "TEMP B-TREE" not in plan for plan in plans] == [True, True], plans


def test_what_is_taken_back_warms_no_longer(database, now):
    store.add_all(database, [paper()], source="form", now=now)
    me = {"id": person(database, "ann"), "role": "admin", "handle": "ann"}
    heat = lambda: database.rows(sa.select(t.paper.c.heat_72))[0]["heat_72"]
    cold = heat()
    with database.begin() as c:
        library.keep(c, 1, me["id"], tags=[], note="", read=False, now=now)
        for text in ("one", "two"):
            notes.add_note(c, 1, me, text, claim=None, now=now)
    assert h.score(heat(), now) == pytest.approx(h.score(cold, now) + 1.0)
    with database.begin() as c:
        library.take_out(c, 1, me["id"])
        notes.judge_note(c, 1, "hidden", me, now)
    assert h.score(heat(), now) == pytest.approx(h.score(cold, now) + 0.5), "the other note of that day is shown"
    with database.begin() as c:
        notes.take_back(c, 2, me["id"])
    assert heat() == pytest.approx(cold)
    with database.begin() as c:
        notes.judge_note(c, 1, "shown", me, now)
    assert h.score(heat(), now) == pytest.approx(h.score(cold, now) + 0.5)


def test_a_card_that_changes_reaches_its_paper_but_not_over_an_edit(database, now, monkeypatch):
    card = catalogue.load("gpicl")
    monkeypatch.setattr(catalogue, "papers", lambda: [card])
    assert sync_catalogue(database, now) == 1
    title = lambda: database.rows(sa.select(t.paper.c.title, t.paper.c.version))[0]
    card = card.model_copy(update={"title": "Another title"})
    assert [sync_catalogue(database, now + i) for i in range(2)] == [0, 0]
    assert title() == {"title": "Another title", "version": 2}
    with database.begin() as c:
        store.edit(c, 1, {"title": "As a moderator has it"}, expected=2, by="boss", now=now)
    card = card.model_copy(update={"title": "A third title"})
    sync_catalogue(database, now)
    assert title() == {"title": "As a moderator has it", "version": 3}


def test_the_printed_formula_names_every_weight():
    for weight in (*h.WEIGHTS.values(), h.NEW, h.NEW_BULK, "0.3 ln(1 + n)"):
        assert (f"{weight:g}" if isinstance(weight, float) else weight) in h.FORMULA


def test_a_newer_version_is_merged_and_the_old_one_kept(database, now):
    store.add_all(database, [paper(arxiv_id="1506.03134v1")], source="arxiv-atom", now=now)
    newer = paper("Pointer Networks, Revised", arxiv_id="1506.03134v2")
    (match,) = store.add_all(database, [newer], source="arxiv-atom", now=now + 5)
    assert match.status == "changed"
    (row,) = database.rows(sa.select(t.paper))
    assert (row["title"], row["version"], row["arxiv_version"]) == ("Pointer Networks, Revised", 2, 2)
    older = paper("Pointer Networks", arxiv_id="1506.03134v1")
    assert store.preview(database, [older])[0].status == "duplicate"
    versions = database.rows(sa.select(t.paper_version).order_by(t.paper_version.c.n))
    assert [v["record"]["title"] for v in versions] == ["Pointer Networks", "Pointer Networks, Revised"]


def test_two_edits_of_one_version_conflict(database, now):
    store.add_all(database, [paper()], source="form", now=now)
    with database.begin() as c:
        assert store.edit(c, 1, {"title": "A"}, expected=1, by="ann", now=now) == 2
    with pytest.raises(store.EditConflict), database.begin() as c:
        store.edit(c, 1, {"title": "B"}, expected=1, by="bob", now=now)
    assert database.rows(sa.select(t.paper))[0]["title"] == "A"


def test_votes_toggle_count_once_and_warm(database, now):
    store.add_all(database, [paper()], source="form", now=now)
    ann, bob = person(database, "ann"), person(database, "bob")
    before = database.rows(sa.select(t.paper))[0]["heat_72"]
    assert store.set_vote(database, 1, ann, True, now=now) == 1
    assert store.set_vote(database, 1, ann, True, now=now) == 1
    assert store.set_vote(database, 1, bob, True, now=now) == 2
    warm = database.rows(sa.select(t.paper))[0]["heat_72"]
    assert h.score(warm, now) == pytest.approx(0.5 + 2.0)
    assert store.set_vote(database, 1, ann, False, now=now) == 1
    assert store.set_vote(database, 1, ann, False, now=now) == 1
    assert store.set_vote(database, 1, bob, False, now=now) == 0
    assert database.rows(sa.select(t.paper))[0]["heat_72"] == pytest.approx(before)


def test_votes_of_young_accounts_crowds_and_oneself_weigh_less(database, now):
    with database.begin() as c:
        own = c.execute(
            sa.insert(t.account).values(handle="me", role="member", created_at=0, for_you=False)
        ).inserted_primary_key[0]
        store.add(c, paper(), source="form", now=now, account=own)
    people = [person(database, f"p{i}") for i in range(5)]
    young = person(database, "young", created=now - HOUR)
    store.set_vote(database, 1, own, True, now=now)
    store.set_vote(database, 1, young, True, now=now)
    for p in people:
        store.set_vote(database, 1, p, True, now=now, network="192.0.2")
    weights = [r["weight"] for r in database.rows(sa.select(t.vote).order_by(t.vote.c.account_id))]
    assert weights == [0.0, 1.0, 1.0, 1.0, 0.25, 0.25, 0.25]


def test_many_threads_voting_lose_and_double_nothing(database, now):
    store.add_all(database, [paper()], source="form", now=now)
    people = [person(database, f"p{i}") for i in range(12)]
    errors = []

    def vote(account):
        try:
            for wanted in (True, True, False, True):
                store.set_vote(database, 1, account, wanted, now=now)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=vote, args=(p,)) for p in people for _ in range(2)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert errors == []
    (row,) = database.rows(sa.select(t.paper))
    assert row["votes"] == len(database.rows(sa.select(t.vote))) == 12
    assert h.score(row["heat_72"], now) == pytest.approx(12.5)


def test_migrations_up_and_down(database):
    tables = set(sa.inspect(database.engine).get_table_names())
    assert {"paper", "vote", "outbox", "fts"} <= tables
    assert database.version() == steps()[-1][0]
    for number in range(database.version() - 1, -1, -1):
        database.migrate(number)
        assert database.version() == number
    assert "paper" not in sa.inspect(database.engine).get_table_names()
    database.migrate()
    assert {"paper", "vote", "outbox", "fts"} <= set(sa.inspect(database.engine).get_table_names())


def test_newer_tables_are_refused(tmp_path):
    db = Database(tmp_path / "p.sqlite")
    with db.begin() as c:
        c.exec_driver_sql("INSERT INTO page_schema VALUES (99)")
    with pytest.raises(LedgerError, match="update Etude"):
        Database(tmp_path / "p.sqlite")


def test_backup_is_a_whole_copy(tmp_path, now):
    db = Database(tmp_path / "p.sqlite")
    store.add_all(db, [paper()], source="form", now=now)
    db.backup(tmp_path / "copy.sqlite")
    assert len(Database(tmp_path / "copy.sqlite").rows(sa.select(t.paper))) == 1
    with pytest.raises(LedgerError, match="exists already"):
        db.backup(tmp_path / "copy.sqlite")


events = st.lists(st.tuples(st.floats(0, 100), st.integers(1_577_836_800, 1_900_000_000)), max_size=12)


@given(events, st.randoms(use_true_random=False))
def test_heat_does_not_depend_on_order_and_is_the_decayed_sum(pairs, random):
    kept = [h.Event(w, at) for w, at in pairs]
    now = 1_900_000_000
    total = sum(e.weight * 2.0 ** (-(now - e.at) / (72 * HOUR)) for e in kept)
    assert h.score(h.heat(kept, 72.0), now) == pytest.approx(total, rel=1e-9, abs=1e-12)
    mixed = list(kept)
    random.shuffle(mixed)
    step = {column: h.NOTHING for column in h.HALF_LIVES}
    for e in mixed:
        step = h.added(step, e)
    assert step["heat_72"] == pytest.approx(h.heat(kept, 72.0), rel=1e-12, abs=1e-9)


def test_order_of_heat_is_the_order_of_scores_at_every_moment():
    old = h.heat([h.Event(8.0, 1_700_000_000)], 72.0)
    new = h.heat([h.Event(2.0, 1_700_000_000 + 200 * HOUR)], 72.0)
    for later in (0, 10**5, 10**7):
        now = 1_700_000_000 + 200 * HOUR + later
        assert (h.score(old, now) < h.score(new, now)) == (old < new)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("http://arxiv.org/abs/1706.03762v7", ("1706.03762", 7)), ("solv-int/9901001v1", ("solv-int/9901001", 1)),
        ("cs.CL/0001001", ("cs.CL/0001001", None)), ("https://arxiv.org/pdf/1706.03762.pdf", ("1706.03762", None)),
        ("arXiv:2311.14648", ("2311.14648", None)), ("https://evil.org/abs/1706.03762", None), ("v7", None),
    ],
)  # fmt: skip
def test_arxiv_ids(text, expected):
    assert arxiv_id(text) == expected


def test_other_identifiers():
    assert doi("https://doi.org/10.1000/ABC.") == "10.1000/abc"
    assert doi("hello") is None
    for text in (
        "10.48550/arXiv.1506.03134",
        "https://doi.org/10.48550/ARXIV.1506.03134",
        "doi:10.48550/arXiv.1506.03134",
    ):
        assert arxiv_id(text) == ("1506.03134", None)  # arXiv mints a DOI for every paper
    assert arxiv_id("https://doi.org/1506.03134") is None
    minted = make_record(title="T", doi="https://doi.org/10.48550/arXiv.1506.03134")
    assert (minted.arxiv_id, minted.doi) == ("1506.03134", None)
    assert make_record(title="T", arxiv_id="1506.03134", doi="10.1000/j").doi == "10.1000/j"
    assert norm_hash("Naïve  Bayes!") == norm_hash("naive bayes")
    assert same_abstract(ABSTRACT, ABSTRACT + " end")
    assert not same_abstract(ABSTRACT, ABSTRACT.replace("word", "w"))
    assert slugify("Étude: papers, you can run!") == "etude-papers-you-can-run"
    assert slugify("论文").startswith("paper-")
    with pytest.raises(ValueError, match="title"):
        make_record(title=" \x00 ")
    assert make_record(title="T", url="javascript:alert(1)").url is None


def rows_of(db):
    """Everything an import writes, without the ids of rows that nothing refers to."""
    tables = (t.paper, t.alias, t.paper_tag, t.paper_version, t.event)
    found = {
        x.name: sorted(str({k: v for k, v in r.items() if k != "id"}) for r in db.rows(sa.select(x))) for x in tables
    }
    return found | {"ids": [(r["id"], r["slug"]) for r in db.rows(sa.select(t.paper).order_by(t.paper.c.id))]}


def test_many_at_once_are_stored_as_one_by_one(database, tmp_path, now, monkeypatch):
    records = [
        paper(arxiv_id="1506.03134v1", tags=["cs.LG", "stat.ML"]), paper("Other", doi="10.1000/xyz"),
        paper("Pointer Networks, Revised", arxiv_id="1506.03134v2"), paper("Other", doi="10.1000/xyz"), paper(),
        paper(abstract=" ".join(f"other{i}" for i in range(80))), paper("Last", slug="own-slug"),
        paper("Twins", doi="10.1000/a"), paper("Twins", doi="10.1000/b"),
    ]  # fmt: skip
    monkeypatch.setattr(store, "TOGETHER", 4)  # keys known from the part before, and inside a part
    together = store.add_all(database, records, source="form", now=now)
    single = Database(tmp_path / "single.sqlite")
    with single.begin() as c:
        apart = [store.add(c, r, source="form", now=now, weight=h.NEW_BULK) for r in records]
    assert together == apart
    assert [m.status for m in together][2:4] == ["changed", "duplicate"]
    assert rows_of(database) == rows_of(single)
    single.close()


def test_a_paper_twice_in_one_file_does_not_overwrite_itself_at_every_import(database, now):
    first = make_record(title="One", abstract="first words", arxiv_id="2601.00001v1", venue="A")
    second = make_record(
        title="One", abstract="other words", arxiv_id="2601.00001v1", venue="B", url="https://b.example"
    )
    read = [first, second]
    store.add_all(database, read, source="form", now=now)
    (row,) = database.rows(sa.select(t.paper))
    assert (row["abstract"], row["venue"], row["url"]) == ("first words", "A", "https://b.example")
    assert [m.status for m in store.preview(database, read)] == ["duplicate", "duplicate"]
    assert [m.status for m in store.add_all(database, read, source="form", now=now)] == ["duplicate", "duplicate"]
    newer = make_record(title="One", abstract="third words", arxiv_id="2601.00001v2")
    for expected in ("changed", "duplicate"):
        assert [m.status for m in store.add_all(database, [first, newer], source="form", now=now)][1] == expected
        assert database.rows(sa.select(t.paper.c.abstract))[0]["abstract"] == "third words"
