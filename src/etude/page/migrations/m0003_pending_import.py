"""Imports that wait for their confirmation."""

import sqlalchemy as sa

from etude.page.tables import pending_import


def up(connection: sa.Connection) -> None:
    pending_import.create(connection, checkfirst=True)


def down(connection: sa.Connection) -> None:
    pending_import.drop(connection, checkfirst=True)
