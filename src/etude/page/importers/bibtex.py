"""BibTeX: nested braces, @string, month macros, accents, eprints; a broken entry is reported, the rest imported."""

import logging
import re
from datetime import UTC, datetime

from etude.errors import DataError, MissingExtra
from etude.page.citations import SUFFIX
from etude.page.identity import arxiv_id
from etude.page.importers.latex import MATH, decode_accents
from etude.page.importers.reading import Reading, Unreadable
from etude.page.importers.saved_page import MONTHS
from etude.page.records import PaperRecord, make_record

_ESCAPED = {
    r"\textbackslash{}": "\\", r"\textasciitilde{}": "~", r"\textasciicircum{}": "^", r"\{": "{", r"\}": "}",
}  # fmt: skip
_AWAY = {escape: chr(0xE000 + i) for i, escape in enumerate(_ESCAPED)}  # characters of no script
_FONTS = re.compile(  # what only says how a text is set
    r"\\(?:emph|text(?:bf|it|tt|sc|rm|sf|sl|up|normal)|mbox)\s*(?=\{)|(?<=\{)\\(?:em|it|bf|tt|sc|rm|sf|sl)\b\s*"
)
_BACK = str.maketrans({_AWAY[escape]: letter for escape, letter in _ESCAPED.items()})


def _plain(value: str) -> str:
    """Accents and escapes decoded, commands of fonts and protecting braces off, outside formulas."""
    parts = MATH.split(value)
    for i in range(0, len(parts), 2):
        for escape, mark in _AWAY.items():
            parts[i] = parts[i].replace(escape, mark)
        plain = decode_accents(_FONTS.sub("", parts[i])).replace("~", " ").replace("--", "–")
        parts[i] = plain.replace("{", "").replace("}", "").translate(_BACK)
    return "".join(parts)


def split_names(value: str) -> list[str]:
    """Names of an author field: split at " and " outside braces, "Last, First" and "Last, Jr, First" turned round.

    Of "others" there is an "et al." behind the last name.
    """
    names, depth, start = [], 0, 0
    for match in re.finditer(r"[{}]|\s+and\s+", value):
        token = match.group(0)
        if token in "{}":
            depth += 1 if token == "{" else -1
        elif depth == 0:
            names.append(value[start : match.start()])
            start = match.end()
    names.append(value[start:])
    out: list[str] = []
    for name in names:
        if name.strip() == "others" and out:
            out[-1] += " et al."
        if name.strip() in ("", "others"):
            continue
        parts = [_plain(p).strip() for p in _split_outside(name, ",")]
        if len(parts) == 3:
            last, first, junior = parts if SUFFIX.fullmatch(parts[2]) else (parts[0], parts[2], parts[1])
            parts = [f"{last} {junior}", first]
        out.append(" ".join(p for p in [*parts[1:][::-1], parts[0]] if p) if len(parts) > 1 else parts[0])
    return out


def _split_outside(value: str, mark: str, *, quotes: bool = False) -> list[str]:
    """Split at a mark outside braces, and outside of quotes where these have a meaning."""
    parts, depth, start, quoted = [], 0, 0, False
    for i, ch in enumerate(value):
        depth += (ch == "{") - (ch == "}")
        quoted ^= quotes and ch == '"' and depth == 0
        if ch == mark and depth == 0 and not quoted:
            parts.append(value[start:i])
            start = i + 1
    return [*parts, value[start:]]


def _joined(raw: str, strings: dict[str, str]) -> str:
    """A field as it stands in the file: parts around "#" joined, names of strings put in, braces or quotes off."""
    out = []
    for part in _split_outside(raw, "#", quotes=True) if "#" in raw else [raw]:
        piece = part.strip()
        enclosed = len(piece) >= 2 and (piece[0], piece[-1]) in (("{", "}"), ('"', '"'))
        out.append(piece[1:-1] if enclosed else strings.get(piece.lower(), piece))
    return "".join(out)


def _date(fields: dict[str, str]) -> int | None:
    digits = re.search(r"\d{4}", fields.get("year") or fields.get("date") or "")
    if digits is None:
        return None
    month = (fields.get("month") or "").strip().lower()
    number = MONTHS.index(month[:3]) + 1 if month[:3] in MONTHS else int(month) if month.isdigit() else 1
    try:
        return int(datetime(int(digits.group(0)), min(12, max(1, number)), 1, 12, tzinfo=UTC).timestamp())
    except ValueError:
        return None


def _record(kind: str, key: str, fields: dict[str, str], line: int) -> PaperRecord:
    eprint = fields.get("eprint", "")
    is_arxiv = "arxiv" in (fields.get("archiveprefix") or fields.get("eprinttype") or "arxiv").lower()
    found = arxiv_id(eprint) if eprint and is_arxiv else arxiv_id(fields.get("url", ""))
    venue = next((fields[k] for k in ("booktitle", "journal", "journaltitle", "school") if fields.get(k)), None)
    tags = re.split(r"[;,]", fields.get("keywords", ""))
    return make_record(
        title=_plain(fields.get("title", "")), abstract=_plain(fields.get("abstract", "")),
        authors=split_names(fields.get("author") or fields.get("editor") or ""),
        venue=_plain(venue) if venue else None, published_at=_date(fields), doi=fields.get("doi", ""),
        arxiv_id=found.id if found else "", arxiv_version=found.version if found else None,
        url=fields.get("url"), lang=fields.get("language"), tags=tags,
        extra={"entry_type": kind, "key": key}, where=f"line {line}",
    )  # fmt: skip


def parse(text: str, now: int) -> Reading:
    """Read a BibTeX file.

    Raises
    ------
    DataError
        If it holds no entry at all.
    """
    try:
        import bibtexparser
    except ImportError as error:
        raise MissingExtra("bibtexparser", "web", "reading BibTeX") from error
    macros = "".join(f"@string{{{m} = {{{m}}}}}" for m in MONTHS)
    log = logging.getLogger("bibtexparser")
    before = log.level
    log.setLevel(logging.CRITICAL)  # what is broken is said with its line below
    try:
        library = bibtexparser.parse_string(macros + "\n" + text, parse_stack=[])
    finally:
        log.setLevel(before)
    strings: dict[str, str] = {}
    for made in library.strings:
        strings[made.key.lower()] = _joined(str(made.value), strings)
    records: list[PaperRecord] = []
    bad = [
        Unreadable(max(1, (b.start_line or 0)), (b.raw or "").strip()[:200], str(b.error or "") or "broken entry")
        for b in library.failed_blocks
    ]
    for entry in library.entries:
        line = entry.start_line or 1
        fields = {f.key.lower(): _joined(str(f.value), strings) for f in entry.fields}
        try:
            records.append(_record(entry.entry_type.lower(), entry.key, fields, line))
        except ValueError as error:
            bad.append(Unreadable(line, entry.key, str(error)))
    if not records and not bad:
        raise DataError("no BibTeX entry was found: expected @article{key, title = {...}, ...}")
    return Reading("bibtex", tuple(records), tuple(sorted(bad, key=lambda b: b.line)))
