"""The page with 50,000 papers: how long its answers take on the server, and how fast papers come in.

The papers are made up: words of a Zipf law in topics, abstracts of about 160 words, as arXiv Atom in feeds of 2,000
entries (arXiv's own page size). They are imported the way `etude import` does it. Server time is what passes inside
the application from the request's arrival to the last byte of the answer, over distinct requests; a list is "fresh"
when something was written since it was last made, "kept" when nothing was. Vectors of papers are noise about topics,
since only their number matters for the time; the query's own vector is made by the model. Load: `etude serve` as a
process of its own, 50 clients on kept-alive connections, one request after another each.
"""

import asyncio
import functools
import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode
from urllib.request import urlopen

import numpy as np
import sqlalchemy as sa

from etude.data.randomness import numpy_stream
from etude.lab.bench import Case, Figure, scratch_folder

PAPERS, FEED = 50_000, 2_000
CLIENTS, SECONDS = 50, 6.0
NOW = 1_790_000_000
TOPICS, WORDS = 250, 30_000


class Made:
    """Papers of a Zipf vocabulary; each has a topic, from which half of its words come."""

    def __init__(self, seed: int = 0) -> None:
        g = numpy_stream(seed, "front-door", "words")
        parts = np.array([a + b for a in "bcdfghlmnprstv" for b in ("a", "e", "i", "o", "u", "al", "en", "or", "is")])
        drawn = g.integers(0, len(parts), (2 * WORDS, 3))
        names = ["".join(parts[row[: 2 + i % 2]]) for i, row in enumerate(drawn)]
        self.words = np.array(list(dict.fromkeys(names))[:WORDS])
        n = len(self.words)
        self.zipf = np.cumsum(1.0 / np.arange(1, n + 1) ** 1.05)
        self.zipf /= self.zipf[-1]
        self.own = g.integers(200, n, (TOPICS, 120))
        self.g = g

    def text(self, topic: int, length: int) -> list[str]:
        common = np.searchsorted(self.zipf, self.g.random(length))
        special = self.own[topic, (120 * self.g.random(length) ** 2).astype(int)]
        return self.words[np.where(self.g.random(length) < 0.5, common, special)].tolist()

    def paper(self, i: int) -> tuple[str, str, int]:
        """Title, abstract and topic."""
        topic = i % TOPICS
        title = " ".join(self.text(topic, int(self.g.integers(5, 13)))).capitalize()
        lengths = self.g.integers(12, 30, int(self.g.integers(5, 12)))
        return title, " ".join(" ".join(self.text(topic, int(k))).capitalize() + "." for k in lengths), topic


def atom(made: Made, first: int, count: int) -> str:
    """A feed of made-up papers as arXiv writes it."""
    out = []
    for i in range(first, first + count):
        title, abstract, topic = made.paper(i)
        day = f"20{10 + i % 16:02d}-{1 + i % 12:02d}-{1 + i % 28:02d}T10:00:00Z"
        names = "".join(f"<author><name>{w.capitalize()} {w[::-1].capitalize()}</name></author>" for w in
                        made.words[[i % 5000, (7 * i) % 5000, (11 * i) % 5000]])  # fmt: skip
        out.append(
            f"<entry><id>http://arxiv.org/abs/{10 + i // 90_000:02d}{1 + i % 12:02d}.{10_000 + i // 12:05d}v1</id>"
            f"<updated>{day}</updated><published>{day}</published><title>{title}</title>"
            f"<summary>  {abstract}\n</summary>"
            f'{names}<category term="cs.T{topic % 40}"/><category term="stat.ML"/></entry>'
        )
    return f'<feed xmlns="http://www.w3.org/2005/Atom">{"".join(out)}</feed>'


@functools.cache
def imported() -> float:
    """Import all papers; entries a second: reading, matching, storing and indexing the words."""
    from etude.page import store
    from etude.page.database import Database
    from etude.page.importers import read
    from etude.page.search.lexical import index_matches

    made, db, spent = Made(), Database(scratch_folder() / "page.sqlite"), 0.0
    for first in range(0, PAPERS, FEED):
        raw = atom(made, first, FEED).encode()
        start = time.perf_counter()
        reading = read(raw, now=NOW)
        matches = store.add_all(db, reading.records, source=reading.format, now=NOW, after=index_matches)
        spent += time.perf_counter() - start
        assert sum(m.status == "new" for m in matches) == FEED, "every entry is a paper of its own"
    db.close()
    return PAPERS / spent


