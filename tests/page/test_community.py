"""Accounts, notes, library, suggestions, one's own data, the writing API: both modes.

Guards of the page's security list, and the test that fails without each (the others: test_own_data.py, test_web.py):
 1 markup of readers      test_notes_are_markdown_behind_an_allow_list, test_a_library_is_text
 3 open redirect          test_redirects_after_a_form_stay_here
 4 header injection       test_login_takes_one_address
 5 tokens                 test_sign_in_by_link_once, test_login_links_are_signed_and_forgotten, test_an_old_link_is_dead
 6 rate limits            test_links_are_limited
 7 enumeration            test_known_and_unknown_addresses_look_the_same
11 sessions               test_session_rotates_and_ends, test_a_fixed_cookie_gets_no_account, test_roles
"""

import json
import os
import re
import shutil
from email import message_from_bytes
from email.policy import SMTP
from pathlib import Path

import pytest
import sqlalchemy as sa

pytest.importorskip("fastapi", reason="the extra web is not installed")
from fastapi.testclient import TestClient

from etude.page import accounts, security, store
from etude.page import tables as t
from etude.page.records import make_record
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


def make_app(folder, mode, **more):
    shutil.copyfile(os.environ["ETUDE_TEST_PAGE"], folder / f"{mode}.sqlite")
    settings = Settings(
        database=str(folder / f"{mode}.sqlite"), secret=SECRET, mail_folder=str(folder / "mail"), mode=mode,
        admin="boss@example.org", embed=False, **more,
    )  # fmt: skip
    return create_app(settings, clock=Clock())


@pytest.fixture
def app(tmp_path):
    made = make_app(tmp_path, "accounts")
    made.state.mail = tmp_path / "mail"
    return made


@pytest.fixture
def single(tmp_path):
    with TestClient(make_app(tmp_path, "single"), base_url=BASE, follow_redirects=False) as client:
        client.site = client.app.state.site
        yield client


def browser(app):
    client = TestClient(app, base_url=BASE, follow_redirects=False)
    client.site = app.state.site
    return client


def csrf(client, path="/subscribe"):
    return re.search(r'name="csrf" value="([^"]+)"', client.get(path).text).group(1)


def post(client, path, **data):
    return client.post(path, data={"csrf": csrf(client)} | data)


def newest_link(app):
    mails = sorted(Path(app.state.mail).glob("*.eml"))
    text = message_from_bytes(mails[-1].read_bytes(), policy=SMTP).get_body(("plain",)).get_content()
    return re.search(r"8000(/login/\S+)", text).group(1)


def join(app, address, handle=None):
    client = browser(app)
    assert post(client, "/login", email=address).status_code == 200
    assert post(client, newest_link(app)).status_code == 303
    if handle:
        assert post(client, "/account/handle", handle=handle).status_code == 303
    return client


def rows(client, table, *where):
    return client.site.db.rows(sa.select(table).where(*where))


def test_sign_in_by_link_once(app):
    client = browser(app)
    assert "sign in first" in post(client, "/vote/gpicl", wanted="true").text
    assert "on its way" in post(client, "/login", email="ann@example.org").text
    link = newest_link(app)
    shown = client.get(link)
    assert shown.headers["referrer-policy"] == "no-referrer"
    assert rows(client, t.session) == []
    other = browser(app)
    assert post(client, link).headers["location"] == "/account"
    assert "does not work any more" in post(other, link).text
    assert rows(client, t.account)[0]["role"] == "member"
    assert post(client, "/vote/gpicl", wanted="true").status_code == 303
    assert rows(client, t.vote)[0]["account_id"] == rows(client, t.account)[0]["id"]
    assert post(client, "/account/handle", handle="Ann").status_code == 303
    for taken in ("me", "settings", "openalex", "scholar", "github", "system"):
        assert post(client, "/account/handle", handle=taken).status_code == 422
    again = join(app, "ann@example.org")
    assert ">ann<" in again.get("/").text
    assert len(rows(client, t.account)) == 1


@pytest.mark.parametrize(("wanted", "found"), [("/submit", "/submit"), ("//evil.example", "/account")])
def test_signing_in_leads_back_to_where_one_was(app, wanted, found):
    client = browser(app)
    page = client.get("/submit").text
    assert 'href="/login?next=/submit"' in page
    assert '<form method="post" action="/submit"' not in page
    assert 'action="/import"' not in client.get("/import").text
    assert ('name="next" value="/submit"' in client.get("/login", params={"next": wanted}).text) is (found == wanted)
    post(client, "/login", email="ann@example.org", next=wanted)
    assert post(client, newest_link(app)).headers["location"] == found
    assert "etude_next" not in client.cookies
    assert '<form method="post" action="/submit"' in client.get("/submit").text


