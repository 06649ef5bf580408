"""Accounts, notes, library, suggestions, one's own data, the writing API: both modes.

Guards of the page's security list, and the test that fails without each:
 1 markup of readers      test_notes_are_markdown_behind_an_allow_list, test_a_library_is_text
 2 forms of other sites   test_no_form_without_its_token, test_no_get_changes_anything
 3 open redirect          test_redirects_after_a_form_stay_here
 4 header injection       test_login_takes_one_address
 5 tokens                 test_sign_in_by_link_once, test_login_links_are_signed_and_forgotten, test_api_tokens
 6 rate limits            test_links_are_limited, test_searches_are_limited, test_votes_are_limited
 7 enumeration            test_known_and_unknown_addresses_look_the_same
 8 SQL                    test_words_are_never_sql
10 bombs                  test_bodies_are_bounded, test_archives_that_are_no_archives
11 sessions               test_session_rotates_and_ends, test_a_fixed_cookie_gets_no_account
13 vote integrity         test_two_people_vote_at_once
14 privacy                test_export_wipe_import, test_deletion_leaves_nothing, test_no_address_is_kept
15 secrets, hosts         test_set_up_that_is_not_safe
16 migrations             test_community_migration_goes_both_ways
"""

import io
import json
import re
import threading
import zipfile
from email import message_from_bytes
from email.policy import SMTP
from pathlib import Path

import pytest
import sqlalchemy as sa

pytest.importorskip("fastapi", reason="the extra web is not installed")
from fastapi.testclient import TestClient

from etude.errors import UsageError
from etude.page import accounts, security, store
from etude.page import tables as t
from etude.page.database import Database
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


def csrf(client, path="/submit"):
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
    assert post(client, "/account/handle", handle="me").status_code == 422
    again = join(app, "ann@example.org")
    assert ">ann<" in again.get("/").text
    assert len(rows(client, t.account)) == 1


def test_an_old_link_is_dead(app):
    client = browser(app)
    post(client, "/login", email="ann@example.org")
    link = newest_link(app)
    app.state.site.clock.now += accounts.LINK_SECONDS + 1
    assert "does not work any more" in client.get(link).text
    assert "does not work any more" in post(client, link).text
    assert rows(client, t.account) == []
