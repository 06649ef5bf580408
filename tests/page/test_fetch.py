"""Fetching: off by default, a fixed list of hosts, pauses, few tries, no redirects; against a server on this machine.

Guard 9 of the page's security list (requests to others): every test here fails without its part of it.
"""

import http.client
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from urllib.parse import parse_qs, urlsplit

import pytest

pytest.importorskip("defusedxml", reason="the extra web is not installed")

from etude.errors import SourceUnavailable, UsageError
from etude.page import fetch, upkeep
from etude.page.fetch import PAUSE, TRIES, Fetcher, arxiv, readme_holds

ENTRY = (
    "<entry><id>http://arxiv.org/abs/2301.{n:05d}v1</id><title>Paper number {n}</title><summary>About {n}.</summary>"
    "<published>2023-01-01T00:00:00Z</published><author><name>Ann</name></author></entry>"
)
FEED = '<feed xmlns="http://www.w3.org/2005/Atom">{}</feed>'


class Clock:
    def __init__(self):
        self.now, self.slept = 0.0, []

    def __call__(self):
        return self.now

    def sleep(self, seconds):
        self.slept.append(seconds)
        self.now += seconds


@pytest.fixture
def host():
    """A server whose `answers` are given out in turn; None: closes the connection without one."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            asked.append(self.path)
            answer = server.answers.pop(0) if server.answers else (404, b"", {})
            if answer is None:
                self.close_connection = True
                return
            status, body, headers = answer
            self.send_response(status)
            for name, value in ({"Content-Length": str(len(body))} | headers).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    server.answers, server.asked, server.opened = [], asked, 0
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def fetcher(host):
    clock = Clock()

    def connect(name, timeout):
        host.opened += 1
        made = http.client.HTTPConnection("127.0.0.1", host.server_port, timeout=5)
        made.connect()
        return made

    made = Fetcher(connect, public=False, clock=clock, sleep=clock.sleep)
    made.clock = clock
    yield made
    made.close()


def feed(numbers):
    return 200, FEED.format("".join(ENTRY.format(n=n) for n in numbers)).encode(), {}


def test_pages_short_pages_and_the_end(host, fetcher):
    """A short page is taken and asked on from where it ended; an empty one ends it; one connection, with pauses."""
    host.answers = [feed(range(5)), feed(range(5, 7)), feed(())]
    found = [
        r.arxiv_id for reading in arxiv("cat:cs.LG", most=20, page=5, fetcher=fetcher, now=1) for r in reading.records
    ]
    assert found == [f"2301.{n:05d}" for n in range(7)]
    starts = [parse_qs(urlsplit(path).query)["start"] for path in host.asked]
    assert starts == [["0"], ["5"], ["7"]]
    assert fetcher.clock.slept == [PAUSE, PAUSE]
    assert host.opened == 1


def test_tries_are_few_and_wait_longer_and_longer(host, fetcher):
    host.answers = [(503, b"", {}), None, (429, b"", {}), feed((1,))]
    assert b"Paper number 1" in fetcher.get("export.arxiv.org", "/api/query")
    assert fetcher.clock.slept == [2 * PAUSE, 4 * PAUSE, 8 * PAUSE]
    host.answers = [(500, b"", {})] * 20
    with pytest.raises(SourceUnavailable, match="status 500"):
        fetcher.get("export.arxiv.org", "/api/query")
    assert len(host.asked) == 4 + TRIES


def test_no_redirect_is_followed(host, fetcher):
    host.answers = [(302, b"", {"Location": "http://169.254.169.254/secrets"})]
    with pytest.raises(SourceUnavailable, match="status 302"):
        fetcher.get("export.arxiv.org", "/x")
    assert len(host.asked) == 1


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1", "export.arxiv.org.evil.example", "169.254.169.254", ""])
def test_only_hosts_of_the_list(host, fetcher, name):
    with pytest.raises(UsageError, match="never asked"):
        fetcher.get(name, "/")
    assert host.opened == 0


def test_a_private_address_is_not_asked(host):
    """A host of the list whose name was turned to this machine."""
    clock = Clock()

    def connect(name, timeout):
        made = http.client.HTTPConnection("127.0.0.1", host.server_port, timeout=5)
        made.connect()
        return made

    with pytest.raises(SourceUnavailable, match="private address"):
        Fetcher(connect, clock=clock, sleep=clock.sleep).get("export.arxiv.org", "/")
    assert host.asked == []


def test_off_unless_switched_on(monkeypatch, tmp_path):
    monkeypatch.delenv("ETUDE_FETCH", raising=False)
    assert not fetch.allowed()
    with pytest.raises(UsageError, match="ETUDE_FETCH=1"):
        upkeep.fetch("cat:cs.LG", ledger=str(tmp_path / "p.sqlite"))


@pytest.mark.parametrize(("query", "most", "page"), [("", 10, 10), ("x", 0, 10), ("x", 30_001, 10), ("x", 10, 2001)])
def test_sizes(fetcher, query, most, page):
    with pytest.raises(UsageError):
        next(arxiv(query, most=most, page=page, fetcher=fetcher, now=1))


def test_a_token_in_a_readme(host, fetcher):
    host.answers = [(200, b"# Code\n\netude-author-abc\n", {}), (200, b"# Code", {}), (404, b"", {})]
    assert readme_holds("https://github.com/ann/code.git", "etude-author-abc", fetcher)
    assert host.asked == ["/ann/code/HEAD/README.md"]
    assert not readme_holds("https://github.com/ann/code", "etude-author-abc", fetcher)
    assert not readme_holds("https://github.com/ann/code", "etude-author-abc", fetcher)
    assert not readme_holds("https://evil.example/ann/code", "etude-author-abc", fetcher)
    assert len(host.asked) == 3
