"""What a paused subscriber asks for waits beside what stands, until it is confirmed."""

import sqlalchemy as sa


def up(connection: sa.Connection) -> None:
    if "wish" not in {c["name"] for c in sa.inspect(connection).get_columns("subscriber")}:
        connection.exec_driver_sql("ALTER TABLE subscriber ADD COLUMN wish JSON")


def down(connection: sa.Connection) -> None:
    connection.exec_driver_sql("ALTER TABLE subscriber DROP COLUMN wish")
