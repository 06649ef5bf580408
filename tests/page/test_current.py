"""The page's figures are those of the newest run; its log keeps what changed."""

import pytest
import sqlalchemy as sa

pytest.importorskip("fastapi", reason="the extra web is not installed")

from tests.page.measured import measured
from tests.page.test_community import single  # noqa: F401

from etude.page import tables as t

SLUG = "pointer-networks"
GOOD = {"ptr": 70.0, "attention": 20.0, "untrained": 0.0}


def shown(client):
    return {v["claim"]: v for v in client.get(f"/api/papers/{SLUG}/claims").json() if v.get("verdict")}


def log(client):
    rows = client.site.db.rows(
        sa.select(t.verdict_log).where(t.verdict_log.c.slug == SLUG).order_by(t.verdict_log.c.id)
    )
    return [(r["claim"], r["verdict"]) for r in rows]


def test_a_run_again_brings_its_numbers_and_no_news(single):  # noqa: F811
    s = single.site
    first = measured(s.ledger, SLUG, GOOD, started="2026-01-02T03:00:00+00:00")
    s.refresh_verdicts()
    before = shown(single)["P1"]
    assert (before["verdict"], before["run"], before["effect"]) == ("holds", first, pytest.approx(50.0))
    assert before["at"] == 1767322805, "when the run ended, not when it was read"
    known = log(single)
    again = measured(s.ledger, SLUG, GOOD | {"ptr": 90.0}, started="2026-02-02T03:00:00+00:00")
    s.refresh_verdicts()
    after = shown(single)["P1"]
    assert (after["verdict"], after["run"], after["effect"]) == ("holds", again, pytest.approx(70.0))
    assert log(single) == known, "the same verdict is no news"
    assert "2 Feb" in single.get(f"/paper/{SLUG}").text or "2026-02-02" in single.get(f"/paper/{SLUG}").text
    measured(s.ledger, SLUG, GOOD | {"ptr": 20.0}, started="2026-03-02T03:00:00+00:00")
    assert shown(single)["P1"]["verdict"] == "fails", "read at once"
    s.refresh_verdicts()
    assert log(single)[-1] == ("P1", "fails")


def test_markdown_of_a_paper_has_its_claims(single):  # noqa: F811
    measured(single.site.ledger, SLUG, GOOD, started="2026-01-02T03:00:00+00:00")
    text = single.get(f"/api/papers/{SLUG}.md").text
    (line,) = [x for x in text.splitlines() if x.startswith("- P1: ")]
    assert " Here: holds, effect +50 " in line
    assert ", laptop, n = " in line and line.endswith(", 2026-01-02.")
    assert " Here: not re-tested: " in single.get("/api/papers/auto-gnn.md").text
    assert "1506.03134" in text


def test_only_drawings_are_put_into_a_page_as_they_are():
    from etude.page.web.render import drawing

    plain = '<svg viewBox="0 0 1 1"><text>one = 1, on = 2</text><path d="M0 0"/></svg>'
    assert drawing(plain) == plain
    assert drawing("") == ""
    for odd in (
        "<img src=x>", "<svg><script>1</script></svg>", '<svg onload="1"></svg>', "<svg><g ONCLICK =1></g></svg>",
        '<svg><a href="javascript:1">x</a></svg>', "<svg><foreignObject>x</foreignObject></svg>",
    ):  # fmt: skip
        assert "<" not in drawing(odd)


@pytest.mark.parametrize("old", ["laptop", "quick"])
def test_the_row_of_the_old_run_is_marked_and_no_other(single, monkeypatch, old):  # noqa: F811
    monkeypatch.setattr("etude.lab.verdicts.is_stale", lambda record, present: present == old)
    monkeypatch.setattr("etude.lab.verdicts.present_digest", lambda slug, tier: tier)
    for day, tier in enumerate(("laptop", "quick"), 1):
        measured(single.site.ledger, SLUG, GOOD, tier=tier, started=f"2026-01-0{day}T03:00:00+00:00")
    text = single.get(f"/paper/{SLUG}").text
    rows = [row for row in text.split("<tr>") if "holds</span>" in row]
    assert {("! stale" in row) == (f", {old}, n = " in row) for row in rows} == {True}
    assert len({"! stale" in row for row in rows}) == 2


def test_a_run_that_goes_on_changes_nothing(single):  # noqa: F811
    s = single.site
    measured(s.ledger, SLUG, GOOD)
    before = shown(single)
    s.ledger.begin(SLUG, "laptop", "another", {"config": {}})
    assert shown(single) == before


def test_a_claim_that_left_its_card_is_not_counted(single):  # noqa: F811
    s = single.site
    measured(s.ledger, SLUG, GOOD)
    s.refresh_verdicts()
    with s.db.begin() as c:
        gone = {"slug": SLUG, "claim": "GONE", "protocol": "hull", "tier": "laptop", "verdict": "holds"}
        c.execute(sa.insert(t.verdict_log).values(**gone, record=gone, run="x", at=1))
    assert s.badges([SLUG])[SLUG]["counts"] == {"holds": 1}


def test_what_cannot_be_tested_says_so_and_why(single):  # noqa: F811
    page = single.get("/paper/auto-gnn").text
    assert "not re-tested: " in page
