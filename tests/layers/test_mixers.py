import pytest
import torch
from torch import nn

from etude.data.randomness import fork_global, stream
from etude.layers.mixers import make_mixer, repeat_state


def some(rows=2, T=6):
    return torch.randn(rows, T, 8, generator=stream(0, "x"))


@pytest.mark.parametrize("name", ["attention", "gru", "lstm"])
def test_step_form_is_the_parallel_form_and_nothing_leaks_back(name):
    with fork_global(stream(0, "init")):
        mixer = make_mixer(name, 8, num_heads=2)
    x = some()
    full, _ = mixer(x)
    assert full.shape == x.shape
    state, steps = None, []
    for t in range(6):
        y, state = mixer.step(x[:, t], state)
        steps.append(y)
    torch.testing.assert_close(torch.stack(steps, 1), full, atol=1e-5, rtol=1e-5)
    changed = x.clone()
    changed[:, 4] += 1.0
    moved = (mixer(changed).y - full).abs().amax((0, 2))
    assert moved[:4].max() < 1e-6 and moved[4] > 1e-4


@pytest.mark.parametrize("name", ["attention", "gru", "lstm"])
def test_one_prefix_many_continuations(name):
    mixer = make_mixer(name, 8, num_heads=2)
    x = some()
    with torch.no_grad():
        _, state = mixer(x[:, :4])
        many = repeat_state(state, 3)
        nexts = torch.randn(2, 3, 8, generator=stream(1, "x"))
        y, _ = mixer.step(nexts.reshape(6, 8), many)
        alone = mixer(torch.cat([x[1:, :4], nexts[1:, 2:3]], 1)).y[0, -1]
    torch.testing.assert_close(y[5], alone, atol=1e-5, rtol=1e-5)


def test_names_and_own_mixers():
    assert isinstance(make_mixer(lambda dim: nn.Linear(dim, dim), 8), nn.Linear)
    with pytest.raises(ValueError, match="unknown mixer 'mamba'"):
        make_mixer("mamba", 8)
    with pytest.raises(ValueError, match="causal=False"):
        make_mixer("gru", 8, causal=False)
    with pytest.raises(ValueError, match="no mask"):
        make_mixer("gru", 8)(some(), mask=torch.ones(2, 6, dtype=torch.bool))
    full = make_mixer("attention", 8, num_heads=2, causal=False)
    changed = some()
    changed[:, 5] += 1.0
    assert (full(changed).y[:, 0] - full(some()).y[:, 0]).abs().max() > 1e-5
