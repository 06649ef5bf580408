"""One's own data, the writing API and the guards that both modes share.

Guards of the page's security list, and the test that fails without each (the others: test_community.py, test_web.py,
test_guards.py):
 2 forms of other sites   test_no_form_without_its_token, test_no_get_changes_anything
 5 tokens                 test_api_tokens
10 bombs                  test_archives_that_are_no_archives
14 privacy                test_export_wipe_import, test_deletion_leaves_nothing, test_others_subscriptions_are_not_mine
"""

import io
import json
import os
import re
import shutil
import zipfile
from pathlib import Path

import pytest
import sqlalchemy as sa

pytest.importorskip("fastapi", reason="the extra web is not installed")
from fastapi.testclient import TestClient

import etude.page
from etude.page import accounts, personal, security
from etude.page import tables as t
from etude.page.settings import Settings
from etude.page.web.app import create_app

SECRET = "a test's secret, long enough to be taken"
BASE = "http://127.0.0.1:8000"
DAY = 86_400


class Clock:
    def __init__(self):
        self.now = 1_790_000_000.0

    def __call__(self):
        return self.now


def make_app(folder, mode="single"):
    folder.mkdir(exist_ok=True)
    shutil.copyfile(os.environ["ETUDE_TEST_PAGE"], folder / "p.sqlite")
    files = {"database": str(folder / "p.sqlite"), "mail_folder": str(folder / "mail")}
    return create_app(Settings(secret=SECRET, mode=mode, embed=False, **files), clock=Clock())


def browser(app, account=None):
    """A client, signed in as an account of the mode accounts."""
    client = TestClient(app, base_url=BASE, follow_redirects=False)
    client.site = app.state.site
    if account is not None:
        with client.site.db.begin() as c:
            client.cookies.set("etude", accounts.open_session(c, account, client.site.now))
    return client


def person(app, handle, email=None, role="member"):
    s = app.state.site
    hashed = accounts.address_hash(s.settings, email) if email else None
    with s.db.begin() as c:
        row = {"handle": handle, "email_hash": hashed, "role": role, "created_at": s.now - 9 * DAY, "for_you": False}
        return c.execute(sa.insert(t.account).values(**row)).inserted_primary_key[0]


@pytest.fixture
def single(tmp_path):
    return browser(make_app(tmp_path / "one"))


def csrf(client, path="/subscribe"):
    return re.search(r'name="csrf" value="([^"]+)"', client.get(path).text).group(1)


def post(client, path, **data):
    return client.post(path, data={"csrf": csrf(client)} | data)


def rows(client, table, *where):
    return client.site.db.rows(sa.select(table).where(*where))


PERSONAL = (t.vote, t.library, t.note, t.saved_search, t.dismissal)


def fill(client):
    post(client, "/submit", title="A paper of my own", abstract="words", tags="mine")
    post(client, "/vote/gpicl", wanted="true")
    post(client, "/vote/a-paper-of-my-own", wanted="true")
    post(client, "/save/pointer-networks", wanted="true", tags="seq", note="read it\nagain", read="true")
    post(client, "/paper/gpicl/notes", text="a *note*")
    post(client, "/searches", q="room:kernels", name="kernels")
    post(client, "/dismiss/auto-gnn", wanted="true")
    post(client, "/subscribe", email="ann@example.org")


def upload(client, raw):
    files = {"file": ("x.zip", raw, "application/zip")}
    return client.post("/account/import", data={"csrf": csrf(client)}, files=files)


