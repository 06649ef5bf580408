"""Independent named random streams of one seed.

Every draw in Etude comes from a generator that the caller owns. `stream(seed, "init")` and
`stream(seed, "order")` are independent; adding a new name changes no other stream. The numbers are
the same in the main process, in a worker and under `vmap`.
"""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import numpy as np
import torch
from torch import nn

M = TypeVar("M", bound=nn.Module)


def _entropy(seed: int, names: tuple[str | int, ...]) -> list[int]:
    if seed < 0:
        raise ValueError(f"seed must be at least 0, got {seed}")
    text = "\x1f".join(f"{type(n).__name__}:{n}" for n in names)
    digest = hashlib.sha256(text.encode()).digest()
    return [seed, *np.frombuffer(digest[:16], dtype=np.uint32).tolist()]


def stream(seed: int, *names: str | int) -> torch.Generator:
    """A torch generator for the named stream of `seed`, e.g. ``stream(3, "task", 0)``."""
    state = np.random.SeedSequence(_entropy(seed, names)).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state) & (2**63 - 1))


def numpy_stream(seed: int, *names: str | int) -> np.random.Generator:
    """The numpy generator for the named stream of `seed`."""
    return np.random.default_rng(np.random.SeedSequence(_entropy(seed, names)))


@contextmanager
def fork_global(generator: torch.Generator) -> Iterator[None]:
    """Run a block with torch's global generator seeded from `generator`; it is restored afterwards.

    For library code that draws from the global generator and takes no `generator=`
    (constructors of `torch.nn`, dropout).
    """
    seed = int(torch.randint(2**62, (1,), generator=generator, device=generator.device))
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.random.manual_seed(seed)
        yield


def seeded_build(build: Callable[[], M], generator: torch.Generator) -> M:
    """Call a module's constructor so that its initialisation depends on `generator` alone."""
    with fork_global(generator):
        return build()


def as_generator(random_state: int | torch.Generator | np.random.RandomState | None) -> torch.Generator:
    """scikit-learn's `random_state` as a torch generator (None: a fresh, unpredictable one).

    Raises
    ------
    TypeError
        For numpy's Generator, which has no place among the seeds, and for what is no whole number.
    """
    if isinstance(random_state, torch.Generator):
        return random_state
    if isinstance(random_state, np.random.Generator):
        raise TypeError("random_state cannot be numpy's Generator: pass an int drawn from it")
    if random_state is not None and not isinstance(random_state, (int, np.integer, np.random.RandomState)):
        raise TypeError(f"random_state is a whole number, a generator or None, got {random_state!r}")
    if random_state is None:
        return stream(int(np.random.SeedSequence().generate_state(1)[0]), "unseeded")
    if isinstance(random_state, np.random.RandomState):
        return stream(int(random_state.randint(2**31 - 1)), "random_state")
    return stream(int(random_state), "random_state")
