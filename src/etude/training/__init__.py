"""The training engine and methods that change how a net is trained."""

from etude.training.anchors import QuadraticPenalty as QuadraticPenalty
from etude.training.config import TrainConfig as TrainConfig
from etude.training.engine import Trained as Trained
from etude.training.engine import train as train
from etude.training.gradients import GradientNoise as GradientNoise
from etude.training.gradients import gradient_statistics as gradient_statistics
from etude.training.gradients import per_sample_gradients as per_sample_gradients
from etude.training.metrics.classification import accuracy as accuracy
from etude.training.metrics.classification import brier as brier
from etude.training.metrics.classification import class_accuracy as class_accuracy
from etude.training.metrics.classification import confusion as confusion
from etude.training.metrics.classification import expected_calibration_error as expected_calibration_error
from etude.training.metrics.classification import nll as nll
from etude.training.optimizers import parameter_groups as parameter_groups
from etude.training.replay import ReplayBuffer as ReplayBuffer
from etude.training.schedules import Regime as Regime
from etude.training.schedules import adapt_regime as adapt_regime
from etude.training.schedules import make_schedule as make_schedule
from etude.training.schedules import scale_lr as scale_lr
from etude.training.updater import Updater as Updater
from etude.training.workers import Outcome as Outcome
from etude.training.workers import WorkerDied as WorkerDied
from etude.training.workers import WorkerPool as WorkerPool
from etude.training.workers import in_worker as in_worker
