"""Formants of spoken vowels: a generator whose speakers differ as real ones do.

Seven American English vowels by twelve numbers, F1, F2 and F3 in Hz at the steady state and at 20, 50 and 80 % of the
vowel. On a logarithmic scale a value is the vowel's mean plus one number a speaker (the length of the vocal tract) plus
a residual that is correlated over the four times.
"""

import numpy as np
import torch

from etude.data.randomness import numpy_stream
from etude.data.tasks import Split, Task

VOWELS = ("ae", "ah", "aw", "er", "ih", "iy", "uw")
# Means of women speakers of the public table of Hillenbrand et al. 1995: (F1, F2, F3) at four times.
MEANS = np.array([
    [660, 2359, 2973, 662, 2356, 2961, 743, 2154, 2898, 794, 1940, 2890],
    [942, 1521, 2822, 952, 1516, 2827, 943, 1556, 2829, 869, 1740, 2856],
    [780, 1162, 2811, 779, 1152, 2819, 799, 1231, 2818, 800, 1550, 2822],
    [525, 1590, 1925, 536, 1584, 1951, 511, 1598, 1933, 495, 1697, 2007],
    [485, 2315, 3024, 483, 2325, 3018, 522, 2228, 3004, 532, 2133, 3034],
    [434, 2782, 3372, 439, 2777, 3384, 432, 2788, 3365, 429, 2779, 3304],
    [460, 1029, 2718, 465, 1067, 2719, 458, 1032, 2729, 451, 1081, 2738],
], dtype=float)  # fmt: skip
CORRELATION = np.array([[1, 0.84, 0.73, 0.44], [0.84, 1, 0.67, 0.37], [0.73, 0.67, 1, 0.71], [0.44, 0.37, 0.71, 1]])
SPEAKER_SD, FORMANT_SD = 0.038, (0.075, 0.062, 0.050)


def formants(n_speakers: int, generator: np.random.Generator) -> np.ndarray:
    """Every vowel once by each of `n_speakers` new speakers: (n_speakers, 7, 12) in Hz."""
    root = np.linalg.cholesky(CORRELATION)
    speaker = generator.normal(0, SPEAKER_SD, (n_speakers, 1, 1, 1))
    drawn = generator.normal(size=(n_speakers, len(VOWELS), 3, 4)) @ root.T
    residual = drawn * np.array(FORMANT_SD)[:, None]
    log_means = np.log(MEANS).reshape(len(VOWELS), 4, 3).transpose(0, 2, 1)
    return np.exp(log_means + speaker + residual).transpose(0, 1, 3, 2).reshape(n_speakers, len(VOWELS), 12)


def vowels(n_train: int = 30, n_test: int = 200, *, seed: int) -> Task:
    """Vowels of `n_train` speakers to learn from and of `n_test` other speakers; rows are in Hz, (7 n, 12).

    Raises
    ------
    ValueError
        If a number of speakers is below 1.
    """
    if n_train < 1 or n_test < 1:
        raise ValueError(f"need at least 1 speaker in each part, got n_train={n_train}, n_test={n_test}")
    x = torch.from_numpy(formants(n_train + n_test, numpy_stream(seed, "vowels"))).float()

    def part(speakers: torch.Tensor) -> Split:
        rows = x[speakers].flatten(0, 1)
        y = torch.arange(len(VOWELS)).repeat(len(speakers))
        return Split(rows, y, groups=speakers.repeat_interleave(len(VOWELS)))

    everybody = torch.arange(n_train + n_test)
    return Task(
        "vowels", "table", part(everybody[:n_train]), test=part(everybody[n_train:]), num_classes=len(VOWELS),
        meta={"classes": VOWELS},
    )  # fmt: skip
