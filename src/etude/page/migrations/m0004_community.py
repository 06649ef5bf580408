"""Sessions remember the token that they had before, for the seconds in which two requests cross."""

import sqlalchemy as sa

COLUMNS = {"previous_hash": "VARCHAR(64)", "rotated_at": "BIGINT"}
INDEX = "ix_session_previous_hash"


def up(connection: sa.Connection) -> None:
    there = {c["name"] for c in sa.inspect(connection).get_columns("session")}
    for name, kind in COLUMNS.items():
        if name not in there:
            connection.exec_driver_sql(f"ALTER TABLE session ADD COLUMN {name} {kind}")
    connection.exec_driver_sql(f"CREATE INDEX IF NOT EXISTS {INDEX} ON session (previous_hash)")


def down(connection: sa.Connection) -> None:
    connection.exec_driver_sql(f"DROP INDEX IF EXISTS {INDEX}")
    for name in COLUMNS:
        connection.exec_driver_sql(f"ALTER TABLE session DROP COLUMN {name}")
