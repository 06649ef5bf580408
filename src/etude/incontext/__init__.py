"""Learning from the examples in a prompt."""

from etude.incontext import linear as linear
from etude.incontext.curves import Curve as Curve
from etude.incontext.episode_baselines import EpisodeLSTM as EpisodeLSTM
from etude.incontext.episode_baselines import EpisodeMAML as EpisodeMAML
from etude.incontext.episode_baselines import OnlinePrototypes as OnlinePrototypes
from etude.incontext.memory_network import EpisodeOutput as EpisodeOutput
from etude.incontext.memory_network import FastSlowMemory as FastSlowMemory
from etude.incontext.memory_session import MemorySession as MemorySession
from etude.incontext.sequence_model import SequenceModel as SequenceModel
from etude.incontext.synthetic_gradients import Feedback as Feedback
from etude.layers import FastLinear as FastLinear
