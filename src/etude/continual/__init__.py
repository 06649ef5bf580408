"""Learning from a stream without forgetting."""

from etude.continual.evaluate import StreamResult as StreamResult
from etude.continual.evaluate import evaluate_stream as evaluate_stream
from etude.continual.frozen import FrozenFeatures as FrozenFeatures
from etude.continual.frozen import frozen_features as frozen_features
from etude.continual.frozen import user_features as user_features
from etude.continual.key_value import Coverage as Coverage
from etude.continual.key_value import KeyValueBottleneck as KeyValueBottleneck
from etude.continual.key_value import KeyValueOutput as KeyValueOutput
from etude.continual.key_value_classifier import KeyValueClassifier as KeyValueClassifier
from etude.continual.key_value_toy import learn_toy as learn_toy
from etude.continual.stream_learning import StreamRecord as StreamRecord
from etude.continual.stream_learning import StreamRecorder as StreamRecorder
from etude.continual.stream_learning import learn_key_values as learn_key_values
from etude.continual.stream_learning import learn_stream as learn_stream
