"""The page in a real headless Chromium, with and without JavaScript; accessibility by axe.

The eighteen browser tests are numbered in their docstrings: 2-7, 10-12 here, the others in test_browser_more.py. Number
15 (no error in the console, no request to another host) is checked by the fixture `tab` after each of its tests.
"""

import signal
import time
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="the extra web is not installed")
AXE = Path(__file__).parent / "vendor" / "axe.min.js"


def test_list_search_and_back_keep_their_place(tab):
    """3, 10: words and typos find; back keeps the filter."""
    tab.goto("/")
    assert tab.locator("li.paper").count() == 25
    tab.select_option("select[name=room]", "trust")
    with tab.expect_navigation():
        tab.click("text=Apply")
    assert "room=trust" in tab.url
    with tab.expect_navigation():
        tab.locator("li.paper h2 a").first.click()
    tab.go_back()
    assert "room=trust" in tab.url
    tab.fill("#q", "graph architecture")
    with tab.expect_navigation():
        tab.keyboard.press("Enter")
    assert "Auto-GNN" in tab.locator("li.paper").first.inner_text() + tab.locator("li.paper").nth(1).inner_text()
    tab.fill("#q", "autognn")
    with tab.expect_navigation():
        tab.keyboard.press("Enter")
    assert "Auto-GNN" in tab.locator("li.paper").first.inner_text()


def test_vote_toggles_by_mouse_keyboard_and_double_click_and_survives_reload(tab, browser, server):
    """4: by mouse and keyboard, kept over a reload, seen by another browser."""
    tab.goto("/paper/phyll")
    button = tab.locator(".vote button").first
    button.click()
    tab.wait_for_selector(".vote button[aria-pressed=true]")
    tab.reload()
    assert tab.locator(".vote button[aria-pressed=true] b").inner_text() == "1"
    other = browser.new_context(base_url=server.url).new_page()
    other.goto("/paper/phyll")
    assert other.locator(".vote b").inner_text() == "1"
    other.context.close()
    tab.locator(".vote button").focus()
    tab.keyboard.press("Enter")
    tab.wait_for_selector(".vote button[aria-pressed=false]")
    tab.locator(".vote button").dblclick()
    tab.wait_for_timeout(500)
    tab.reload()
    assert tab.locator(".vote b").inner_text() in ("0", "1")


def test_without_javascript(browser, server):
    """11: list, vote, search, subscribe by forms alone."""
    context = browser.new_context(base_url=server.url, java_script_enabled=False)
    page = context.new_page()
    page.goto("/?sort=new")
    with page.expect_navigation():
        page.locator("li.paper .vote button").nth(3).click()
    page.wait_for_selector("button[aria-pressed=true]")
    assert "sort=new" in page.url
    page.fill("#q", "pointer networks")
    page.click("form.search button")
    page.wait_for_url("**/search?q=pointer+networks")
    page.wait_for_selector("li.paper")
    page.goto("/subscribe")
    page.fill("input[name=email]", "nojs@example.org")
    with page.expect_navigation():
        page.click("main form button")
    assert "on its way" in page.locator("main").inner_text()
    context.close()


def test_import_by_paste(tab):
    """2: a preview of 52 new papers, then 52 duplicates."""
    blocks = [f"A New Paper About Topic Number {i}\n\n" + f"Abstract {i} with words. " * 15 for i in range(52)]
    for expected in ("52 new, 0 changed, 0 duplicate", "0 new, 0 changed, 52 duplicate"):
        tab.goto("/import")
        tab.fill("textarea[name=text]", "\n\n".join(blocks))
        with tab.expect_navigation():
            tab.click("text=Preview")
        assert expected in tab.locator("main").inner_text()
        if expected.startswith("52"):
            with tab.expect_navigation():
                tab.click("main form button")
            assert "sort=new" in tab.url


def test_markup_in_a_submission_is_text(tab):
    """5: nothing of a submission runs."""
    evil = "<img src=x onerror=alert(1)>"
    tab.goto("/submit")
    for name in ("title", "abstract", "authors", "tags"):
        tab.fill(f"[name={name}]", f"Evil {evil}")
    with tab.expect_navigation():
        tab.click("main form button")
    assert evil in tab.locator("h1").inner_text()
    assert tab.locator("main img").count() == 0


