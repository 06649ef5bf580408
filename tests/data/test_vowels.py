"""The vowels: moments of the generator, speakers apart, bad input."""

import numpy as np
import pytest
import torch

from etude.data.randomness import numpy_stream
from etude.data.vowels import CORRELATION, FORMANT_SD, MEANS, SPEAKER_SD, formants, vowels


def test_log_moments_are_those_of_the_table():
    logs = np.log(formants(4000, numpy_stream(0, "vowels")))
    assert np.allclose(logs.mean(0), np.log(MEANS), atol=0.006)
    sd = logs.std(0).reshape(7, 4, 3)
    expected = np.sqrt(SPEAKER_SD**2 + np.square(FORMANT_SD))
    assert np.allclose(sd, expected, rtol=0.05)
    f1 = logs[:, 0].reshape(-1, 4, 3)[:, :, 0]
    theory = (CORRELATION * FORMANT_SD[0] ** 2 + SPEAKER_SD**2) / (FORMANT_SD[0] ** 2 + SPEAKER_SD**2)
    assert np.allclose(np.corrcoef(f1.T), theory, atol=0.03)


@pytest.mark.parametrize("seed", range(5))
def test_speakers_never_cross_and_every_vowel_is_spoken(seed):
    task = vowels(6, 9, seed=seed)
    assert task.train.x.shape == (42, 12)
    assert task.test.x.shape == (63, 12)
    assert not set(task.train.groups.tolist()) & set(task.test.groups.tolist())
    assert torch.bincount(task.train.y).tolist() == [6] * 7
    assert torch.equal(vowels(6, 9, seed=seed).test.x, task.test.x)
    assert task.train.x.min() > 100


def test_bad_numbers():
    with pytest.raises(ValueError, match="n_test=0"):
        vowels(3, 0, seed=0)