class App:
    """The application called as a server calls it, with a clock that moves on so that no rate limit is met."""

    def __init__(self) -> None:
        from etude.page.settings import Settings
        from etude.page.web.app import create_app

        imported()
        self.now = float(NOW + 3600)
        settings = Settings(
            database=str(scratch_folder() / "page.sqlite"), secret="x" * 40, mail_folder=str(scratch_folder() / "mail")
        )
        self.app = create_app(settings, clock=lambda: self.now)
        self.cookie = "c" * 43
        self.loop = asyncio.new_event_loop()
        self.slugs = [r["slug"] for r in self.site.db.rows(sa.text("SELECT slug FROM paper ORDER BY id LIMIT 4000"))]
        from etude.page.security import keyed_hash

        self.csrf = keyed_hash("x" * 40, "csrf", self.cookie)

    @property
    def site(self) -> Any:
        return self.app.state.site

    def call(
        self, method: str, path: str, form: dict[str, str] | None = None, *, later: float = 40.0
    ) -> tuple[float, bytes]:
        """Seconds and the body of an answer, which must be 200; the clock is moved on before."""
        self.now += later
        body = urlencode(form or {}).encode()
        where, _, query = path.partition("?")
        headers = [(b"host", b"127.0.0.1:8000"), (b"cookie", f"etude={self.cookie}".encode()), (b"hx-request", b"true"),
                   (b"accept-encoding", b"gzip"), (b"content-type", b"application/x-www-form-urlencoded"),
                   (b"content-length", str(len(body)).encode())]  # fmt: skip
        scope = {"type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "path": where,
                 "raw_path": where.encode(), "query_string": query.encode(), "headers": headers, "scheme": "http",
                 "root_path": "", "client": ("127.0.0.1", 5000), "server": ("127.0.0.1", 8000)}  # fmt: skip
        parts: list[bytes] = []
        status: list[int] = []

        async def one() -> float:
            async def receive() -> dict[str, Any]:
                return {"type": "http.request", "body": body, "more_body": False}

            async def send(message: dict[str, Any]) -> None:
                if message["type"] == "http.response.start":
                    status.append(message["status"])
                else:
                    parts.append(message.get("body", b""))

            start = time.perf_counter()
            await self.app(scope, receive, send)
            return time.perf_counter() - start

        spent = self.loop.run_until_complete(one())
        assert status == [200], f"{method} {path} answered {status}"
        return spent, b"".join(parts)

    def touch(self) -> None:
        """Write something, so that no list of before may be shown again."""
        from etude.page import store

        self.now += 40.0
        paper = 1 + int(self.now) % PAPERS
        store.set_vote(self.site.db, paper, self.site.me()["id"], True, now=int(self.now))


@functools.cache
def app() -> App:
    return App()


def middle(call: Callable[[int], float], times: int) -> float:
    """Median over calls, in milliseconds, after three that warm up."""
    for i in range(3):
        call(times + i)
    return 1000 * statistics.median(call(i) for i in range(times))


def fresh(path: str, times: int = 15) -> float:
    def one(i: int) -> float:
        app().touch()
        return app().call("GET", path)[0]

    return middle(one, times)


def kept(path: str, times: int = 40) -> float:
    return middle(lambda i: app().call("GET", path, later=0.0)[0], times)


def vote() -> float:
    a = app()
    form = {"csrf": a.csrf, "wanted": "true", "next": "/"}
    return middle(lambda i: a.call("POST", f"/vote/{a.slugs[(37 * i + int(a.now)) % len(a.slugs)]}", form)[0], 40)


def paper_page() -> float:
    a = app()
    return middle(lambda i: a.call("GET", f"/paper/{a.slugs[31 * i]}")[0], 15)


@functools.cache
def vectors() -> bool:
    """Vectors for all papers, and the model of the query loaded; False where the extra `hf` is not installed."""
    from etude.page.search.semantic import store_vectors

    db = app().site.db
    g = numpy_stream(0, "front-door", "vectors")
    centres = g.standard_normal((TOPICS, 384)).astype(np.float32)
    ids = [r["id"] for r in db.rows(sa.text("SELECT id FROM paper ORDER BY id"))]
    x = centres[np.arange(len(ids)) % TOPICS] + g.standard_normal((len(ids), 384)).astype(np.float32)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    half = x.astype(np.float16)
    with db.begin() as c:
        store_vectors(c, [{"paper_id": i, "digest": "0" * 64, "f16": v.tobytes()} for i, v in zip(ids, half)])
    app().site.meaning.refresh()
    until = time.monotonic() + 120
    while not app().site.meaning.ready:
        if app().site.meaning.problem or time.monotonic() > until:
            return False
        time.sleep(0.05)
    return True


def hybrid() -> float:
    assert vectors(), app().site.meaning.problem
    made = Made(1)

    def one(i: int) -> float:
        words = made.text(int(made.g.integers(TOPICS)), 2 + i % 3)
        return app().call("GET", f"/search?q={quote(' '.join(words))}")[0]

    return middle(one, 25)


# --- a server of its own under load --------------------------------------------------------------------------------


