"""A paper as BibTeX, RIS and CSL-JSON."""

import re
from datetime import UTC, datetime
from typing import Any

from etude.page.records import EARLIEST, LATEST

_SPECIAL = str.maketrans({
    "&": r"\&", "%": r"\%", "#": r"\#", "_": r"\_", "$": r"\$", "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}", "\\": r"\textbackslash{}",
})  # fmt: skip
_DASHES = re.compile("-(?=-)")  # two would be read as one long one


def _escaped(text: str) -> str:
    return _DASHES.sub("-{}", text.translate(_SPECIAL))


_BRACES = str.maketrans({"{": "%7B", "}": "%7D", "\\": "%5C"})  # in addresses, which are not escaped as words are


def year_of(row: dict[str, Any]) -> int | None:
    """The year a paper came out: as a card states it, else of its date."""
    stated = (row["extra"] or {}).get("year")
    if stated or not row["published_at"]:
        return int(stated) if isinstance(stated, int) else None
    if not EARLIEST <= row["published_at"] <= LATEST:
        return None
    return datetime.fromtimestamp(row["published_at"], UTC).year


def person(name: str) -> str:
    """A name without the "et al." that says behind the last one that there are others."""
    return re.sub(r",?\s*\bet al\.?$", "", name).strip()


def _names(row: dict[str, Any]) -> tuple[list[str], bool]:
    """Authors, and whether there are others ("et al.")."""
    names = [a["name"] for a in row["authors"]]
    kept = [person(n) for n in names]
    return [n for n in kept if n], kept != names


SUFFIX = re.compile(r"(?:[JS]r\.?|II|III|IV)")


def _split(name: str) -> tuple[str, str, str]:
    """Given name, family name and suffix; no given name where there is one word.

    As in BibTeX the family begins with the first word in small letters ("van der Waals").
    """
    words = name.split()
    suffix = words.pop() if len(words) > 2 and SUFFIX.fullmatch(words[-1]) else ""
    start = next((i for i, w in enumerate(words[1:-1], 1) if w[0].islower()), len(words) - 1)
    return " ".join(words[:start]), " ".join(words[start:]), suffix


def bibtex(row: dict[str, Any]) -> str:
    """One BibTeX entry; every field is escaped."""
    kind = "article" if row["venue"] else "misc"
    people, others = _names(row)
    split = [(_split(n), n) for n in people]
    escaped = [_escaped(f"{last}, {jr}, {first}" if jr else n) for (first, last, jr), n in split]
    names = " and ".join([*(f"{{{n}}}" if re.search(r"\band\b", n) else n for n in escaped), *["others"] * others])
    fields = {
        "title": _escaped(row["title"]), "author": names,
        "year": year_of(row), "journal": _escaped(row["venue"] or ""),
        "doi": (row["doi"] or "").translate(_BRACES), "eprint": row["arxiv_id"],
        "archivePrefix": "arXiv" if row["arxiv_id"] else None, "url": (row["url"] or "").translate(_BRACES),
    }  # fmt: skip
    lines = [f"  {k} = {{{v}}}" for k, v in fields.items() if v]
    return f"@{kind}{{{row['slug']},\n" + ",\n".join(lines) + "\n}\n"


def ris(row: dict[str, Any]) -> str:
    """One RIS record (CRLF line ends, as the format asks)."""
    pairs = [("TY", "JOUR" if row["venue"] else "GEN"), ("TI", row["title"])]
    for given, family, suffix in map(_split, _names(row)[0]):
        pairs.append(("AU", ", ".join(part for part in (family, given, suffix) if part)))
    pairs += [
        ("PY", year_of(row)),
        ("JO", row["venue"]),
        ("DO", row["doi"]),
        ("UR", row["url"]),
        ("AB", row["abstract"]),
    ]
    text = "".join(f"{k}  - {' '.join(str(v).split())}\r\n" for k, v in pairs if v)
    return text + "ER  - \r\n"


def csl(row: dict[str, Any]) -> dict[str, Any]:
    """One CSL-JSON item."""
    people = []
    for name in _names(row)[0]:
        given, family, suffix = _split(name)
        whole = {"family": family, "given": given} | ({"suffix": suffix} if suffix else {})
        people.append(whole if given else {"literal": name})
    year = year_of(row)
    item = {
        "id": row["slug"], "type": "article-journal" if row["venue"] else "article", "title": row["title"],
        "author": people, "container-title": row["venue"], "DOI": row["doi"], "URL": row["url"],
        "abstract": row["abstract"], "issued": {"date-parts": [[year]]} if year else None,
    }  # fmt: skip
    return {k: v for k, v in item.items() if v}
