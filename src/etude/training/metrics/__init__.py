"""Metrics, one definition each."""

from etude.training.metrics.classification import accuracy as accuracy
from etude.training.metrics.classification import brier as brier
from etude.training.metrics.classification import class_accuracy as class_accuracy
from etude.training.metrics.classification import confusion as confusion
from etude.training.metrics.classification import expected_calibration_error as expected_calibration_error
from etude.training.metrics.classification import nll as nll