async def _client(port: int, path: str, until: float, out: list[float], bad: list[str]) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    ask = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nAccept-Encoding: gzip\r\nCookie: etude={'d' * 43}\r\n\r\n"
    while time.perf_counter() < until:
        start = time.perf_counter()
        writer.write(ask.encode())
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(int(h.split(b":")[1]) for h in head.lower().split(b"\r\n") if h.startswith(b"content-length"))
        await reader.readexactly(length)
        if not head.startswith(b"HTTP/1.1 200"):
            bad.append(head[:40].decode())
        out.append(time.perf_counter() - start)
    writer.close()


@contextmanager
def serving() -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """`etude serve` on the papers, and its port, from when it answers on."""
    imported()
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    command = [sys.executable, "-m", "etude.cli", "serve", "--port", str(port), "--workers", "0", "--ledger",
               str(scratch_folder() / "page.sqlite")]  # fmt: skip
    server = subprocess.Popen(command, cwd=scratch_folder(), env=os.environ | {"OMP_NUM_THREADS": "1"})
    try:
        until = time.monotonic() + 60
        while True:
            try:
                urlopen(f"http://127.0.0.1:{port}/about", timeout=10)
                break
            except OSError:
                if time.monotonic() > until or server.poll() is not None:
                    raise
                time.sleep(0.1)
        yield server, port
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(30)


@functools.cache
def load() -> dict[str, float]:
    """50 clients at once on the first page: requests a second, errors, the slowest hundredth."""
    spent: list[float] = []
    bad: list[str] = []
    with serving() as (_, port):

        async def all_clients(seconds: float) -> None:
            until = time.perf_counter() + seconds
            paths = ["/", "/?sort=new", "/?sort=hot", "/?room=trust", "/?window=week"]
            await asyncio.gather(*(_client(port, paths[i % len(paths)], until, spent, bad) for i in range(CLIENTS)))

        asyncio.run(all_clients(1.0))
        spent.clear()
        start = time.perf_counter()
        asyncio.run(all_clients(SECONDS))
        took = time.perf_counter() - start
    return {"rate": len(spent) / took, "errors": float(len(bad)), "slow": 1000 * float(np.quantile(spent, 0.99))}


def memory() -> float:
    """The most that the server's process held, in MB, after searches by meaning, lists, papers and the feed."""
    assert vectors(), app().site.meaning.problem
    made = Made(2)
    words = [quote(" ".join(made.text(i, 3 + i % 20))) for i in range(40)]
    with serving() as (server, port):

        def get(path: str) -> str:
            return urlopen(f"http://127.0.0.1:{port}{path}", timeout=60).read().decode()  # type: ignore[no-any-return]

        until = time.monotonic() + 120
        while "similar meaning" not in get(f"/search?q={words[0]}"):
            if time.monotonic() > until:
                raise TimeoutError("the server does not search by meaning")
            time.sleep(1.0)
        for path in (*(f"/search?q={w}" for w in words), *(f"/paper/{s}" for s in app().slugs[:20]), "/", "/feed.atom"):
            get(path)
        status = Path(f"/proc/{server.pid}/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status).group(1)) / 1024  # type: ignore[union-attr]


def cases() -> list[Case | Figure]:
    """Figures of the page at 50,000 papers."""
    from importlib.util import find_spec

    if find_spec("fastapi") is None:
        return []
    out: list[Case | Figure] = [
        Figure("import of Atom entries", imported, "entries/s", 2000, at_most=False, once=True,
               note=f"{PAPERS:,} in feeds of {FEED:,}, with the index of words"),
        Figure("home page, fresh", lambda: fresh("/"), "ms", 10, note="50,000 papers"),
        Figure("home page, kept", lambda: kept("/"), "ms", 10),
        Figure("list of a room and year, fresh", lambda: fresh("/?room=trust&year=2019"), "ms", note="no such paper"),
        Figure("list of a tag, fresh", lambda: fresh("/?tag=cs.t7&sort=new"), "ms"),
        Figure("vote", vote, "ms", 5, note="to the disk, with the row's new button"),
        Figure("page of a paper", paper_page, "ms"),
        Figure("list under load", lambda: load()["rate"], "requests/s", 200, at_most=False, once=True,
               note=f"{CLIENTS} clients, five lists"),
        Figure("errors under load", lambda: load()["errors"], "errors", 0, once=True),
        Figure("slowest hundredth under load", lambda: load()["slow"], "ms", once=True),
    ]  # fmt: skip
    if find_spec("transformers") is not None:
        out.append(Figure("hybrid search", hybrid, "ms", 60, note="50,000 papers, the query embedded"))
        out.append(Figure("highest memory of the server", memory, "MB", 600, once=True,
                          note="50,000 papers, after searches by meaning"))  # fmt: skip
    return out
