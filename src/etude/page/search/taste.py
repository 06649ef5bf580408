"""What a reader likes, and papers in the order of it: for the page "for you" and for the digest."""

from typing import Any

import numpy as np
import sqlalchemy as sa

from etude.page import tables as t
from etude.page.database import Database
from etude.page.search.for_you import suggest
from etude.page.search.semantic import model_name


def taste(db: Database, account: int) -> tuple[set[int], set[int]]:
    """Papers that somebody voted for or keeps, and those dismissed."""
    liked: set[int] = set()
    for table in (t.vote, t.library):
        liked |= {r["paper_id"] for r in db.rows(sa.select(table.c.paper_id).where(table.c.account_id == account))}
    d = t.dismissal.c
    return liked, {r["paper_id"] for r in db.rows(sa.select(d.paper_id).where(d.account_id == account))} - liked


class Shelf:
    """The vectors of all papers, read once for many readers."""

    def __init__(self, db: Database) -> None:
        self.db = db
        self._read: tuple[np.ndarray, np.ndarray] | None = None

    def vectors(self) -> tuple[np.ndarray, np.ndarray]:
        """Paper ids, shape (n,), and unit vectors, shape (n, d)."""
        if self._read is None:
            v = t.vector.c
            rows = self.db.rows(sa.select(v.paper_id, v.f16).where(v.model == model_name()).order_by(v.paper_id))
            ids = np.array([r["paper_id"] for r in rows], np.int64)
            half = np.frombuffer(b"".join(r["f16"] for r in rows), np.float16)
            self._read = ids, half.reshape(len(rows), -1) if rows else half.reshape(0, 0)
        return self._read

    def in_order(self, rows: list[dict[str, Any]], account: int) -> list[dict[str, Any]]:
        """Papers as a reader might like them: not those known or dismissed; by heat where nothing can be said."""
        liked, dismissed = taste(self.db, account)
        left = [r for r in rows if r["id"] not in liked | dismissed]
        ids, vectors = self.vectors()
        if len(ids) == 0:
            return left
        order = {s.paper_id: i for i, s in enumerate(suggest(ids, vectors, liked, dismissed, k=len(ids)))}
        return sorted(left, key=lambda r: order.get(r["id"], len(order)))
