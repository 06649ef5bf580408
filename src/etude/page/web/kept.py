"""Rendered pages that are kept until something changes in the database, at most half a minute."""

import secrets
import threading
from collections.abc import Callable

from markupsafe import Markup

from etude.page.database import Database

SECONDS = 30  # windows such as "this day" move on by themselves
MOST, MOST_PIECES = 256, 4096
Key = tuple[object, ...]


class Kept:
    """Texts by key, each good while the database is as it was when the text was made.

    The forms on a page hold a token of the reader's cookie: a text is made with `mark` in its place.
    """

    def __init__(self, db: Database) -> None:
        self.db, self.mark = db, f"token-{secrets.token_hex(16)}"
        self._texts: dict[Key, tuple[int | str, int, str]] = {}
        self._pieces: dict[Key, Markup] = {}
        self._lock = threading.Lock()

    def get(self, key: Key, make: Callable[[], str], now: int) -> str:
        """The text of a key; made anew after any change."""
        stamp = self.db.stamp()  # before the text is made: a change meanwhile makes it old at once
        with self._lock:
            found = self._texts.get(key)
        if found is not None and found[0] == stamp and 0 <= now - found[1] < SECONDS:
            return found[2]
        text = make()
        with self._lock:
            self._texts.pop(key, None)
            self._texts[key] = stamp, now, text
            while len(self._texts) > MOST:
                self._texts.pop(next(iter(self._texts)))
        return text

    def piece(self, key: Key, make: Callable[[], str]) -> Markup:
        """A part of a page that depends on its key alone."""
        found = self._pieces.get(key)
        if found is None:
            found = Markup(make())
            with self._lock:
                self._pieces[key] = found
                while len(self._pieces) > MOST_PIECES:
                    self._pieces.pop(next(iter(self._pieces)))
        return found
