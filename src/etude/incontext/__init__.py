"""Learning from the examples in a prompt."""

from etude.incontext import linear as linear
from etude.incontext.curves import Curve as Curve
from etude.incontext.sequence_model import SequenceModel as SequenceModel
