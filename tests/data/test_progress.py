"""Progress: everything passes through, the bar only after a while and only on a terminal."""

import sys

from etude.data import progress, track


def test_items_pass_through():
    assert list(track(range(3), "counting")) == [0, 1, 2]
    assert list(track(iter("ab"), "letters", total=2)) == ["a", "b"]


def test_nothing_is_shown_without_a_terminal(capsys, monkeypatch):
    monkeypatch.setattr(progress, "DELAY_SECONDS", -1.0)
    list(track(range(3), "counting"))
    assert capsys.readouterr() == ("", "")


def test_the_bar_starts_after_the_delay_and_stops_when_the_loop_breaks(monkeypatch):
    events = []

    class Bar:
        def add_task(self, what, total, completed):
            events.append((what, total))
            return 0

        def start(self):
            events.append("start")

        def update(self, task, completed):
            events.append(completed)

        def stop(self):
            events.append("stop")

    monkeypatch.setattr(progress, "_bar", Bar)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    list(track(range(3), "too fast to see"))
    assert events == []
    monkeypatch.setattr(progress, "DELAY_SECONDS", -1.0)
    for item in track([5, 6, 7], "slow"):
        if item == 6:
            break
    assert events == [("slow", 3), "start", 1, "stop"]
