"""Page databases on SQLite and PostgreSQL; `etude serve` as a process of its own; headless Chromium."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request

import pytest
import sqlalchemy as sa

NOW = 1_790_000_000  # 2026-09-21
PATIENCE = 120  # seconds: a loaded machine may need many to import and start


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Server:
    """A page in a folder; its worker and their children are one process group with it."""

    def __init__(self, folder, workers=1, *more):
        self.folder, self.port, self.more = folder, free_port(), ["--workers", str(workers), *more]
        self.url = f"http://127.0.0.1:{self.port}"
        self.process = None

    def start(self):
        command = [sys.executable, "-m", "etude.cli", "serve", "--port", str(self.port), *self.more]
        env = os.environ | {"OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(command, cwd=self.folder, env=env, start_new_session=True)
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            if self.process.poll() is not None:
                raise AssertionError(f"the server ended with {self.process.returncode} instead of starting")
            try:
                urllib.request.urlopen(f"{self.url}/about", timeout=10)
                return self
            except OSError:
                time.sleep(0.1)
        raise AssertionError(f"the server did not answer within {PATIENCE} s")

    def stop(self, how=signal.SIGTERM, *, alone=False):
        """End it: the whole group, or the server process alone."""
        if self.process is not None:
            if alone:
                os.kill(self.process.pid, how)
            else:
                os.killpg(self.process.pid, how)
            self.process.wait(timeout=60)
            self.process = None


@pytest.fixture(scope="session", autouse=True)
def catalogue_page(tmp_path_factory):
    """A page's database with the catalogue in it, made once; tests begin with a copy of `ETUDE_TEST_PAGE`."""
    from etude.lab.ledger import Ledger
    from etude.lab.queue import Queue
    from etude.page.database import Database
    from etude.page.sync import sync_catalogue

    path = tmp_path_factory.mktemp("catalogue") / "page.sqlite"
    ledger, db = Ledger(str(path)), Database(path)
    Queue(ledger)
    sync_catalogue(db, NOW)
    with db.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as c:
        c.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
    db.close()
    before = os.environ.get("ETUDE_TEST_PAGE")
    os.environ["ETUDE_TEST_PAGE"] = str(path)
    yield path
    if before is None:
        del os.environ["ETUDE_TEST_PAGE"]


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


@pytest.fixture(scope="session")
def make_server():
    """The class of servers, for tests that start one of their own."""
    return Server


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    pytest.importorskip("uvicorn", reason="the extra web is not installed")
    made = Server(tmp_path_factory.mktemp("site")).start()
    yield made
    made.stop()


@pytest.fixture(scope="module", autouse=True)
def no_model_loads_into_the_next_file():
    """Loading a model changes how torch initialises modules meanwhile, so the next file's tests wait for it."""
    yield
    for thread in threading.enumerate():
        if thread.name == "etude-meaning":
            thread.join(60)


@pytest.fixture
def tab(browser, server):
    """A page of the module's server. Test 15 of every test that uses it: no error, no request to another host."""
    context = browser.new_context(base_url=server.url)
    page = context.new_page()
    problems, foreign = [], []
    page.on("console", lambda m: problems.append(m.text) if m.type == "error" else None)
    page.on("pageerror", lambda e: problems.append(str(e)))
    page.on("request", lambda r: foreign.append(r.url) if not r.url.startswith(server.url) else None)
    page.on("dialog", lambda d: problems.append(f"dialog {d.message}"))
    yield page
    context.close()
    assert foreign == []
    assert [p for p in problems if "status of 4" not in p] == []