def test_export_wipe_import(single, tmp_path):
    fill(single)
    answer = post(single, "/account/export")
    assert answer.headers["content-type"] == "application/zip"
    with zipfile.ZipFile(io.BytesIO(answer.content)) as z:
        parts = {n: json.loads(z.read(n)) for n in z.namelist() if "/" not in n}
    assert {len(parts[f"{k}.json"]) for k in ("library", "notes", "searches", "dismissals")} == {1}
    assert len(parts["votes.json"]) == 2
    assert parts["subscriptions.json"][0]["email"] == "ann@example.org"
    fresh = browser(make_app(tmp_path / "two"))
    assert upload(fresh, answer.content).status_code == 200
    keys = lambda c: {
        x.name: sorted(
            str({k: v for k, v in r.items() if k not in ("id", "paper_id", "account_id")}) for r in rows(c, x)
        )
        for x in PERSONAL
    }
    before, after = keys(single), keys(fresh)
    for kind in before:
        assert len(before[kind]) == len(after[kind]) > 0, kind
    assert before["vote"] == after["vote"]
    assert before["library"] == after["library"]
    votes = lambda c: {r["slug"]: r["votes"] for r in rows(c, t.paper)}
    assert votes(single) == votes(fresh)
    assert upload(fresh, answer.content).status_code == 200  # twice is the same
    assert keys(fresh) == after


def test_runs_come_back_with_the_zip(single, tmp_path):
    from etude.lab.verdicts import verdicts

    results = Path(etude.page.__file__).parents[3] / "results"
    made = sorted(results.glob("*/quick.json")) or sorted(results.glob("*/laptop.json"))
    if not made:
        pytest.skip("optional: needs a results folder with a run")
    from etude.lab.export import import_results

    import_results(single.site.ledger, made[0])
    raw = post(single, "/account/export").content
    fresh = browser(make_app(tmp_path / "two"))
    assert "1 runs" in upload(fresh, raw).text
    words = lambda c: sorted((v.slug, v.claim, str(v.verdict)) for v in verdicts(c.site.ledger))
    assert words(fresh) == words(single)


def test_deletion_leaves_nothing(tmp_path):
    app = make_app(tmp_path / "many", "accounts")
    ann_id, bob_id = person(app, "ann", "ann@example.org"), person(app, "bob", "bob@example.org")
    ann, bob = browser(app, ann_id), browser(app, bob_id)
    fill(ann)
    post(bob, "/vote/gpicl", wanted="true")
    post(bob, "/subscribe", email="bob@example.org")
    post(ann, "/account/tokens", name="script")
    post(ann, "/paper/a-paper-of-my-own/edit", version="1", title="A paper of my own", abstract="other words")
    post(ann, "/paper/gpicl/author", how="address", email="ann.elsewhere@example.net")
    post(bob, "/paper/gpicl/author", how="address", email="bob@example.net")
    parts = personal.export(ann.site.db, ann.site.settings, rows(ann, t.account, t.account.c.id == ann_id)[0], 0)
    assert [(r["paper"], r["proof"]) for r in parts["authorship"]] == [("gpicl", "asked a...@example.net")]
    assert [(r["paper"], r["n"]) for r in parts["edits"]][-1] == ("a-paper-of-my-own", 2)
    assert {r["language"] for r in parts["subscriptions"]} == {"en"}
    refused = post(ann, "/account/delete", confirm="bob")
    assert "nothing was deleted" in refused.text
    assert post(ann, "/account/delete", confirm="ann").status_code == 303
    assert ann.get("/account").status_code == 403
    for table in (*PERSONAL, t.event, t.api_token, t.session):
        assert rows(bob, table, table.c.account_id == ann_id) == [], table.name
    assert [r["handle"] for r in rows(bob, t.account)] == ["bob"]
    assert [r["email"] for r in rows(bob, t.subscriber)] == ["bob@example.org"]
    dump = " ".join(str(rows(bob, table)) for table in t.meta.sorted_tables)
    assert "ann@" not in dump
    assert "ann.elsewhere@" not in dump
    assert [b"bob@" in p.read_bytes() for p in (tmp_path / "many" / "mail").glob("*.eml")] == [True, True]
    assert "'ann'" not in dump
    (gpicl,) = rows(bob, t.paper, t.paper.c.slug == "gpicl")
    assert gpicl["votes"] == 1
    from etude.page import heat

    left = [heat.Event(e["weight"], e["at"]) for e in rows(bob, t.event, t.event.c.paper_id == gpicl["id"])]
    assert gpicl["heat_72"] == pytest.approx(heat.heat(left, 72.0))


