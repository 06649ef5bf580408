"""The training engine and methods that change how a net is trained."""

from etude.training.config import TrainConfig as TrainConfig
from etude.training.engine import Trained as Trained
from etude.training.engine import train as train
from etude.training.metrics.classification import accuracy as accuracy
from etude.training.optimizers import parameter_groups as parameter_groups
from etude.training.schedules import Regime as Regime
from etude.training.schedules import adapt_regime as adapt_regime
from etude.training.schedules import make_schedule as make_schedule
from etude.training.schedules import scale_lr as scale_lr
from etude.training.updater import Updater as Updater
