"""Following authors, rooms and tags; the language of a subscriber's mails; answers of other hosts that are kept."""

import sqlalchemy as sa

from etude.page.tables import enriched, follow


def up(connection: sa.Connection) -> None:
    follow.create(connection, checkfirst=True)
    enriched.create(connection, checkfirst=True)
    if "language" not in {c["name"] for c in sa.inspect(connection).get_columns("subscriber")}:
        connection.exec_driver_sql("ALTER TABLE subscriber ADD COLUMN language VARCHAR(8) DEFAULT 'en' NOT NULL")


def down(connection: sa.Connection) -> None:
    connection.exec_driver_sql("ALTER TABLE subscriber DROP COLUMN language")
    enriched.drop(connection, checkfirst=True)
    follow.drop(connection, checkfirst=True)