@pytest.mark.parametrize("mode", ["single", "accounts"])
def test_a_zip_counts_as_what_is_done_by_hand(tmp_path, mode, monkeypatch):
    for what in ("vote", "note", "submit"):
        monkeypatch.setitem(security.LIMITS, what, (3, DAY))
    app = make_app(tmp_path / "many", mode)
    ann = browser(app, person(app, "ann") if mode == "accounts" else None)
    slugs = [r["slug"] for r in rows(ann, t.paper)][:8]
    marks = [{"paper": slug, "at": 1, "text": "words"} for slug in slugs]
    papers = [{"slug": s, "title": s, "source": "catalogue"} for s in slugs]
    papers += [{"slug": f"new-{i}", "title": f"Of hers {i}"} for i in range(5)]
    raw = packed(about=ABOUT, papers=json.dumps(papers), votes=json.dumps(marks), notes=json.dumps(marks))
    most = 3 if mode == "accounts" else 8
    said = upload(ann, raw).text
    assert ("left out for now" in said) == (mode == "accounts")
    assert (len(rows(ann, t.vote)), len(rows(ann, t.note))) == (most, most)
    assert len([r for r in rows(ann, t.paper) if r["title"].startswith("Of hers")]) == min(most, 5)
    assert {r["network"] for r in rows(ann, t.event, t.event.c.kind == "vote")} == {"testclient"}
    ann.site.clock.now += 2 * DAY
    upload(ann, raw)
    assert len(rows(ann, t.vote)) == min(2 * most, 8)


def test_others_subscriptions_are_not_mine(tmp_path):
    app = make_app(tmp_path / "many", "accounts")
    ann = browser(app, person(app, "ann", "ann@example.org"))
    post(ann, "/subscribe", email="carl@example.org")
    with zipfile.ZipFile(io.BytesIO(post(ann, "/account/export").content)) as z:
        assert json.loads(z.read("subscriptions.json")) == []


def bomb():
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as z:
        z.writestr("about.json", b'{"format": 1}' + b" " * (40 * 2**20))  # good JSON, once it is all unpacked
    return out.getvalue()


def packed(**files):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as z:
        for name, text in files.items():
            z.writestr(f"{name}.json", text)
    return out.getvalue()


ABOUT = '{"format": 1}'
BAD = {
    "no zip": b"hello", "cut": packed(about=ABOUT)[:-30], "bomb": bomb(), "empty": packed(),
    "deep": packed(about="[" * 200_000), "not ours": packed(about="[]"), "newer": packed(about='{"format": 99}'),
    "wrong": packed(about=ABOUT, votes='[{"paper": 1}]'),
    "no title": packed(about=ABOUT, papers='[{"slug": "x", "title": " "}]'),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD)
def test_archives_that_are_no_archives(single, kind):
    before = rows(single, t.paper)
    answer = upload(single, BAD[kind])
    assert answer.status_code == 422
    assert "zip" in answer.text
    assert rows(single, t.paper) == before


def api_token(client, name="script"):
    return re.search(r'<code id="token">([^<]+)</code>', post(client, "/account/tokens", name=name).text).group(1)


