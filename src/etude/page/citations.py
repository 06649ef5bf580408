"""A paper as BibTeX, RIS and CSL-JSON."""

import re
from datetime import UTC, datetime
from typing import Any

_SPECIAL = str.maketrans({
    "&": r"\&", "%": r"\%", "#": r"\#", "_": r"\_", "$": r"\$", "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}", "\\": r"\textbackslash{}",
})  # fmt: skip


def _year(row: dict[str, Any]) -> int | None:
    if row["published_at"]:
        return datetime.fromtimestamp(row["published_at"], UTC).year
    return (row["extra"] or {}).get("year")


def _names(row: dict[str, Any]) -> list[str]:
    return [a["name"] for a in row["authors"]]


def bibtex(row: dict[str, Any]) -> str:
    """One BibTeX entry; every field is escaped."""
    kind = "article" if row["arxiv_id"] or row["doi"] else "misc"
    names = " and ".join(f"{{{n}}}" if re.search(r"\band\b", n) else n for n in _names(row))
    fields = {
        "title": row["title"].translate(_SPECIAL), "author": names.replace("&", r"\&"),
        "year": _year(row), "journal": (row["venue"] or "").translate(_SPECIAL), "doi": row["doi"],
        "eprint": row["arxiv_id"], "archivePrefix": "arXiv" if row["arxiv_id"] else None, "url": row["url"],
    }  # fmt: skip
    lines = [f"  {k} = {{{v}}}" for k, v in fields.items() if v]
    return f"@{kind}{{{row['slug']},\n" + ",\n".join(lines) + "\n}\n"


def ris(row: dict[str, Any]) -> str:
    """One RIS record (CRLF line ends, as the format asks)."""
    pairs = [("TY", "JOUR" if row["venue"] else "GEN"), ("TI", row["title"])]
    pairs += [("AU", n) for n in _names(row)]
    pairs += [("PY", _year(row)), ("JO", row["venue"]), ("DO", row["doi"]), ("UR", row["url"]), ("AB", row["abstract"])]
    text = "".join(f"{k}  - {' '.join(str(v).split())}\r\n" for k, v in pairs if v)
    return text + "ER  - \r\n"


def csl(row: dict[str, Any]) -> dict[str, Any]:
    """One CSL-JSON item."""
    people = []
    for name in _names(row):
        given, _, family = name.rpartition(" ")
        people.append({"family": family, "given": given} if given else {"literal": name})
    year = _year(row)
    item = {
        "id": row["slug"], "type": "article-journal" if row["venue"] else "article", "title": row["title"],
        "author": people, "container-title": row["venue"], "DOI": row["doi"], "URL": row["url"],
        "abstract": row["abstract"], "issued": {"date-parts": [[year]]} if year else None,
    }  # fmt: skip
    return {k: v for k, v in item.items() if v}
