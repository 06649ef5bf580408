"""Text sets by name, all in one form."""

import csv
import json
import lzma
import tarfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from etude.data.sources import SourceFiles, fetch
from etude.data.suggest import nearest
from etude.data.tasks import Split, Task, split
from etude.errors import UsageError

TREC = ("description", "entity", "abbreviation", "human", "location", "number")
SNIPPETS = {
    "movie_snippets": "movieReviewSnippets",
    "amazon_snippets": "amazonReviewSnippets",
    "nyt_snippets": "nytEditorialSnippets",
    "tweets": "tweets",
}


@dataclass(frozen=True)
class TextDataset:
    """Documents, with labels where the set has them.

    labels
        (N,) int64, numbers into `classes`, or None.
    groups
        (N,) int64 where documents belong together (sentences of one article); `task` then splits by group.
    meta
        Facts about the set; a list of N entries under a name is a column (titles, ratings).
    official
        Row numbers of the official parts, "train", "val", "test", where the set has them.
    """

    texts: list[str]
    labels: Tensor | None = None
    groups: Tensor | None = None
    meta: dict[str, Any] = field(default_factory=dict)
    provenance: tuple[dict[str, Any], ...] = ()
    classes: tuple[str, ...] = ()
    name: str = ""
    official: dict[str, Tensor] = field(default_factory=dict)
    kind: str = field(default="documents", init=False)

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, rows: Tensor) -> "TextDataset":
        """The documents of the given rows; columns of `meta` and official parts follow, classes stay."""
        n, chosen = len(self.texts), rows.tolist()
        place = torch.full((n,), -1).scatter_(0, rows, torch.arange(len(rows)))
        meta = {k: [v[i] for i in chosen] if isinstance(v, list) and len(v) == n else v for k, v in self.meta.items()}
        official = {part: (new := place[old])[new >= 0] for part, old in self.official.items()}
        return replace(
            self,
            texts=[self.texts[i] for i in chosen],
            labels=None if self.labels is None else self.labels[rows],
            groups=None if self.groups is None else self.groups[rows],
            meta=meta,
            official=official,
        )

    def drop(self, *classes: str) -> "TextDataset":
        """The set without the documents of these classes, which leave the numbering."""
        unknown = [c for c in classes if c not in self.classes]
        if unknown or self.labels is None:
            raise ValueError(f"{self.name} has no class {unknown or classes}; it has {', '.join(self.classes)}")
        kept = [i for i, c in enumerate(self.classes) if c not in classes]
        number = torch.full((len(self.classes),), -1)
        number[kept] = torch.arange(len(kept))
        smaller = self.take((number[self.labels] >= 0).nonzero()[:, 0])
        assert smaller.labels is not None
        return replace(smaller, labels=number[smaller.labels], classes=tuple(self.classes[i] for i in kept))

    def task(self, seed: int, sizes: Sequence[float | int] = (0.6, 0.2, 0.2)) -> Task:
        """Train, validation and test parts, stratified by class (or whole groups), drawn by `seed`.

        With two sizes, (train, val), both come from the official training (and validation) part and the test
        part is the official one, whole. A part of size 0 becomes None.
        """
        has_test = "test" in self.official
        if len(sizes) != 3 and not (len(sizes) == 2 and has_test):
            official = ", or (train, val) beside the official test part" if has_test else ""
            raise ValueError(f"sizes must be (train, val, test){official}, got {tuple(sizes)}")
        rows = torch.arange(len(self.texts))
        if len(sizes) == 2:
            rows = torch.cat([part for name, part in self.official.items() if name != "test"])
        data = Split(rows, None if self.labels is None else self.labels[rows], _at(self.groups, rows), index=rows)
        by = "group" if self.groups is not None else "row" if self.labels is None else "class"
        parts = [self._fill(p) for p in split(data, sizes, seed=seed, by=by, classes=self.classes or None)]  # type: ignore[arg-type]
        test = self._fill(self._rows(self.official["test"])) if len(sizes) == 2 else parts[2]
        val = parts[1] if parts[1].n else None
        meta = {"license": self.provenance[0]["license"] if self.provenance else "", "classes": self.classes}
        return Task(
            self.name, self.kind, parts[0], val, test if test.n else None, len(self.classes), meta, self.provenance
        )

    def _rows(self, rows: Tensor) -> Split:
        return Split(rows, _at(self.labels, rows), _at(self.groups, rows), index=rows)

    def _fill(self, part: Split) -> Split:
        return part._replace(x=[self.texts[i] for i in part.x.tolist()])


