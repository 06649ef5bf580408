"""The page's only requests to other hosts: off unless `ETUDE_FETCH=1`, and polite.

A fixed list of hosts, no redirects, no private addresses, one connection, a pause between requests, few tries with
growing waits, bounded answers.
"""

import http.client
import ipaddress
import os
import re
import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

from etude.errors import DataError, SourceUnavailable, UsageError
from etude.page.importers.reading import MAX_BYTES, Reading

PAUSE, TIMEOUT, TRIES = 3.0, 60.0, 5
# Hosts that may be asked, and the pause between two requests to each: as slow as the slowest limit that they state.
HOSTS = {
    "export.arxiv.org": PAUSE, "raw.githubusercontent.com": PAUSE, "api.openalex.org": 1.0,
    "api.semanticscholar.org": PAUSE, "api.github.com": 60.0,
}  # fmt: skip
MAX_PAGE, MAX_QUERY = 2000, 30_000
Connect = Callable[[str, float], http.client.HTTPConnection]


def allowed() -> bool:
    """Whether this page may fetch at all."""
    return os.environ.get("ETUDE_FETCH") == "1"


def _connect(host: str, timeout: float) -> http.client.HTTPConnection:
    connection = http.client.HTTPSConnection(host, timeout=timeout)
    connection.connect()
    return connection


class Fetcher:
    """One connection at a time, with pauses.

    Parameters
    ----------
    connect
        Opens a connection to a host; None: HTTPS.
    public
        True refuses a host whose address turns out to be private.
    """

    def __init__(
        self, connect: Connect | None = None, *, public: bool = True, timeout: float = TIMEOUT,
        clock: Callable[[], float] = time.monotonic, sleep: Callable[[float], None] = time.sleep,
    ) -> None:  # fmt: skip
        self._connect, self._public, self._timeout = connect or _connect, public, timeout
        self._clock, self._sleep = clock, sleep
        self._last: dict[str, float] = {}
        self._open: tuple[str, http.client.HTTPConnection] | None = None

    def get(self, host: str, path: str) -> bytes:
        """The body at an address.

        Raises
        ------
        UsageError
            For a host that is not on the list.
        SourceUnavailable
            If the host does not answer after five tries, sends elsewhere, or has a private address.
        """
        return self._ask(host, path, None)

    def post(self, host: str, path: str, body: bytes) -> bytes:
        """The answer to some JSON; raises what `get` raises."""
        return self._ask(host, path, body)

    def _ask(self, host: str, path: str, sent: bytes | None) -> bytes:
        if host not in HOSTS:
            raise UsageError(f"{host[:80]!r} is never asked: only {', '.join(HOSTS)}")
        problem = ""
        for attempt in range(TRIES):
            self._wait(host, HOSTS[host] * 2**attempt if attempt else HOSTS[host])
            try:
                status, body = self._once(host, path, sent)
            except (OSError, http.client.HTTPException) as error:
                self.close()
                problem = str(error) or type(error).__name__
                continue
            if status == 200:
                return body
            problem = f"status {status}"
            if status != 429 and status < 500:
                break
        raise SourceUnavailable(f"{host} did not give {path[:120]}: {problem}")

    def _wait(self, host: str, pause: float) -> None:
        if host in self._last:
            left = self._last[host] + pause - self._clock()
            if left > 0:
                self._sleep(left)
        self._last[host] = self._clock()

    def _once(self, host: str, path: str, sent: bytes | None) -> tuple[int, bytes]:
        if self._open is None or self._open[0] != host:
            self.close()
            made = self._connect(host, self._timeout)
            self._open = (host, made)
            peer = made.sock.getpeername()[0] if made.sock else ""
            if self._public and not ipaddress.ip_address(peer.split("%")[0]).is_global:
                self.close()
                raise SourceUnavailable(f"{host} has the private address {peer}: not asked")
        connection = self._open[1]
        headers = {"User-Agent": "etude (a self-hosted page of papers)"}
        if sent is not None:
            headers["Content-Type"] = "application/json"
        connection.request("GET" if sent is None else "POST", path, body=sent, headers=headers)
        answer = connection.getresponse()
        body = answer.read(MAX_BYTES + 1)
        if len(body) > MAX_BYTES:
            raise DataError(f"{host} sent more than 64 MiB: ask for less")
        return answer.status, body

    def close(self) -> None:
        if self._open is not None:
            self._open[1].close()
            self._open = None


def arxiv(query: str, *, most: int = 200, page: int = 200, fetcher: Fetcher | None = None, now: int) -> Iterator[Any]:
    """The newest papers of an arXiv query ("cat:cs.LG AND ti:pruning"), one `Reading` a page.

    A page shorter than asked for is taken as it is; the search ends at an empty page, so it always ends.

    Raises
    ------
    UsageError
        For an empty query or sizes beyond arXiv's limits.
    """
    from etude.page.importers.arxiv_atom import parse

    if not query.strip():
        raise UsageError('say what to look for, e.g. "cat:cs.LG AND ti:pruning"')
    if not (1 <= page <= MAX_PAGE and 1 <= most <= MAX_QUERY):
        raise UsageError(f"arXiv gives up to {MAX_QUERY} papers a query, {MAX_PAGE} a page")
    fetcher, start = fetcher or Fetcher(), 0
    try:
        while start < most:
            asked = {"search_query": query, "start": start, "max_results": min(page, most - start),
                     "sortBy": "submittedDate", "sortOrder": "descending"}  # fmt: skip
            raw = fetcher.get("export.arxiv.org", f"/api/query?{urlencode(asked)}")
            reading: Reading = parse(raw.decode("utf-8", errors="replace"), now)
            got = len(reading.records) + len(reading.unreadable)
            if got == 0:
                return
            yield reading
            start += got
    finally:
        fetcher.close()


_REPOSITORY = re.compile(r"/([\w.-]+)/([\w.-]+?)(?:\.git)?(?:/.*)?$")


def repository_of(code_url: str) -> tuple[str, str] | None:
    """Owner and name of a repository on GitHub, fit for an address; None for what is none."""
    parts = urlsplit(code_url)
    match = _REPOSITORY.fullmatch(parts.path)
    if (parts.hostname or "") not in ("github.com", "www.github.com") or match is None:
        return None
    return quote(match.group(1)), quote(match.group(2))


def readme_holds(code_url: str, token: str, fetcher: Fetcher | None = None) -> bool:
    """Whether the README of a repository on GitHub holds a text; False also when it cannot be read."""
    found = repository_of(code_url)
    if found is None:
        return False
    owner, name = found
    fetcher = fetcher or Fetcher(timeout=10.0)
    try:
        return token in fetcher.get("raw.githubusercontent.com", f"/{owner}/{name}/HEAD/README.md").decode(
            "utf-8", "replace"
        )
    except (SourceUnavailable, DataError):
        return False
    finally:
        fetcher.close()
