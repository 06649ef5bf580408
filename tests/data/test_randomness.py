"""Named streams: independent, the same everywhere, and what scikit-learn's seeds become."""

import numpy as np
import pytest
import torch
from torch import nn

from etude.data.randomness import as_generator, fork_global, numpy_stream, seeded_build, stream


def draws(generator: torch.Generator) -> list[float]:
    return torch.rand(5, generator=generator).tolist()


def test_streams_hang_on_seed_and_every_name_alone() -> None:
    known = [(0, "a"), (1, "a"), (0, "b"), (0, "a", 1), (0, "a", "1"), (0, "a1"), (0,)]
    assert len({tuple(draws(stream(*key))) for key in known}) == len(known)
    assert len({tuple(numpy_stream(*key).random(5)) for key in known}) == len(known)
    assert draws(stream(3, "a")) == draws(stream(3, "a"))
    with pytest.raises(ValueError, match="at least 0, got -1"):
        stream(-1, "a")


def test_what_is_built_or_drawn_leaves_the_global_generator() -> None:
    before = torch.get_rng_state()
    one, other = (seeded_build(lambda: nn.Linear(3, 2), stream(0, "init")) for _ in range(2))
    assert torch.equal(one.weight, other.weight)
    with fork_global(stream(1, "noise")):
        torch.rand(3)
    assert torch.equal(torch.get_rng_state(), before)


def test_random_states_of_scikit_learn() -> None:
    own = torch.Generator()
    assert as_generator(own) is own
    assert draws(as_generator(3)) == draws(as_generator(np.int64(3))) != draws(as_generator(4))
    assert draws(as_generator(np.random.RandomState(3))) == draws(as_generator(np.random.RandomState(3)))
    assert draws(as_generator(None)) != draws(as_generator(None))
    with pytest.raises(TypeError, match="pass an int drawn from it"):
        as_generator(np.random.default_rng(0))
    for wrong in (1.5, "1"):
        with pytest.raises(TypeError, match=f"a whole number, a generator or None, got {wrong!r}"):
            as_generator(wrong)
