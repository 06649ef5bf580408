"""Words with known senses: instances in context with gold labels, for word sense induction."""

import zipfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from etude.data.randomness import numpy_stream
from etude.data.sources import fetch
from etude.errors import DataError, UsageError


@dataclass(frozen=True)
class SenseInstances:
    """A corpus and the occurrences in it whose sense is known."""

    documents: list[list[str]]
    """Token lists, the instances' words in place."""
    words: list[str]
    """(n,) the ambiguous word of every instance, as it stands in its document."""
    contexts: list[list[str]]
    """(n,) the words around the instance, without the instance itself."""
    senses: np.ndarray
    """(n,) gold sense, int64; numbers of different words do not compare."""
    provenance: tuple[dict[str, Any], ...] = ()

    def by_word(self) -> dict[str, np.ndarray]:
        """Rows of every ambiguous word."""
        rows: dict[str, list[int]] = {}
        for i, word in enumerate(self.words):
            rows.setdefault(word, []).append(i)
        return {word: np.array(r) for word, r in rows.items()}


def pseudo_words(
    documents: Sequence[Sequence[str]],
    n_pairs: int,
    seed: int,
    *,
    min_count: int = 120,
    max_share: float = 1e-3,
    window: int = 5,
    provenance: tuple[dict[str, Any], ...] = (),
) -> SenseInstances:
    """Make ambiguous words by giving two unrelated words of about equal frequency one name.

    The true sense of an occurrence is the word that stood there. Unrelated: the two words occur in a common document
    less often than half of what chance would give. A word is used once.

    Parameters
    ----------
    documents
        Token lists.
    n_pairs
        Pseudo-words, named ``"first|second"``.
    min_count, max_share
        A word takes part if it occurs at least so often, and is at most this share of all words.
    window
        Words on each side that make an instance's context.

    Raises
    ------
    ValueError
        If the corpus does not hold so many pairs; the message says how many it holds.
    """
    rng = numpy_stream(seed, "pseudo_words")
    count = Counter(w for d in documents for w in d)
    total = sum(count.values())
    frequent = sorted(
        (w for w, c in count.items() if c >= min_count and c <= max_share * total), key=lambda w: (-count[w], w)
    )
    holders: dict[str, set[int]] = {w: set() for w in frequent}
    for i, document in enumerate(documents):
        for word in set(document) & holders.keys():
            holders[word].add(i)
    free = dict.fromkeys(frequent)
    pairs: list[tuple[str, str]] = []
    for first in (frequent[i] for i in rng.permutation(len(frequent))):
        if len(pairs) == n_pairs:
            break
        if first not in free:
            continue
        del free[first]
        alike = sorted(free, key=lambda w: abs(np.log(count[w] / count[first])))[:20]
        for second in (alike[i] for i in rng.permutation(len(alike))):
            expected = len(holders[first]) * len(holders[second]) / len(documents)
            if len(holders[first] & holders[second]) < 0.5 * expected:
                pairs.append((first, second))
                del free[second]
                break
    if len(pairs) < n_pairs:
        raise ValueError(f"the corpus holds only {len(pairs)} of the {n_pairs} pairs asked for: lower min_count")
    name = {w: f"{a}|{b}" for a, b in pairs for w in (a, b)}
    sense = {w: k for pair in pairs for k, w in enumerate(pair)}
    merged = [[name.get(w, w) for w in d] for d in documents]
    words, contexts, senses = [], [], []
    for original, document in zip(documents, merged, strict=True):
        for i, word in enumerate(original):
            if word in name:
                words.append(name[word])
                senses.append(sense[word])
                contexts.append(document[max(0, i - window) : i] + document[i + 1 : i + 1 + window])
    return SenseInstances(merged, words, contexts, np.array(senses), provenance)


def load_senses(name: str = "semeval2010_task14", *, path: str | Path | None = None) -> SenseInstances:
    """A published set of word sense induction.

    ================== ===========================================================================
    name               instances
    ================== ===========================================================================
    semeval2010_task14 8,915 of 100 nouns and verbs (test part), lemmatised, 3.9 senses a word
    ================== ===========================================================================

    Raises
    ------
    UsageError
        If there is no such set.
    SourceUnavailable
        If its file cannot be had here.
    """
    key = name.replace("-", "_").lower()
    if key != "semeval2010_task14":
        raise UsageError(f"no sense set named {name!r}; there is semeval2010_task14")
    files = fetch(key, path=path)
    with zipfile.ZipFile(files.path) as archive:
        gold = {}
        for line in archive.read("test/gold.key").decode().splitlines():
            _, instance, sense = line.split()[:3]
            gold[instance] = sense.split("/")[0]  # "access.n.6"; a doubtful one is "access.n.1&&2", a class of its own
        texts = {
            member: archive.read(member).decode().splitlines()
            for member in sorted(archive.namelist())
            if member.startswith("texts/") and member.endswith(".txt")
        }
    documents, words, contexts, senses = [], [], [], []
    for member, lines in texts.items():
        target = member.removeprefix("texts/").removesuffix(".txt")  # "access.n"
        lemma = target.rsplit(".", 1)[0]
        for line in lines:
            instance, near, far = [*line.split("\t"), "", ""][:3]
            around = near.split()
            if lemma not in around or instance not in gold:
                raise DataError(f"{member}: instance {instance} has no {lemma!r} in its text, or no gold sense")
            place = [i for i, w in enumerate(around) if w == lemma]
            middle = min(place, key=lambda i: abs(i - len(around) / 2))
            document = [*around[:middle], target, *around[middle + 1 :]]
            documents.append(document + far.split())
            words.append(target)
            contexts.append(around[:middle] + around[middle + 1 :] + far.split())
            senses.append(gold[instance])
    numbers = np.unique(senses, return_inverse=True)[1]
    return SenseInstances(documents, words, contexts, numbers, files.provenance)