def _at(column: Tensor | None, rows: Tensor) -> Tensor | None:
    return None if column is None else column[rows]


def load_texts(name: str, *, path: str | Path | None = None) -> TextDataset:
    """A text set by its name.

    ================== ================================================================= =============
    name               documents                                                         labels
    ================== ================================================================= =============
    newsgroups20       18,846 messages without headers; official train, test             20 groups
    wikilead           10,033 lead paragraphs, English (also wikilead_fr, wikilead_es)   topics
    octis_dblp         54,595 titles, preprocessed; official train, val, test            4 areas
    banking77          13,083 customer questions; official train, test                   77 intents
    clinc150           23,700 requests; official train, val, test                        150 + "oos"
    ag_news            7,600 news, the official test part                                4 topics
    imdb               15,000 reviews; official train, test                              2
    sst2, sst5         sentences of film reviews; official train, val, test              2, 5
    mr, cr, mpqa, subj sentences, one part                                               2
    trec               5,952 questions; official train, test                             6 kinds
    movie_snippets     10,605 sentences with ratings (also amazon_snippets,              sign of the
                       nyt_snippets, tweets)                                             mean rating
    citeseer_m10       10,310 titles of papers                                           10 fields
    ptb, wikitext2     lines of running text; official parts                             none
    tinyshakespeare    one text of 1.1 M characters                                      none
    ================== ================================================================= =============

    Raises
    ------
    UsageError
        If there is no such set.
    SourceUnavailable
        If its files cannot be had here.
    """
    key = name.replace("-", "_").lower()
    if key not in _LOADERS:
        raise UsageError(f"no text set named {name!r}{nearest(key, _LOADERS)}; there are {', '.join(_LOADERS)}")
    return _LOADERS[key](key, path)


# --- one loader a set ------------------------------------------------------------------------------------------

Row = tuple[str, str]


def _labelled(
    name: str, files: SourceFiles, parts: dict[str, list[Row]], classes: Sequence[str] | None = None, **meta: Any
) -> TextDataset:
    """Parts of (text, label) rows as one set; classes in the given order, otherwise sorted."""
    rows = [row for part in parts.values() for row in part]
    names = tuple(sorted({label for _, label in rows})) if classes is None else tuple(classes)
    number = {label: i for i, label in enumerate(names)}
    official: dict[str, Tensor] = {}
    start = 0
    for part, content in parts.items():
        official[part] = torch.arange(start, start + len(content))
        start += len(content)
    labels = torch.tensor([number[label] for _, label in rows])
    texts = [text for text, _ in rows]
    parted = official if len(parts) > 1 else {}
    return TextDataset(texts, labels, None, meta, files.provenance, names, name, parted)


def _decode(raw: bytes) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return raw.decode("latin-1")


def _lines(path: Path) -> list[str]:
    """Lines cut at newlines only: other separators of Unicode stand inside texts."""
    return [_decode(line) for line in path.read_bytes().replace(b"\r\n", b"\n").split(b"\n") if line.strip()]