def test_pages_of_an_account_are_kept_by_no_proxy(app):
    assert "cache-control" not in browser(app).get("/").headers
    assert join(app, "ann@example.org").get("/").headers["cache-control"] == "private, no-cache"


@pytest.mark.parametrize(
    ("by", "status", "state"), [("ann", 303, "cancelled"), ("chief", 303, "cancelled"), ("bob", 403, "queued")]
)
def test_a_waiting_study_is_withdrawn_by_who_asked_and_by_moderators(app, by, status, state):
    people = {
        name: join(app, f"{mail}@example.org", name)
        for name, mail in (("ann", "ann"), ("chief", "boss"), ("bob", "bob"))
    }
    place = post(people["ann"], "/run/pointer-networks", tier="quick").headers["location"]
    assert ("Withdraw</button>" in people[by].get(place).text) is (status == 303)
    assert "Withdraw</button>" not in browser(app).get(place).text
    assert post(people[by], f"{place}/withdraw").status_code == status
    assert app.state.site.queue.get(place.rsplit("/", 1)[1])["state"] == state
    assert "Withdraw</button>" not in people["ann"].get(place).text or state == "queued"


@pytest.mark.parametrize(("who", "kept"), [("ann", 10), ("boss", 12)])
def test_an_import_of_a_member_counts_as_papers_by_hand(app, who, kept):
    client = join(app, f"{who}@example.org", "somebody")
    before = len(rows(client, t.paper))
    text = "\n".join(f"@article{{k{i}, title={{A paper of number {i} of many}}, year={{20{i:02}}}}}" for i in range(12))
    shown = post(client, "/import", text=text).text
    token = re.search(r'name="token" value="([^"]+)"', shown).group(1)
    answer = post(client, "/import/confirm", token=token)
    assert len(rows(client, t.paper)) - before == kept
    assert ("2 left out for now" in answer.text) is (kept == 10)


def test_an_old_link_is_dead(app):
    client = browser(app)
    post(client, "/login", email="ann@example.org")
    link = newest_link(app)
    app.state.site.clock.now += accounts.LINK_SECONDS + 1
    assert "does not work any more" in client.get(link).text
    assert "does not work any more" in post(client, link).text
    assert rows(client, t.account) == []


def test_login_links_are_signed_and_forgotten(app):
    client = browser(app)
    post(client, "/login", email="ann@example.org")
    link = newest_link(app)
    value, _, signature = link.removeprefix("/login/").partition(".")
    bad = f"{value}.{'0' * len(signature)}"
    with client.site.db.begin() as c:  # even a hash that is stored does not make an unsigned link good
        row = {"token_hash": security.token_hash(bad), "email_hash": "x", "expires_at": 2_000_000_000, "used": False}
        c.execute(sa.insert(t.login_token).values(**row))
    assert "does not work any more" in post(client, f"/login/{bad}").text
    assert [(r["recipient"], r["raw"]) for r in rows(client, t.outbox)] == [("", "")]
    assert value not in json.dumps(rows(client, t.login_token))


def test_known_and_unknown_addresses_look_the_same(app):
    join(app, "ann@example.org", "ann")
    client = browser(app)
    strip = lambda text: re.sub(r'value="[^"]*"', "", text)
    known, unknown = (post(client, "/login", email=f"{who}@example.org").text for who in ("ann", "bob"))
    assert strip(known) == strip(unknown)
    mails = [message_from_bytes(p.read_bytes(), policy=SMTP) for p in sorted(Path(app.state.mail).glob("*.eml"))[-2:]]
    a, b = (re.sub(r"/login/\S+", "", m.get_body(("plain",)).get_content()) for m in mails)
    assert (a, mails[0]["Subject"]) == (b, mails[1]["Subject"])
    assert len(rows(client, t.account)) == 1


@pytest.mark.parametrize("address", ["a@x.org,b@y.org", "a@x.org\r\nBcc: c@z.org", "nobody"])
def test_login_takes_one_address(app, address):
    client = browser(app)
    assert post(client, "/login", email=address).status_code == 400
    assert rows(client, t.login_token) == []
    assert not Path(app.state.mail).exists()


