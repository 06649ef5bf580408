"""Learning from a stream without forgetting."""

from etude.continual.evaluate import StreamResult as StreamResult
from etude.continual.evaluate import evaluate_stream as evaluate_stream
from etude.continual.key_value import Coverage as Coverage
from etude.continual.key_value import KeyValueBottleneck as KeyValueBottleneck
from etude.continual.key_value import KeyValueOutput as KeyValueOutput
from etude.continual.key_value_classifier import KeyValueClassifier as KeyValueClassifier