def _newsgroups20(name: str, path: str | Path | None) -> TextDataset:
    files = fetch("newsgroups20", path=path)
    parts: dict[str, list[Row]] = {"train": [], "test": []}
    with tarfile.open(files.path) as archive:
        for member in archive:
            if not member.isfile():
                continue
            folder, group, _ = member.name.rsplit("/", 2)
            content = archive.extractfile(member)
            assert content is not None
            _, _, body = content.read().decode("latin-1").partition("\n\n")
            parts[folder.rsplit("-", 1)[1]].append((body, group))
    return _labelled(name, files, parts)


def _wikilead(name: str, path: str | Path | None) -> TextDataset:
    language = {"wikilead_fr": "fr-fr", "wikilead_es": "es-es"}.get(name, "en-us")
    files = fetch(f"wikilead/summaries_{language}.json", path=path)
    entries = list(json.loads(files.path.read_text(encoding="utf-8")).values())
    rows = [(e["extract"], e.get("topic") or "Uncategorized") for e in entries]
    titles = [e["title"] for e in entries]
    descriptions = [e.get("description") or "" for e in entries]
    return _labelled(name, files, {"train": rows}, titles=titles, descriptions=descriptions)


def _octis_dblp(name: str, path: str | Path | None) -> TextDataset:
    files = fetch("octis_DBLP", path=path)
    parts: dict[str, list[Row]] = {"train": [], "val": [], "test": []}
    for line in _lines(files.paths["corpus.tsv"]):
        text, part, label = line.split("\t")
        parts[part].append((text, label))
    return _labelled(name, files, parts)


def _banking77(name: str, path: str | Path | None) -> TextDataset:
    files = fetch("banking77", path=path)
    parts = {}
    for part in ("train", "test"):
        with files.paths[f"{part}.csv"].open(encoding="utf-8", newline="") as stream:
            parts[part] = [(row["text"], row["category"]) for row in csv.DictReader(stream)]
    classes = json.loads(files.paths["categories.json"].read_text(encoding="utf-8"))
    return _labelled(name, files, parts, classes)


def _clinc150(name: str, path: str | Path | None) -> TextDataset:
    files = fetch("clinc150", path=path)
    stored = json.loads(files.paths["data_full.json"].read_text(encoding="utf-8"))
    parts = {p: [(t, c) for t, c in [*stored[p], *stored[f"oos_{p}"]]] for p in ("train", "val", "test")}
    domains = json.loads(files.paths["domains.json"].read_text(encoding="utf-8"))
    return _labelled(name, files, parts, domains=domains)


def _ag_news(name: str, path: str | Path | None) -> TextDataset:
    files = fetch("ag_news", path=path)
    classes = _lines(files.paths["classes.txt"])
    with files.paths["test.csv"].open(encoding="utf-8", newline="") as stream:
        rows = [(f"{title}. {text}", classes[int(c) - 1]) for c, title, text in csv.reader(stream)]
    return _labelled(name, files, {"train": rows}, classes, note="the official test part only")


def _imdb(name: str, path: str | Path | None) -> TextDataset:
    files = fetch("imdb", path=path)
    parts: dict[str, list[Row]] = {"train": [], "test": []}
    with lzma.open(files.path, "rt", encoding="utf-8") as stream:
        for line in stream:
            row = json.loads(line)
            parts[row["split"]].append((row["text"], row["label"]))
    return _labelled(name, files, parts, ("neg", "pos"))


def _sentences(files_of: dict[str, str], classes: Sequence[str]) -> Callable[[str, str | Path | None], TextDataset]:
    """Sets of lines ``label text``; `files_of` names the file of each part."""

    def load(name: str, path: str | Path | None) -> TextDataset:
        files = fetch(name, path=path)
        parts = {}
        for part, file in files_of.items():
            cut = [line.partition(" ") for line in _lines(files.paths[file])]
            parts[part] = [(text.strip(), classes[int(number)]) for number, _, text in cut]
        return _labelled(name, files, parts, classes)

    return load