def test_links_are_limited(app):
    client = browser(app)
    times = security.LIMITS["login"][0]
    assert times >= 50, "a whole laboratory may be one network"
    for i in range(times):
        assert post(client, "/login", email=f"a{i}@example.org").status_code == 200
    refused = post(client, "/login", email="one-more@example.org")
    assert refused.status_code == 429
    assert int(refused.headers["retry-after"]) > 0
    for hour in range(1, 4):  # one address from many networks: silently no more mails
        app.state.site.clock.now += 600 * hour
        for i in range(3):
            accounts.ask_link(client.site.db, client.site.settings, "z@example.org", network=f"n{i}", now=1)
    assert len(rows(client, t.outbox, t.outbox.c.recipient == "z@example.org")) == 5


def test_session_rotates_and_ends(app):
    client = join(app, "ann@example.org", "ann")
    clock, first, token = app.state.site.clock, client.cookies["etude"], csrf(client)
    clock.now += DAY + 1
    client.get("/")
    second = client.cookies["etude"]
    assert second != first
    assert len(rows(client, t.session)) == 1
    assert (
        client.post("/vote/gpicl", data={"csrf": token, "wanted": "true"}).status_code == 303
    )  # open forms still work
    old = browser(app)
    old.cookies.set("etude", first)
    assert ">ann<" in old.get("/about").text  # a request that was on its way
    clock.now += accounts.GRACE_SECONDS + 1
    assert ">ann<" not in old.get("/about").text
    everywhere = join(app, "ann@example.org")
    assert post(everywhere, "/logout", everywhere="true").status_code == 303
    assert ">ann<" not in client.get("/about").text
    clock.now += 3600
    again = join(app, "ann@example.org")
    clock.now += accounts.SESSION_SECONDS
    assert ">ann<" not in again.get("/about").text


def test_a_fixed_cookie_gets_no_account(app):
    client, thief = browser(app), browser(app)
    planted = "p" * 43
    for who in (client, thief):
        who.cookies.set("etude", planted, domain="127.0.0.1", path="/")
    post(client, "/login", email="ann@example.org")
    answer = post(client, newest_link(app))
    assert planted not in answer.headers["set-cookie"]
    assert "HttpOnly" in answer.headers["set-cookie"]
    assert "Your account" not in thief.get("/account").text


def test_roles(app):
    boss, ann = join(app, "boss@example.org", "chief"), join(app, "ann@example.org", "ann")
    assert "Moderation" in boss.get("/").text
    for path in ("/moderation", "/outbox"):
        assert ann.get(path).status_code == 403
    assert post(ann, "/account/role", handle="chief", role="member").status_code == 403
    assert post(ann, "/paper/gpicl/flag", flag="hidden", wanted="true").status_code == 403
    assert ann.get("/paper/gpicl/edit").status_code == 403
    assert post(ann, "/account/handle", handle="chief").status_code == 422
    assert post(boss, "/account/role", handle="chief", role="member").status_code == 400
    assert post(boss, "/account/role", handle="ann", role="moderator").status_code == 303
    assert ann.get("/moderation").status_code == 200
    assert post(boss, "/account/role", handle="ann", role="banned").status_code == 303
    assert ann.get("/account").status_code == 403
    back = browser(app)
    post(back, "/login", email="ann@example.org")
    assert "closed" in post(back, newest_link(app)).text
    assert [r["what"] for r in rows(boss, t.audit)] == ["role"] * 3


def test_the_log_does_not_take_the_next_for_somebody_who_left(app):
    """SQLite gives the highest number anew once its account is deleted."""
    boss, ann = join(app, "boss@example.org", "chief"), join(app, "ann@example.org", "ann")
    post(boss, "/account/role", handle="ann", role="moderator")
    log = lambda: re.search(r'id="log">.*', boss.get("/moderation").text, re.S).group()
    assert "role <b>ann</b>" in log()
    assert post(ann, "/account/delete", confirm="ann").status_code == 303
    join(app, "bob@example.org", "bob")
    assert "role <b>somebody who left</b>" in log()
    assert "bob" not in log()
    assert {r["record"]["account"] for r in rows(boss, t.audit, t.audit.c.what == "role")} == {1, None}


NOTE = "**bold** [a](javascript:alert(1)) [b](https://x.org) <script>alert(1)</script> ![i](https://x.org/i.png) [c](ftp://x.org)"


