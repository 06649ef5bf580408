"""Which paper is this? Identifiers in their canonical form, and when two records are the same paper."""

import hashlib
import re
import unicodedata
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

_ARXIV_NEW = r"\d{4}\.\d{4,5}"
_ARXIV_OLD = r"[a-z][a-z-]*(?:\.[A-Za-z]{2})?/\d{7}"
_ARXIV = re.compile(rf"({_ARXIV_NEW}|{_ARXIV_OLD})(?:v(\d+))?$")
_DOI = re.compile(r"(10\.\d{4,9}/\S+)$", re.IGNORECASE)
_ARXIVS_DOI = re.compile(r"(?:doi:\s*)?10\.48550/arxiv\.(.+)", re.IGNORECASE)  # arXiv mints one for every paper
SHINGLE_WORDS = 5
SAME_ABSTRACT = 0.8


class ArxivId(NamedTuple):
    """An arXiv identifier without its version, and the version where one was given."""

    id: str
    version: int | None


def arxiv_id(text: str) -> ArxivId | None:
    """Read ``1706.03762v7``, ``hep-th/9901001v1``, ``arXiv:cs.CL/0001001``, an arXiv address or arXiv's own DOI
    (``10.48550/arXiv.1706.03762``); None for others."""
    value = text.strip()
    minted = _ARXIVS_DOI.fullmatch(_doi_text(value))
    if minted:
        value = minted.group(1)
    elif "//" in value:
        found = re.match(r"/(?:abs|pdf|html|e-print)/(.+?)(?:\.pdf)?/?$", _path_at("arxiv.org", value) or "")
        value = found.group(1) if found else ""
    value = re.sub(r"^arxiv:\s*", "", value, flags=re.IGNORECASE)
    match = _ARXIV.fullmatch(value)
    return ArxivId(match.group(1), int(match.group(2)) if match.group(2) else None) if match else None


def _path_at(host: str, address: str) -> str | None:
    """The path of an address at a host or one of its subdomains; None for other hosts and for no address."""
    try:
        parts = urlsplit(address)
        name = parts.hostname or ""
    except ValueError:  # "http://[x"
        return None
    return parts.path if name == host or name.endswith(f".{host}") else None


def _doi_text(value: str) -> str:
    """What stands behind a doi.org address, nothing for another address; other text as it is."""
    return unquote((_path_at("doi.org", value) or "").lstrip("/")) if "//" in value else value


def doi(text: str) -> str | None:
    """A DOI in lower case, from itself, ``doi:...`` or a doi.org address; None for others."""
    value = _doi_text(text.strip())
    value = re.sub(r"^doi:\s*", "", value, flags=re.IGNORECASE)
    match = _DOI.fullmatch(value)
    return match.group(1).lower().rstrip(".,;") if match else None


def clean(text: str) -> str:
    """NFC, no control characters but newlines, blanks and line ends folded inside paragraphs."""
    text = _printable(text)
    if "\n" not in text:
        return " ".join(text.split())
    return "\n\n".join(" ".join(p.split()) for p in re.split(r"\n\s*\n", text)).strip()


def clean_lines(text: str) -> str:
    """NFC and no control characters, with its lines as they are (for notes)."""
    return _printable(text).strip()


_KEPT = "\n\t\u200c\u200d"  # the joiners belong to words of Persian and of Indian scripts
_ASCII_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")


def _printable(text: str) -> str:
    """NFC, one kind of line end, no control characters; a character is looked up once a text, however often it is."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if text.isascii():
        return _ASCII_CONTROL.sub("", text)
    text = unicodedata.normalize("NFC", text)
    bad = {ord(ch): None for ch in set(text) if ch not in _KEPT and unicodedata.category(ch)[0] == "C"}
    return text.translate(bad) if bad else text


def title_key(title: str) -> str:
    """A title as its letters and digits: lower case, accents off, nothing else."""
    folded = unicodedata.normalize("NFKD", title).casefold()
    return "".join(filter(str.isalnum, folded))


def norm_hash(title: str) -> str:
    """sha256 of `title_key`."""
    return hashlib.sha256(title_key(title).encode()).hexdigest()


def shingles(text: str) -> set[tuple[str, ...]]:
    """Runs of five words, lower case."""
    words = re.findall(r"\w+", unicodedata.normalize("NFKD", text).casefold())
    if len(words) < SHINGLE_WORDS:
        return {tuple(words)} if words else set()
    return {tuple(words[i : i + SHINGLE_WORDS]) for i in range(len(words) - SHINGLE_WORDS + 1)}


def same_abstract(a: str, b: str) -> bool:
    """Jaccard similarity of the shingles at least 0.8; a missing abstract agrees with anything."""
    left, right = shingles(a), shingles(b)
    if not left or not right:
        return True
    return len(left & right) / len(left | right) >= SAME_ABSTRACT


def slugify(title: str, taken: set[str] | frozenset[str] = frozenset()) -> str:
    """A readable, unique name for addresses."""
    folded = unicodedata.normalize("NFKD", title).encode("ascii", "ignore").decode().lower()
    base = "-".join(re.findall(r"[a-z0-9]+", folded))[:80].strip("-") or "paper-" + norm_hash(title)[:8]
    name, n = base, 2
    while name in taken:
        name, n = f"{base}-{n}", n + 1
    return name