def _snippets(name: str, path: str | Path | None) -> TextDataset:
    files = fetch(f"rated_snippets/{SNIPPETS[name]}_GroundTruth.txt", path=path)
    cut = [line.split("\t", 2) for line in _lines(files.path)]
    ratings = [float(mean) for _, mean, _ in cut]
    signs = ["negative" if r < 0 else "positive" if r > 0 else "zero" for r in ratings]
    rows = [(text.strip(), sign) for (_, _, text), sign in zip(cut, signs, strict=True)]
    ids = [i for i, _, _ in cut]
    data = _labelled(name, files, {"train": rows}, ("negative", "positive", "zero"), ids=ids, ratings=ratings)
    if all("_" in i for i in ids):  # document_sentence
        _, documents = np.unique([i.split("_")[0] for i in ids], return_inverse=True)
        data = replace(data, groups=torch.from_numpy(documents))
    return data


def _citeseer_m10(name: str, path: str | Path | None) -> TextDataset:
    files = fetch("citeseer_m10", path=path)
    fields = dict(line.split() for line in _lines(files.paths["labels.txt"]))
    titles = [line.split(" ", 1) for line in _lines(files.paths["docs.txt"])]
    rows = [(t[1].strip() if len(t) > 1 else "", fields[t[0]]) for t in titles]
    return _labelled(name, files, {"train": rows}, ids=[t[0] for t in titles])


def _running(files_of: dict[str, str]) -> Callable[[str, str | Path | None], TextDataset]:
    def load(name: str, path: str | Path | None) -> TextDataset:
        files = fetch(name, path=path)
        texts: list[str] = []
        official = {}
        for part, file in files_of.items():
            lines = files.paths[file].read_text(encoding="utf-8").removesuffix("\n").split("\n")
            official[part] = torch.arange(len(texts), len(texts) + len(lines))
            texts += [line.strip() for line in lines]
        return TextDataset(texts, provenance=files.provenance, name=name, official=official)

    return load


def _tinyshakespeare(name: str, path: str | Path | None) -> TextDataset:
    files = fetch("tinyshakespeare", path=path)
    text = files.path.read_bytes().decode("utf-8")
    return TextDataset([text], provenance=files.provenance, name=name)


def _parts(stem: str, names: Iterable[tuple[str, str]]) -> dict[str, str]:
    return {part: f"{stem}.{end}" for part, end in names}


_THREE = (("train", "train"), ("val", "dev"), ("test", "test"))
_TWO_CLASSES = ("negative", "positive")
_FIVE_CLASSES = ("very negative", "negative", "neutral", "positive", "very positive")
_LOADERS: dict[str, Callable[[str, str | Path | None], TextDataset]] = {
    "newsgroups20": _newsgroups20,
    **dict.fromkeys(("wikilead", "wikilead_en", "wikilead_fr", "wikilead_es"), _wikilead),
    "octis_dblp": _octis_dblp,
    "banking77": _banking77,
    "clinc150": _clinc150,
    "ag_news": _ag_news,
    "imdb": _imdb,
    "sst2": _sentences(_parts("stsa.binary", _THREE), _TWO_CLASSES),
    "sst5": _sentences(_parts("stsa.fine", _THREE), _FIVE_CLASSES),
    "mr": _sentences({"train": "rt-polarity.all"}, _TWO_CLASSES),
    "cr": _sentences({"train": "custrev.all"}, _TWO_CLASSES),
    "mpqa": _sentences({"train": "mpqa.all"}, _TWO_CLASSES),
    "subj": _sentences({"train": "subj.all"}, ("subjective", "objective")),
    "trec": _sentences({"train": "TREC.train.all", "test": "TREC.test.all"}, TREC),
    **dict.fromkeys(SNIPPETS, _snippets),
    "citeseer_m10": _citeseer_m10,
    "ptb": _running({"train": "ptb.train.txt", "val": "ptb.valid.txt", "test": "ptb.test.txt"}),
    "wikitext2": _running({"val": "valid.txt", "test": "test.txt"}),
    "tinyshakespeare": _tinyshakespeare,
}