def test_api_tokens(tmp_path):
    app = make_app(tmp_path / "many", "accounts")
    me = person(app, "ann", "ann@example.org")
    ann, program = browser(app, me), browser(app)
    token = api_token(ann)
    assert token not in ann.get("/account").text  # shown once
    assert token not in str(rows(ann, t.api_token))
    head = {"authorization": f"Bearer {token}"}
    vote = {"paper": "gpicl"}
    for wrong in ({}, {"authorization": "Bearer x"}, {"authorization": f"Basic {token}"}):
        refused = program.post("/api/vote", json=vote, headers=wrong)
        assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer")
    assert ann.post("/api/vote", json=vote).status_code == 401  # a cookie is no token
    for _ in range(2):
        assert program.post("/api/vote", json=vote, headers=head).json() == {"paper": "gpicl", "votes": 1}
    assert program.post("/api/vote", json=vote | {"wanted": False}, headers=head).json()["votes"] == 0
    assert program.post("/api/vote", json={"paper": "nothing"}, headers=head).status_code == 404
    made = program.post("/api/papers", json={"title": "By a program", "authors": ["A B"]}, headers=head)
    assert (made.status_code, made.json()["slug"]) == (201, "by-a-program")
    assert rows(ann, t.paper, t.paper.c.slug == "by-a-program")[0]["submitted_by"] == me
    assert program.post("/api/papers", json={"title": "!"}, headers=head).status_code == 400
    assert program.post("/api/papers", json={"title": "x", "room": "attic"}, headers=head).status_code == 400
    assert program.post("/api/papers", json={"title": "x", "votes": 9}, headers=head).status_code == 422
    for i in range(9):
        program.post("/api/papers", json={"title": f"By a program, part {i}"}, headers=head)
    refused = program.post("/api/papers", json={"title": "One more"}, headers=head)
    assert refused.status_code == 429 and int(refused.headers["retry-after"]) > 0
    other = browser(app, person(app, "bob"))
    kept = rows(ann, t.api_token)[0]["token_hash"][:16]
    post(other, f"/account/tokens/{kept}/revoke")
    assert program.post("/api/vote", json=vote, headers=head).status_code == 200
    post(ann, f"/account/tokens/{kept}/revoke")
    assert program.post("/api/vote", json=vote, headers=head).status_code == 401


def test_reading_is_open_to_other_sites_and_writing_is_not(single):
    origin = {"origin": "https://elsewhere.example"}
    assert single.get("/api/papers", headers=origin).headers["access-control-allow-origin"] == "*"
    assert "access-control-allow-origin" not in single.get("/", headers=origin).headers
    ask = origin | {"access-control-request-method": "POST", "access-control-request-headers": "authorization"}
    said = single.options("/api/vote", headers=ask)
    assert said.headers["access-control-allow-methods"] == "GET"
    assert "access-control-allow-headers" not in said.headers
    refused = single.post("/api/vote", json={"paper": "gpicl"}, headers=origin)
    assert "access-control-allow-origin" not in refused.headers
    assert "access-control-allow-credentials" not in single.get("/api/papers", headers=origin).headers


FORMS = [
    "/vote/gpicl", "/save/gpicl", "/dismiss/gpicl", "/for-you", "/searches", "/paper/gpicl/notes", "/paper/gpicl/flag",
    "/paper/gpicl/edit", "/notes/1/state", "/notes/1/delete", "/account/tokens", "/account/export", "/account/delete",
    "/account/import", "/submit", "/import", "/run/pointer-networks", "/subscribe", "/account/tokens/x/revoke",
    "/searches/1/forget",
]  # fmt: skip
FIELDS = {"wanted": "true", "text": "x", "flag": "hidden", "state": "shown", "slug": "gpicl", "version": "1",
          "title": "x", "q": "x", "name": "x", "email": "a@example.org", "confirm": "me"}  # fmt: skip


def state(client):
    return {table.name: rows(client, table) for table in t.meta.sorted_tables if table.name != "rate"}


def test_no_form_without_its_token(single):
    single.get("/")
    before = state(single)
    good = csrf(single)
    for path in FORMS:
        files = {"file": ("x.zip", b"x")} if path == "/account/import" else None
        assert single.post(path, data=FIELDS | {"csrf": "0" * 64}, files=files).status_code == 403, path
        elsewhere = {"origin": "https://evil.example"}
        assert single.post(path, data=FIELDS | {"csrf": good}, files=files, headers=elsewhere).status_code == 403, path
    assert state(single) == before


def test_no_get_changes_anything(single):
    fill(single)
    before = state(single)
    posts = {r.path for r in routes(single.app) if "POST" in (r.methods or ())}
    gets = {r.path for r in routes(single.app) if "GET" in (r.methods or ())}
    assert len(posts) > 20 and len(gets) > 20
    for path in posts | gets:
        address = path.replace("{slug}", "gpicl").replace("{path:path}", "x")
        single.get(re.sub(r"\{[^}]+\}", "1", address))
    assert state(single) == before


def routes(app):
    found = []
    for r in app.routes:
        inner = getattr(getattr(r, "original_router", None), "routes", None) or [r]
        found += [x for x in inner if hasattr(x, "methods")]
    return found
