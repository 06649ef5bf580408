"""Figures to reach: judged by the median, kept beside the ratios, shown in a table of their own."""

import itertools

import pytest

from etude.cli.results import bench
from etude.errors import UsageError
from etude.lab.bench import Figure, Ratio, Reading, read_off, run, save


def figure(values, **more):
    turns = itertools.cycle(values)
    return Figure("f", lambda: next(turns), "ms", **more)


def test_the_median_is_judged_from_above_or_below():
    assert read_off(figure([3, 1, 9, 2, 30], target=3)).verdict == "reached"
    assert read_off(figure([3, 1, 9, 2, 30], target=2.9)).verdict == "missed"
    assert read_off(figure([0.9, 1.0, 0.8, 1.0, 1.0], target=1.0, at_most=False)).verdict == "reached"
    assert read_off(figure([0.9, 0.9, 0.8, 1.0, 1.0], target=1.0, at_most=False)).verdict == "missed"
    assert read_off(figure([1.0])).verdict == ""


def test_spread_and_number_of_repeats():
    read = read_off(figure([3, 1, 9, 2, 30], target=3))
    assert (read.value, read.low, read.high, read.repeats) == (3, 1, 30, 5)
    assert read_off(figure([7, 1], once=True))[2:6] == (7, 7, 7, 1)


def test_what_is_no_number_is_refused():
    with pytest.raises(ValueError, match="no number"):
        read_off(figure([float("nan")]))


def test_figures_and_ratios_live_in_one_store(tmp_path):
    (tmp_path / "mixed.py").write_text(
        "from etude.lab.bench import Figure\ndef cases():\n    return [Figure('reads', lambda: 2.0, 'ms', target=1.0)]\n"
    )
    old = Ratio("sorting", "peer", 1.0, 2.0, 2.0, 1.9, 2.1, 5, True, None, "")
    save(tmp_path, [("other", old)])
    path = save(tmp_path, list(run(tmp_path)))
    again = save(tmp_path, [("third", Reading("x", "s", 1.0, 1.0, 1.0, 1, None, True, ""))])
    text = again.read_text()
    assert path == again
    assert "| other | sorting |" in text and "| mixed | reads | 2 ms | 2-2 | 5 | <= 1 ms | missed |" in text
    assert text.index("| other |") < text.index("## Figures to reach") < text.index("| mixed |")


def test_what_one_file_measured_stays_when_a_later_one_breaks(tmp_path):
    made = "from etude.lab.bench import Figure\ndef cases():\n    return [Figure('reads', lambda: {}, 'ms')]\n"
    (tmp_path / "first.py").write_text(made.format("2.0"))
    (tmp_path / "second.py").write_text(made.format("1 / 0"))
    with pytest.raises(ZeroDivisionError):
        bench(folder=tmp_path)
    assert "| first | reads | 2 ms |" in (tmp_path / "RESULTS.md").read_text()


def test_only_the_benchmarks_that_are_named_run(tmp_path):
    made = "from etude.lab.bench import Figure\ndef cases():\n    return [Figure('reads', lambda: {}, 'ms')]\n"
    for name, value in (("first", "1.0"), ("second", "2.0"), ("third", "1 / 0")):
        (tmp_path / f"{name}.py").write_text(made.format(value))
    bench("second", "first", "second", folder=tmp_path)
    text = (tmp_path / "RESULTS.md").read_text()
    assert "| first | reads | 1 ms |" in text and "| second | reads | 2 ms |" in text
    with pytest.raises(UsageError, match="unknown benchmark 'fourth'"):
        bench("first", "fourth", folder=tmp_path)
