"""Smaller and faster networks."""

from etude.compression import sparsity as sparsity
from etude.compression.graph_rnn import GraphRNN as GraphRNN
from etude.compression.graphs import graph_properties as graph_properties
from etude.compression.graphs import random_graph as random_graph
from etude.compression.pruning import prune as prune