def test_notes_are_markdown_behind_an_allow_list(app):
    boss, ann = join(app, "boss@example.org", "chief"), join(app, "ann@example.org", "ann")
    assert post(ann, "/paper/gpicl/notes", text=NOTE, claim="nothing").status_code == 400
    assert post(ann, "/paper/gpicl/notes", text=NOTE, claim="").headers["location"] == "/paper/gpicl#notes"
    assert "waits for a moderator" in ann.get("/paper/gpicl").text
    assert "<strong>bold" not in browser(app).get("/paper/gpicl").text
    (note,) = rows(ann, t.note)
    assert post(ann, f"/notes/{note['id']}/state", state="shown").status_code == 403
    assert "<strong>bold" in boss.get("/moderation").text
    assert post(boss, f"/notes/{note['id']}/state", state="shown").status_code == 303
    text = browser(app).get("/paper/gpicl").text
    assert "<strong>bold</strong>" in text
    assert re.search(r'<a href="https://x.org" rel="nofollow noopener ugc">b</a>', text)
    assert "<script>alert" not in text
    assert 'href="javascript' not in text
    assert 'src="https://x.org' not in text
    assert 'href="ftp' not in text
    hide = '<button name="state" value="hidden"'
    assert hide in boss.get("/paper/gpicl").text
    assert hide not in ann.get("/paper/gpicl").text
    place = "/paper/gpicl#notes"
    for state, seen in (("hidden", False), ("shown", True)):
        assert post(boss, f"/notes/{note['id']}/state", state=state, next=place).headers["location"] == place
        assert ("<strong>bold</strong>" in browser(app).get("/paper/gpicl").text) is seen
        assert ("hidden by a moderator" in ann.get("/paper/gpicl").text) is not seen
        assert f'value="{"shown" if state == "hidden" else "hidden"}"' in boss.get("/paper/gpicl").text
    log = boss.get("/moderation").text
    assert '<a href="/paper/gpicl#notes">gpicl</a>' in log
    assert "T" in re.search(r"<li>(\S+): chief, note shown", log).group(1), "the time of day"
    post(ann, "/paper/gpicl/notes", text="a second one, the same day")
    post(boss, f"/notes/{note['id'] + 1}/state", state="shown")
    assert len(rows(ann, t.event, t.event.c.kind == "note")) == 1  # once a person and day
    post(boss, f"/notes/{note['id']}/delete", slug="gpicl")
    assert len(rows(ann, t.note)) == 2  # not hers
    post(ann, f"/notes/{note['id']}/delete", slug="gpicl")
    assert len(rows(ann, t.note)) == 1


def test_pin_and_hide_are_logged(single):
    assert post(single, "/paper/gpicl/flag", flag="pinned", wanted="true").status_code == 303
    assert re.findall(r'<h2><a href="/paper/([^"]+)"', single.get("/").text)[0] == "gpicl"
    post(single, "/paper/gpicl/flag", flag="hidden", wanted="true")
    assert single.get("/paper/gpicl").status_code == 404
    assert "gpicl" in single.get("/moderation").text
    post(single, "/paper/gpicl/flag", flag="hidden", wanted="false")
    assert single.get("/paper/gpicl").status_code == 200
    assert [r["what"] for r in rows(single, t.audit)] == ["pinned", "hidden", "unhidden"]


def edit_values(client, slug):
    text = client.get(f"/paper/{slug}/edit").text
    version = re.search(r'name="version" value="(\d+)"', text).group(1)
    return {"version": version, "title": "A title", "abstract": "words", "authors": "Ann A.; Bob B.", "tags": "x, y"}


def test_two_edits_of_one_paper(single):
    post(single, "/submit", title="Draft")
    mine, theirs = edit_values(single, "draft"), edit_values(single, "draft")
    assert post(single, "/paper/draft/edit", **mine).status_code == 303
    conflict = post(single, "/paper/draft/edit", **(theirs | {"title": "Another title"}))
    assert conflict.status_code == 409
    assert "Changed meanwhile" in conflict.text
    assert "Another title" in conflict.text  # nobody's words are lost
    assert "now: A title" in conflict.text
    (row,) = rows(single, t.paper, t.paper.c.slug == "draft")
    assert (row["title"], row["version"]) == ("A title", 2)
    again = edit_values(single, "draft")
    assert post(single, "/paper/draft/edit", **(again | {"arxiv_id": "1506.03134"})).status_code == 422
    assert post(single, "/paper/draft/edit", **(again | {"url": "javascript:x"})).status_code == 422
    assert "A title" in single.get("/search", params={"q": "tag:x"}).text


