"""The usage of every card runs as it stands, in an empty folder and with no display."""

from pathlib import Path

import pytest

from etude.catalogue import load
from etude.errors import MissingExtra

FOLDER = Path(__file__).parents[2] / "src" / "etude" / "catalogue" / "papers"
WITH_USAGE = [f.stem for f in sorted(FOLDER.glob("*.toml")) if "\nusage = " in f.read_text(encoding="utf-8")]


@pytest.mark.slow
@pytest.mark.parametrize("slug", WITH_USAGE)
def test_usage_runs(slug: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = load(slug).usage
    assert usage is not None
    monkeypatch.chdir(tmp_path)
    try:
        exec(compile(usage, f"{slug}.usage", "exec"), {"__name__": "usage"})
    except MissingExtra as error:
        pytest.skip(str(error))
