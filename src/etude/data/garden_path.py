"""A grammar that leads up the garden path: the likely reading of a beginning may turn out wrong at a cue.

Named after sentences such as "the horse raced past the barn fell" (Bever 1970). Both readings begin alike; a cue says
which one it is, and every symbol after it depends on the reading, with some noise.
"""

from typing import Any

from etude.data.automata import Automaton

PREFIX, CUES, TAILS = "pqr", {"likely": "x", "unlikely": "y"}, {"likely": "abcd", "unlikely": "efgh"}


def garden_path_grammar(prefix: int = 6, tail: int = 12, *, surprise: float = 0.1, noise: float = 0.1) -> Automaton:
    """Strings of `prefix` shared symbols, a cue ("x" or "y") and `tail` symbols of the reading that it means.

    Parameters
    ----------
    surprise
        Share of strings whose cue contradicts the likely reading.
    noise
        Probability that a symbol of the tail is not the next one of its reading's cycle ("abcd" or "efgh") but one of
        its other three, equally often.

    Returns
    -------
    Automaton
        It starts in one of two states that no symbol before the cue tells apart, so `beliefs` of a prefix are
        ``1 - surprise`` and ``surprise``, and ``log_probs`` of the cue the log of these: the floor of any reader.

    Raises
    ------
    ValueError
        For lengths below 1, a share outside (0, 1) or a noise outside [0, 1).
    """
    if prefix < 1 or tail < 1:
        raise ValueError(f"prefix and tail must be at least 1, got {prefix} and {tail}")
    if not 0 < surprise < 1:
        raise ValueError(f"surprise must lie in (0, 1), got {surprise}")
    if not 0 <= noise < 1:
        raise ValueError(f"noise must lie in [0, 1), got {noise}")
    edges: list[tuple[Any, ...]] = []
    for reading, cue in CUES.items():
        for i in range(prefix):
            edges += [((reading, i), s, (reading, i + 1)) for s in PREFIX]
        edges.append(((reading, prefix), cue, (reading, prefix + 1)))
        for j in range(tail):
            here, cycle = prefix + 1 + j, TAILS[reading]
            for k, s in enumerate(cycle):
                share = 1 - noise if k == j % len(cycle) else noise / (len(cycle) - 1)
                if share > 0:
                    edges.append(((reading, here), s, (reading, here + 1), share))
    ends = [(reading, prefix + 1 + tail) for reading in CUES]
    start = {("likely", 0): 1 - surprise, ("unlikely", 0): surprise}
    return Automaton(edges, start, ends, alphabet=[*PREFIX, *CUES.values(), *TAILS["likely"], *TAILS["unlikely"]])
