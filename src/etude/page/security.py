"""Tokens, keyed hashes, safe redirects, rate limits, network prefixes: the small guards, one function each."""

import hashlib
import hmac
import ipaddress
import secrets
from collections.abc import Collection
from urllib.parse import unquote

import sqlalchemy as sa

from etude.errors import EtudeError
from etude.page import tables as t

TOKEN_BYTES = 32
LIMITS = {  # key: (times, seconds); "login" is of a network, which many share, "signup" of one address
    "login": (60, 3600), "signup": (5, 3600), "subscribe": (10, 3600), "submit": (10, 86_400), "vote": (120, 3600),
    "search": (60, 60), "note": (30, 86_400), "import": (30, 3600), "run": (30, 3600), "resend": (3, 86_400),
    "token": (20, 86_400), "edit": (60, 3600),
}  # fmt: skip


class TooMany(EtudeError):
    """A rate limit is reached; `retry_after` says when to come back, in seconds."""

    def __init__(self, what: str, retry_after: int) -> None:
        super().__init__(f"too many requests ({what}): try again in {retry_after} s")
        self.retry_after = retry_after


def new_token() -> str:
    """A fresh secret of 256 bits."""
    return secrets.token_urlsafe(TOKEN_BYTES)


def token_hash(token: str) -> str:
    """What is stored of a token: its sha256."""
    return hashlib.sha256(token.encode()).hexdigest()


def keyed_hash(secret: str, purpose: str, value: str) -> str:
    """A hash that only we can compute (for addresses and unsubscribe tokens)."""
    return hmac.new(f"{purpose}:{secret}".encode(), value.encode(), hashlib.sha256).hexdigest()


def same(a: str, b: str) -> bool:
    """Comparison in constant time."""
    return hmac.compare_digest(a.encode(), b.encode())


def safe_next(target: str | None, default: str = "/") -> str:
    """A path on this site, or the default: never an address elsewhere."""
    value = target or ""
    for _ in range(3):  # encoded slashes too
        if any(ord(ch) < 32 or ch in "\\\x7f" for ch in value) or not value.startswith("/") or value.startswith("//"):
            return default
        value = unquote(value)
    return target or default


def _unmapped(address: str) -> str:
    """``::ffff:192.0.2.1``, as a socket for IPv4 and IPv6 names an IPv4 address, in that address's own form."""
    return address[7:] if address.lower().startswith("::ffff:") and "." in address else address


def network_prefix(address: str) -> str:
    """The /24 of an IPv4 address, also of one written as IPv6; the /48 of an IPv6 address; anything else as it is."""
    try:
        ip = ipaddress.ip_address(_unmapped(address))
    except ValueError:
        return address[:40]
    return str(ipaddress.ip_network(f"{ip}/{24 if ip.version == 4 else 48}", strict=False))


def client_address(peer: str, forwarded: str | None, trusted: Collection[str]) -> str:
    """The reader's address: X-Forwarded-For counts only from a trusted proxy, and only its last foreign entry."""
    peer = _unmapped(peer)
    if peer not in trusted or not forwarded:
        return peer
    for entry in reversed([e.strip() for e in forwarded.split(",")]):
        if entry not in trusted:
            return entry
    return peer


# Built once: to build them costs more than to run them.
_USED = sa.select(t.rate.c.at).where(t.rate.c.key == sa.bindparam("who")).order_by(t.rate.c.at)
_USE = sa.insert(t.rate)


def limit(c: sa.Connection, what: str, who: str, now: int) -> None:
    """Count one use of `what` by `who`.

    Raises
    ------
    TooMany
        If the limit of the window is reached; the use is not counted then.
    """
    times, seconds = LIMITS[what]
    key, r = f"{what}:{who}"[:120], t.rate.c
    known = list(c.execute(_USED, {"who": key}).scalars())
    used = [at for at in known if at > now - seconds]
    if len(used) < len(known):
        c.execute(sa.delete(t.rate).where(r.key == key, r.at <= now - seconds))
    if len(used) >= times:
        raise TooMany(what, max(1, used[0] + seconds - now))
    c.execute(_USE, {"key": key, "at": now})
