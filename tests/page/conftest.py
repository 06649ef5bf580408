"""A page database on SQLite and, where a server is given, on PostgreSQL; a clock that stands still."""

import os

import pytest
import sqlalchemy as sa

NOW = 1_790_000_000  # 2026-09-21


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request, tmp_path):
    from etude.page.database import Database

    if request.param == "sqlite":
        made = Database(tmp_path / "page.sqlite")
        yield made
        made.close()
        return
    url = os.environ.get("ETUDE_TEST_POSTGRES")
    if not url:
        pytest.skip("optional: needs ETUDE_TEST_POSTGRES, a database URL")
    schema = f"t{os.getpid()}"
    admin = sa.create_engine(url)
    with admin.begin() as c:
        c.exec_driver_sql(f"DROP SCHEMA IF EXISTS {schema} CASCADE")
        c.exec_driver_sql(f"CREATE SCHEMA {schema}")
    made = Database(f"{url}{'&' if '?' in url else '?'}options=-csearch_path%3D{schema}")
    yield made
    made.close()
    with admin.begin() as c:
        c.exec_driver_sql(f"DROP SCHEMA {schema} CASCADE")
    admin.dispose()


@pytest.fixture
def now():
    return NOW
