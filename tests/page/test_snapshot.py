"""The page as plain files: every list whole, every link whole, nothing that needs a server."""

import json
import re
import sqlite3
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="the extra web is not installed")

from etude.catalogue import papers
from etude.errors import UsageError
from etude.lab.export import import_results, read_result
from etude.lab.ledger import Ledger
from etude.page.snapshot import write_site

RESULTS = Path(__file__).parents[2] / "results"


def test_snapshot_is_a_site_without_a_server(tmp_path):
    database, root = tmp_path / "p.sqlite", tmp_path / "site"
    import_results(Ledger(database), RESULTS / "train-longer")
    assert write_site(root, str(database)) > 200
    pages, listed = sorted(root.rglob("*.html")), {}
    for page in pages:
        text = page.read_text()
        assert "<form" not in text
        assert "127.0.0.1" not in text
        assert 'href="/' not in text
        for target in re.findall(r'(?:href|src)="((?!https?:)[^"#]+)"', text):
            assert (page.parent / target).resolve().exists(), (page, target)
        listed[page.name] = re.findall(r'<h2><a href="paper/([^"]+)\.html"', text)
    for order in ("index", "new", "top"):
        names = [n for file in sorted(listed) if re.fullmatch(rf"{order}(-\d+)?\.html", file) for n in listed[file]]
        assert len(names) == len(set(names)) == len(papers())
    assert "train-longer" in listed["room-training.html"]
    run = re.search(r'href="(\.\./run/\w+\.json)"', (root / "paper" / "train-longer.html").read_text())
    assert read_result((root / "paper" / run.group(1)).resolve()).slug == "train-longer"
    assert len(json.loads((root / "api" / "papers.json").read_text())["papers"]) == len(papers())
    assert not (root / "feed.atom").exists()
    with sqlite3.connect(database) as db:
        assert db.execute("select count(*) from account").fetchone() == (0,)
        db.execute("update paper set hidden = 1 where slug != 'train-longer'")
    (root / "mine.txt").write_text("not ours")
    write_site(root, str(database), "https://papers.example.org/")
    assert [p.name for p in (root / "paper").iterdir() if p.suffix == ".html"] == ["train-longer.html"]
    assert not (root / "room-kernels.html").exists() and (root / "mine.txt").exists()
    assert 'href="https://papers.example.org/paper/train-longer"' in (root / "feed.atom").read_text()
    with pytest.raises(UsageError, match="is a file"):
        write_site(database, str(database))
