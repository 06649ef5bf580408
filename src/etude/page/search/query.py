"""What a reader typed, as words, phrases, exclusions and filters. Nothing a reader types is ever an error."""

import re
from dataclasses import dataclass, field

from etude.page.identity import arxiv_id, clean, doi

MAX_QUERY = 500
_TOKEN = re.compile(r'(-?)(?:(\w+):)?(?:"([^"]*)"?|(\S+))')
_YEARS = re.compile(r"(\d{4})?(\.\.)?(\d{4})?")
_QUOTES = str.maketrans(dict.fromkeys("“”„‟«»", '"'))  # as telephones and other languages write them
FILTERS = ("author", "tag", "room", "year", "has", "verdict", "venue")


@dataclass(frozen=True)
class Query:
    """A parsed query. All words must occur in a lexical hit; filters always hold."""

    text: str = ""
    """What is left for the meaning: words and phrases without operators."""
    words: tuple[str, ...] = ()
    phrases: tuple[str, ...] = ()
    excluded: tuple[str, ...] = ()
    filters: dict[str, tuple[str, ...]] = field(default_factory=dict)
    years: tuple[int | None, int | None] = (None, None)
    barred: tuple[tuple[str, str], ...] = ()
    """Filters with a minus: none of them may hold."""
    jump: tuple[str, str] | None = None
    """An identifier: ("arxiv", id) or ("doi", doi)."""

    @property
    def empty(self) -> bool:
        asked = self.words or self.phrases or self.excluded or self.filters or self.barred or self.jump
        return not (asked or any(self.years))


def years_of(text: str) -> tuple[int | None, int | None] | None:
    """The first and last year of ``2019``, ``2019..``, ``..2023`` or ``2019..2023``; None for other texts."""
    match = _YEARS.fullmatch(text)
    if not match or not (match.group(1) or match.group(3)):
        return None
    low = int(match.group(1)) if match.group(1) else None
    high = int(match.group(3)) if match.group(3) else None
    return low, high if match.group(2) else low


def _letters(text: str) -> str:
    return " ".join(re.findall(r"\w+", text))


def parse(raw: str) -> Query:
    """Read a query: ``"phrase"``, ``-word``, ``author:``, ``tag:``, ``room:``, ``year:2019..2023``, ``has:study``,
    ``verdict:fails``, each of these with a minus, or an arXiv id, a DOI or an arXiv address, which jumps to the
    paper."""
    text = clean(raw)[:MAX_QUERY].replace("\n", " ").translate(_QUOTES)
    if " " not in text and text:
        found = arxiv_id(text)
        if found is not None:
            return Query(text=text, jump=("arxiv", found.id))
        object_id = doi(text)
        if object_id is not None:
            return Query(text=text, jump=("doi", object_id))
    words, phrases, excluded = [], [], []
    filters: dict[str, tuple[str, ...]] = {}
    barred: list[tuple[str, str]] = []
    years: tuple[int | None, int | None] = (None, None)
    for minus, name, quoted, bare in _TOKEN.findall(text):
        value = quoted or bare
        key = name.lower()
        if key in FILTERS and value and _can_be(key, value.lower()):
            if minus:
                barred.append((key, value.lower()))
            elif key == "year":
                years = years_of(value) or years
            else:
                filters[key] = (*filters.get(key, ()), value.lower())
            continue
        plain = _letters(f"{name} {value}" if name else value)
        if not plain:
            continue
        if minus:
            excluded.append(plain)
        elif quoted:
            phrases.append(plain)
        else:
            words += plain.split()
    meaning = " ".join([*words, *phrases])
    lists = (tuple(words[:40]), tuple(phrases[:10]), tuple(excluded[:20]))
    return Query(meaning, *lists, filters, years, tuple(barred[:20]))


def _can_be(key: str, value: str) -> bool:
    """Whether a filter's value says something; if not, the two are words like others."""
    return {"year": years_of(value) is not None, "has": value == "study"}.get(key, True)


def fts5(query: Query, *, prefix: bool = True) -> str:
    """The query for SQLite's FTS5, every token quoted; the last word also matches as a beginning."""
    parts = [f'"{w}"' for w in query.words]
    if prefix and parts and len(query.words[-1]) >= 3:
        parts[-1] += "*"
    parts += [f'"{p}"' for p in query.phrases]
    wanted = " AND ".join(parts)
    unwanted = " OR ".join(f'"{w}"' for w in query.excluded)
    if not wanted:
        return ""
    return f"({wanted}) NOT ({unwanted})" if unwanted else wanted
