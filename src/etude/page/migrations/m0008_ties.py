"""Papers of the same heat: indices in the whole order of a ranking, in the place of those on heat alone."""

import sqlalchemy as sa

COLUMNS = ("heat_12", "heat_72", "heat_720")


def up(connection: sa.Connection) -> None:
    for column in COLUMNS:
        connection.exec_driver_sql(
            f"CREATE INDEX IF NOT EXISTS ix_paper_by_{column} ON paper ({column} DESC, submitted_at DESC, id)"
        )
        connection.exec_driver_sql(f"DROP INDEX IF EXISTS ix_paper_{column}")


def down(connection: sa.Connection) -> None:
    for column in COLUMNS:
        connection.exec_driver_sql(f"CREATE INDEX IF NOT EXISTS ix_paper_{column} ON paper ({column})")
        connection.exec_driver_sql(f"DROP INDEX IF EXISTS ix_paper_by_{column}")
