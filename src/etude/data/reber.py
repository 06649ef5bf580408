"""Strings of the Reber grammar and three kinds of strings that only resemble them.

Sources: Reber 1967, Journal of Verbal Learning and Verbal Behavior 6; the kinds and shares of wrong strings are those
measured in the data set of Darji 2021, arXiv 2407.20601.
"""

import string
from collections.abc import Callable, Sequence

import torch

from etude.data.automata import Automaton
from etude.data.tasks import Split

REBER_EDGES = (
    ("start", "B", 1), (1, "T", 2), (1, "P", 3), (2, "S", 2), (2, "X", 4), (3, "T", 3), (3, "V", 5), (4, "X", 3),
    (4, "S", 6), (5, "P", 4), (5, "V", 6), (6, "E", "end"),
)  # fmt: skip
SHARES = (0.56, 0.318, 0.122)  # foreign letters, an illegal pair, only legal pairs
ROUNDS = 60


def reber_grammar() -> Automaton:
    """The grammar as an automaton; every edge out of a state is equally likely."""
    return Automaton(REBER_EDGES, "start", ["end"])


def legal_pairs() -> frozenset[str]:
    """Every two letters that may follow each other somewhere in a string of the grammar."""
    return frozenset(a + b for _, a, middle in REBER_EDGES for source, b, _ in REBER_EDGES if middle == source)


def has_legal_pairs(text: str) -> bool:
    """A reader without memory: does it accept the string, pair by pair?"""
    legal = legal_pairs()
    return len(text) > 1 and all(text[i : i + 2] in legal for i in range(len(text) - 1))


def reber_strings(
    n: int,
    lengths: tuple[int, int] = (11, 53),
    *,
    shares: Sequence[float] = SHARES,
    generator: torch.Generator,
) -> tuple[list[str], torch.Tensor]:
    """`n` different strings, half of them of the grammar, in random order; all start with B and end with E.

    Parameters
    ----------
    lengths
        Shortest and longest.
    shares
        Shares of the wrong strings: with letters foreign to the grammar, with its letters and at least one pair that
        it does not know, and with legal pairs only (a string of the grammar whose second letter, T or P, is
        exchanged: what follows fits no longer, which a reader must remember to see). Quotas of unique strings are
        filled for each kind, since drawing first and removing duplicates later would thin out the last.

    Returns
    -------
    strings, labels
        Labels (n,) int64, 1 = of the grammar.

    Raises
    ------
    ValueError
        For odd sizes, shares that do not sum to 1, or more strings than there are of such lengths.
    """
    low, high = lengths
    if n < 2 or n % 2:
        raise ValueError(f"n must be even and at least 2, got {n}")
    if not 5 <= low <= high:
        raise ValueError(f"lengths must be 5 <= low <= high, got {lengths}")
    if len(shares) != 3 or min(shares) < 0 or abs(sum(shares) - 1) > 1e-6:
        raise ValueError(f"shares are three shares that sum to 1, got {tuple(shares)}")
    grammar, legal = reber_grammar(), legal_pairs()

    def right(count: int) -> list[str]:
        return grammar.decode(grammar.sample(count, lengths, generator).symbols)

    def letters(alphabet: str) -> Callable[[int], list[str]]:
        def draw(count: int) -> list[str]:
            size = torch.randint(low - 2, high - 1, (count,), generator=generator).tolist()
            pick = torch.randint(len(alphabet), (count, high), generator=generator).tolist()
            return ["B" + "".join(alphabet[i] for i in row[:m]) + "E" for row, m in zip(pick, size)]

        return draw

    def swapped(count: int) -> list[str]:
        return [s[0] + ("P" if s[1] == "T" else "T") + s[2:] for s in right(count)]

    def illegal(text: str) -> bool:
        return any(text[i : i + 2] not in legal for i in range(len(text) - 1))

    foreign = round(shares[0] * (n // 2))
    hidden = round(shares[2] * (n // 2))
    strings = _unique(right, n // 2, lambda s: True)
    strings += _unique(letters(string.ascii_uppercase), foreign, lambda s: not set(s) <= set(grammar.alphabet))
    strings += _unique(letters("TPSXV"), n // 2 - foreign - hidden, illegal)
    strings += _unique(swapped, hidden, lambda s: not illegal(s))
    order = torch.randperm(n, generator=generator).tolist()
    return [strings[i] for i in order], torch.tensor([int(i < n // 2) for i in order])


def _unique(draw: Callable[[int], list[str]], count: int, fits: Callable[[str], bool]) -> list[str]:
    found: dict[str, None] = {}
    for _ in range(ROUNDS):
        if len(found) >= count:
            return list(found)[:count]
        found.update(dict.fromkeys(s for s in draw(max(64, count)) if fits(s)))
    raise ValueError(f"only {len(found)} of {count} different strings turned up: allow longer ones, or ask for fewer")


def character_rows(texts: Sequence[str], labels: torch.Tensor | None = None, max_length: int | None = None) -> Split:
    """Strings as rows of character codes: x (n, T) int64 with 0 behind the end, y, lengths. Beyond ASCII: 127."""
    rows = [[min(ord(c), 127) for c in text[:max_length]] for text in texts]
    if not rows or not all(rows):
        raise ValueError("every text needs at least one character" if rows else "no texts")
    x = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
    for i, row in enumerate(rows):
        x[i, : len(row)] = torch.tensor(row)
    return Split(x, labels, lengths=torch.tensor([len(row) for row in rows]))
