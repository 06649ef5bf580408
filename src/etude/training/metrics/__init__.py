"""Metrics, one definition each."""

from etude.training.metrics.classification import accuracy as accuracy
from etude.training.metrics.classification import auroc as auroc
from etude.training.metrics.classification import brier as brier
from etude.training.metrics.classification import class_accuracy as class_accuracy
from etude.training.metrics.classification import confusion as confusion
from etude.training.metrics.classification import error_consistency as error_consistency
from etude.training.metrics.classification import expected_calibration_error as expected_calibration_error
from etude.training.metrics.classification import nll as nll
from etude.training.metrics.retrieval import RetrievalScore as RetrievalScore
from etude.training.metrics.retrieval import average_precision as average_precision
from etude.training.metrics.retrieval import ndcg as ndcg
from etude.training.metrics.retrieval import precision_at as precision_at
from etude.training.metrics.retrieval import precision_recall as precision_recall
from etude.training.metrics.retrieval import recall_at as recall_at
from etude.training.metrics.retrieval import reciprocal_rank as reciprocal_rank
from etude.training.metrics.sequence import bits_per_symbol as bits_per_symbol
from etude.training.metrics.sequence import bleu as bleu
from etude.training.metrics.sequence import edit_distance as edit_distance
from etude.training.metrics.sequence import label_error_rate as label_error_rate
from etude.training.metrics.sequence import masked_accuracy as masked_accuracy
from etude.training.metrics.sequence import perplexity as perplexity