def test_the_day_of_a_paper_is_edited(single):
    new = make_record(title="Dated", abstract="y", published_at=1_500_000_000, published_inferred=True)
    store.add_all(single.site.db, [new], source="saved-page", now=single.site.now)
    assert "14 July 2017 (year inferred)" in single.get("/paper/dated").text
    same = {"version": "1", "title": "Dated", "abstract": "z"}
    assert post(single, "/paper/dated/edit", **same, published_at="2017-07-14").status_code == 303
    (row,) = rows(single, t.paper, t.paper.c.slug == "dated")
    assert (row["published_at"], row["published_inferred"], row["abstract"]) == (1_500_000_000, True, "z")
    refused = post(single, "/paper/dated/edit", **(same | {"version": "2"}), published_at="14.7.2018")
    assert refused.status_code == 422
    assert "write it as 2017-06-12" in refused.text
    assert post(single, "/paper/dated/edit", **(same | {"version": "2"}), published_at="2018-07-14").status_code == 303
    assert "14 July 2018 <" not in single.get("/paper/dated").text
    assert "14 July 2018" in single.get("/paper/dated").text
    assert "(year inferred)" not in single.get("/paper/dated").text


def test_library_in_place(single):
    post(single, "/save/gpicl", wanted="true", tags="icl, to read", note="first\nsecond")
    post(single, "/save/pointer-networks", wanted="true", tags="old")
    post(single, "/save/gpicl", wanted="true", tags="icl", note="changed", read="true", next="/library?tag=icl")
    (row,) = rows(single, t.library, t.library.c.tags.cast(sa.String).like("%icl%"))
    assert (row["tags"], row["note"], row["read"]) == (["icl"], "changed", True)
    found = lambda **q: re.findall(r'<h2><a href="/paper/([^"]+)"', single.get("/library", params=q).text)
    assert found(q="CHANGED") == found(tag="icl") == found(read="yes") == ["gpicl"]
    assert found(read="no") == found(q="old") == ["pointer-networks"]
    assert found(q="nowhere") == []
    for _ in range(2):
        assert post(single, "/searches", q="room:kernels", name="kernels").status_code == 303
    assert single.get("/library").text.count(">kernels</a>") == 1
    (kept,) = rows(single, t.saved_search)
    post(single, f"/searches/{kept['id']}/forget")
    assert rows(single, t.saved_search) == []


def test_a_library_is_text(single):
    evil = "<img src=x onerror=alert(1)>"
    post(single, "/save/gpicl", wanted="true", tags=evil, note=evil)
    post(single, "/searches", q=evil, name=evil)
    assert "<img" not in single.get("/library").text


def test_redirects_after_a_form_stay_here(single):
    for target in ("//evil.example", "/\\evil.example", "https://evil.example", "/%2f%2fevil.example"):
        assert post(single, "/save/gpicl", wanted="true", next=target).headers["location"] == "/library"


def test_for_you(single):
    import numpy as np

    from etude.data.randomness import numpy_stream
    from etude.page.search.semantic import MODEL

    assert "Switch it on" in single.get("/for-you").text
    post(single, "/for-you", wanted="true")
    assert "no vectors" in single.get("/for-you").text
    papers = rows(single, t.paper)[:40]
    raw = numpy_stream(0, "test").normal(size=(40, 8)) * 0.3
    raw[:12, 0] += 1.0  # one subject; the others lie elsewhere
    raw[12:, 1] += 1.0
    raw = (raw / np.linalg.norm(raw, axis=1, keepdims=True)).astype(np.float16)
    with single.site.db.begin() as c:
        made = [{"paper_id": p["id"], "model": MODEL, "digest": "x", "f16": v.tobytes()} for p, v in zip(papers, raw)]
        c.execute(sa.insert(t.vector), made)
    assert "at least 3 papers first" in single.get("/for-you").text
    for p in papers[:4]:
        post(single, f"/vote/{p['slug']}", wanted="true")
    found = lambda: re.findall(r'<h2><a href="/paper/([^"]+)"', single.get("/for-you").text)
    subject = {p["slug"] for p in papers[4:12]}
    assert set(found()[:8]) == subject
    assert "Near to" in single.get("/for-you").text
    gone = found()[0]
    post(single, f"/dismiss/{gone}", wanted="true")
    assert gone not in found()
    post(single, f"/dismiss/{gone}", wanted="false")
    assert gone in found()