def test_subscribe_open_the_mail_confirm_by_button(tab, server):
    """7: the mail appears, its link shows a button, the button works once."""
    tab.goto("/subscribe")
    tab.fill("input[name=email]", "ann@example.org")
    tab.click("main form button")
    tab.click("text=see the outbox")
    tab.click("text=Confirm your Etude digest")
    link = tab.locator("pre").inner_text().split(f"{server.url}/confirm/")[1].split()[0]
    assert any((server.folder / "etude-mail").glob("*.eml"))
    tab.goto(f"/confirm/{link}")
    tab.click("text=Yes, send me")
    assert "You are in" in tab.locator("h1").inner_text()
    tab.goto(f"/confirm/{link}")
    assert "does not work any more" in tab.locator("h1").inner_text()


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/paper/pointer-networks",
        "/search?q=networks",
        "/subscribe",
        "/import",
        "/about",
        "/library",
        "/following",
        "/account",
        "/for-you",
        "/moderation",
        "/paper/gpicl/edit",
    ],
)
def test_accessible(browser, server, path):
    """12: labels, contrast, landmarks, table headers, by axe; in dark colours, which change nothing else, contrast."""
    context = browser.new_context(base_url=server.url, color_scheme="light", bypass_csp=True)
    page = context.new_page()
    for scheme, only in (("light", "['wcag2a', 'wcag2aa']"), ("dark", "['color-contrast']")):
        page.emulate_media(color_scheme=scheme)
        page.goto(path)  # after the change: colours that fade into each other are neither
        page.add_script_tag(path=str(AXE))
        found = page.evaluate(f"axe.run({{runOnly: {only}}})")
        assert [(v["id"], v["nodes"][0]["html"][:120]) for v in found["violations"]] == [], scheme
        assert found["passes"], scheme
    context.close()


@pytest.mark.parametrize("path", ["/", "/paper/pointer-networks", "/subscribe", "/import", "/account", "/moderation"])
def test_no_sideways_scroll(browser, server, path):
    """12: 320 pixels, and 640 as at 200% zoom."""
    context = browser.new_context(base_url=server.url)
    page = context.new_page()
    for width in (640, 320):
        page.set_viewport_size({"width": width, "height": 700})
        page.goto(path)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    context.close()


def test_a_refused_vote_is_said_and_forgotten_with_the_next(browser, server):
    tab = browser.new_context(base_url=server.url).new_page()  # without `tab`'s look at the console: htmx notes a 403
    tab.goto("/paper/phyll")
    token = tab.locator(".vote input[name=csrf]")
    good = token.input_value()
    token.evaluate("(box) => { box.value = 'another' }")
    tab.locator(".vote button").click()
    tab.wait_for_selector("#refused[role=alert]")
    assert "reload the page" in tab.locator("#refused").inner_text()
    token.evaluate(f"(box) => {{ box.value = '{good}' }}")
    tab.locator(".vote button").click()
    tab.wait_for_selector("#refused", state="detached")
    tab.context.close()


def test_the_longest_tag_fits_a_phone(tab):
    tab.goto("/paper/phyll")
    tab.click("text=Save to your library")
    tab.fill("details.save input[name=tags]", "x" * 40)
    with tab.expect_navigation():
        tab.click("details.save button")
    tab.set_viewport_size({"width": 320, "height": 700})
    tab.goto("/library")
    assert tab.locator("option", has_text="x" * 40).count() == 1
    assert tab.evaluate("document.documentElement.scrollWidth") <= 320


def test_run_here_goes_on_over_reload_and_kill(tmp_path, browser, make_server):
    """6: a study asked for on the page shows progress over a reload; the server is killed, and finishes it later."""
    from etude.lab.ledger import Ledger
    from etude.lab.queue import Queue, request_table

    server = make_server(tmp_path).start()
    try:
        page = browser.new_context(base_url=server.url).new_page()
        page.goto("/paper/calibrated-hallucination")
        assert page.locator("#claims").count() == 1
        with page.expect_navigation():
            page.click("text=Run it here: quick")
        place = page.url
        ledger = Ledger(tmp_path / "etude.sqlite")
        until = time.monotonic() + 120
        while not sum(len(ledger.finished(r["id"])) for r in ledger.runs()) and time.monotonic() < until:
            time.sleep(0.1)
        page.reload()
        assert page.locator("progress").count() == 1
        server.stop(signal.SIGKILL)
        before = sum(len(ledger.finished(r["id"])) for r in ledger.runs())
        assert before > 0
        with ledger.engine.begin() as c:  # the lease of the killed worker runs out
            c.execute(request_table.update().values(lease_until=0.0))
        server.start()
        page.goto(place)
        request, until = place.rsplit("/", 1)[1], time.monotonic() + 200
        while (asked := Queue(ledger).get(request))["state"] in ("queued", "running") and time.monotonic() < until:
            time.sleep(0.2)
        assert asked["state"] == "done", (asked, ledger.runs())
        page.wait_for_selector("text=See the claims")
        assert len(ledger.runs()) == 1
        with page.expect_navigation():
            page.click("text=See the claims")
        assert page.locator("td .badge").count() >= 1
        page.context.close()
    finally:
        server.stop()
