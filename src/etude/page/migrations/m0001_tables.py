"""All tables of the first version."""

import sqlalchemy as sa

from etude.page.tables import meta


def up(connection: sa.Connection) -> None:
    meta.create_all(connection)


def down(connection: sa.Connection) -> None:
    meta.drop_all(connection)
