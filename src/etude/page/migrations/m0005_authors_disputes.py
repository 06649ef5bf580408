"""Notes that dispute a verdict; people who say that a paper is theirs."""

import sqlalchemy as sa

from etude.page.tables import authorship


def up(connection: sa.Connection) -> None:
    if "kind" not in {c["name"] for c in sa.inspect(connection).get_columns("note")}:
        connection.exec_driver_sql("ALTER TABLE note ADD COLUMN kind VARCHAR(12) DEFAULT 'note' NOT NULL")
    authorship.create(connection, checkfirst=True)


def down(connection: sa.Connection) -> None:
    authorship.drop(connection, checkfirst=True)
    connection.exec_driver_sql("ALTER TABLE note DROP COLUMN kind")
