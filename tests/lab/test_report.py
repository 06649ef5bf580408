"""The report in a real headless Chromium: self-contained, filters, light and dark, phone."""

import re
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from etude.errors import UsageError
from etude.lab.jobs import UserData
from etude.lab.judge import judge
from etude.lab.ledger import Ledger
from etude.lab.report import write_report
from etude.lab.runner import run_study
from etude.lab.vega import figure


@pytest.fixture
def report(toy, tmp_path):
    ledger = Ledger(tmp_path / "l.sqlite")
    run_study(toy, ledger=ledger, jobs=1)
    run_study(toy, "laptop", ledger=ledger, jobs=1, settings={"level": -2.0})
    return write_report(ledger, tmp_path / "report")


def opened(browser, path, **options):
    page = browser.new_page(**options)
    page.problems, page.asked = [], []
    page.on("console", lambda m: page.problems.append(m.text) if m.type == "error" else None)
    page.on("pageerror", lambda e: page.problems.append(str(e)))
    page.on("request", lambda r: page.asked.append(r.url))
    page.goto(path.as_uri())
    return page


def test_no_request_leaves_the_file_and_nothing_complains(report, browser):
    page = opened(browser, report)
    assert page.asked == [report.as_uri()]
    assert page.problems == []
    assert page.title() == "Etude: re-tested claims"


def test_filters(report, browser):
    page = opened(browser, report)
    rows = page.locator("#table tbody tr:visible")
    assert rows.count() == 2
    page.select_option("#f-word", "fails")
    assert rows.count() == 1
    assert page.locator("#f-count").inner_text() == "1 claims"
    page.select_option("#f-word", "")
    page.fill("#f-text", "toy-study laptop nothing")
    assert rows.count() == 0
    page.fill("#f-text", "ours plain")
    assert rows.count() == 2
    page.check("#f-surprise")
    assert rows.count() == 1


def test_every_claim_has_its_strip_plot_and_command(report, browser):
    page = opened(browser, report)
    assert page.locator("article").count() == 2
    assert page.locator("article svg.forest .effect").count() == 2
    assert page.locator("article figure svg").count() == 2
    page.locator("summary", has_text="Provenance").first.click()
    assert page.locator("pre:visible", has_text="etude run toy-study --tier laptop").count() == 1


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_light_dark_and_the_switch(report, browser, scheme):
    page = opened(browser, report, color_scheme=scheme)
    shade = lambda: page.evaluate("getComputedStyle(document.body).backgroundColor")
    before = shade()
    assert (sum(int(x) for x in before[4:-1].split(",")) < 300) == (scheme == "dark")
    page.click("#theme")
    assert shade() != before


@pytest.mark.parametrize("width", [320, 375, 1280])
def test_no_sideways_scroll(report, browser, width):
    page = opened(browser, report, viewport={"width": width, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_a_long_name_of_data_does_not_widen_the_table(report, browser):
    page = opened(browser, report, viewport={"width": 1400, "height": 800})
    page.evaluate("document.querySelector('#table td:last-child').innerText = 'semeval2010_task14_' + 'x'.repeat(30)")
    assert page.evaluate("(e => e.scrollWidth - e.clientWidth)(document.querySelector('.scroll'))") == 0


def test_verdicts_are_words_and_signs_not_colours_alone(report, browser):
    page = opened(browser, report)
    assert {t.strip()[0] for t in page.locator("#table .badge").all_inner_texts()} == {"✓", "✗"}


def test_keyboard_reaches_the_filters(report, browser):
    page = opened(browser, report)
    seen = []
    for _ in range(8):
        page.keyboard.press("Tab")
        seen.append(page.evaluate("document.activeElement.id"))
    assert {"theme", "f-text", "f-word", "f-tier"} <= set(seen)


def test_text_of_cards_is_escaped(toy, tmp_path, monkeypatch):
    from etude import catalogue

    card = catalogue.load(toy).model_copy(update={"title": "<script>alert(1)</script>"})
    monkeypatch.setattr(catalogue, "load", lambda slug: card)
    ledger = Ledger(tmp_path / "l.sqlite")
    run_study(toy, ledger=ledger, jobs=1)
    text = write_report(ledger, tmp_path / "r").read_text()
    assert "<script>alert" not in text
    assert "&lt;script&gt;alert" in text


def test_an_empty_ledger_still_gives_a_page(tmp_path):
    text = write_report(Ledger(tmp_path / "l.sqlite"), tmp_path / "r").read_text()
    assert "Also in the catalogue" in text


def test_runs_on_two_files_have_articles_of_their_own(toy, tmp_path):
    ledger = Ledger(tmp_path / "l.sqlite")
    for name in ("one", "two"):
        (tmp_path / f"{name}.csv").write_text("a,b,y\n" + "\n".join(f"{i},{i % 3},{i % 2}" for i in range(40)))
        run_study(toy, ledger=ledger, jobs=1, user=UserData(str(tmp_path / f"{name}.csv"), "y"))
    html = write_report(ledger, tmp_path / "report").read_text()
    anchors = re.findall(r'<article id="([^"]+)"', html)
    assert len(set(anchors)) == 2
    assert all(f'href="#{a}"' in html for a in anchors)
    assert "one.csv" in html
    assert "two.csv" in html


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UsageError, match="cannot write the report"):
        write_report(Ledger(tmp_path / "l.sqlite"), tmp_path / "file" / "r")


def test_the_strip_shows_where_the_claim_holds():
    from etude.lab.forest import scale_of
    from etude.lab.judge import Verdict

    said = judge([1.0, 2.0, 3.0], "greater", 0.5)
    v = Verdict(
        slug="x", claim="C", protocol="p", tier="quick", verdict=said.word, effect=said.effect, low=said.low,
        high=said.high, n=3, margin=0.5, relation="greater", paper_value=None, unit="1", expects="open",
    )  # fmt: skip
    near, far = scale_of(v, 4.0, 420.0), scale_of(v, 4000.0, 420.0)
    assert near.low < said.low < said.high < near.high
    assert 0 <= near(4.0) <= 420
    assert far(4000.0) > 420
    assert far.clip(4000.0) <= 420


@pytest.mark.parametrize(
    ("plot", "text"),
    [
        ({"name": "x"}, "cannot be drawn: it has no spec"),
        ({"name": "x", "caption": "seeds", "spec": ["mark"]}, "seeds (cannot be drawn"),
        ({"name": "x", "caption": "seeds", "spec": {"mark": 3}}, "seeds (cannot be drawn"),
    ],
)
def test_a_plot_that_cannot_be_drawn_says_so(plot, text):
    drawn = figure(plot)
    assert (drawn["svg"], drawn["name"]) == ("", "x")
    assert text in drawn["caption"]


def test_a_plot_makes_us_ask_no_address():
    """Files with plots come from others: data that lie at an address are not fetched."""
    asked = []

    class Host(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(404)
            self.end_headers()

    with HTTPServer(("127.0.0.1", 0), Host) as host:
        threading.Thread(target=host.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{host.server_port}/data.json"
        plot = {"name": "x", "caption": "c", "spec": {"data": {"url": url}, "mark": "point"}}
        assert "External data url not allowed" in figure(plot)["caption"]
        host.shutdown()
    assert asked == []
