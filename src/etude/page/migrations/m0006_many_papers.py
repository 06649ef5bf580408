"""For very many papers: indices that lists need and none that repeat a key, vectors with the order they came in."""

import sqlalchemy as sa

# Their column comes first in the primary key already.
REPEATED = (
    ("paper_version", "paper_id"), ("paper_tag", "paper_id"), ("vote", "paper_id"), ("library", "paper_id"),
    ("dismissal", "paper_id"), ("sent", "subscriber_id"), ("sent_item", "subscriber_id"),
)  # fmt: skip
COLUMNS = {"version": "INTEGER DEFAULT 1 NOT NULL", "n": "BIGINT DEFAULT 0 NOT NULL"}
NEW = ("ix_paper_pinned", "ix_paper_hidden", "ix_paper_edited", "ix_vector_n")
WORDS_IN_MEMORY = 8_000_000  # bytes of new words before FTS5 writes them; its own 1 MB makes imports slower


def up(connection: sa.Connection) -> None:
    sqlite = connection.dialect.name == "sqlite"
    there = {c["name"] for c in sa.inspect(connection).get_columns("vector")}
    for name, kind in COLUMNS.items():
        if name not in there:
            connection.exec_driver_sql(f"ALTER TABLE vector ADD COLUMN {name} {kind}")
    for table, column in REPEATED:
        connection.exec_driver_sql(f"DROP INDEX IF EXISTS ix_{table}_{column}")
    for flag in ("pinned", "hidden"):
        only = f"{flag} = 1" if sqlite else flag
        connection.exec_driver_sql(f"CREATE INDEX IF NOT EXISTS ix_paper_{flag} ON paper ({flag}) WHERE {only}")
    connection.exec_driver_sql("CREATE INDEX IF NOT EXISTS ix_paper_edited ON paper (version) WHERE version > 1")
    connection.exec_driver_sql("CREATE INDEX IF NOT EXISTS ix_vector_n ON vector (n)")
    if sqlite:
        connection.exec_driver_sql(f"INSERT INTO fts(fts, rank) VALUES ('hashsize', {WORDS_IN_MEMORY})")


def down(connection: sa.Connection) -> None:
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql("INSERT INTO fts(fts, rank) VALUES ('hashsize', 1048576)")
    for name in NEW:
        connection.exec_driver_sql(f"DROP INDEX IF EXISTS {name}")
    for table, column in REPEATED:
        connection.exec_driver_sql(f"CREATE INDEX IF NOT EXISTS ix_{table}_{column} ON {table} ({column})")
    for name in COLUMNS:
        connection.exec_driver_sql(f"ALTER TABLE vector DROP COLUMN {name}")
