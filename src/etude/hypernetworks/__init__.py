"""Networks that generate the weights of other networks."""

from etude.layers.hyper_lstm import HyperLSTM as HyperLSTM
from etude.layers.hyper_lstm import as_hyper_lstm as as_hyper_lstm
from etude.layers.hypernetwork import HyperNetwork as HyperNetwork
from etude.layers.hypernetwork import ParameterReport as ParameterReport
from etude.layers.hypernetwork_conditions import DataCondition as DataCondition
from etude.layers.hypernetwork_conditions import NoiseCondition as NoiseCondition
from etude.layers.hypernetwork_conditions import PreferenceCondition as PreferenceCondition
from etude.layers.hypernetwork_conditions import ScalarCondition as ScalarCondition
from etude.layers.hypernetwork_conditions import TaskCondition as TaskCondition
from etude.layers.hypernetwork_conditions import encode_magnitude as encode_magnitude
from etude.layers.hypernetwork_graph import ArchitectureGraph as ArchitectureGraph
from etude.layers.hypernetwork_graph import GraphHyperNetwork as GraphHyperNetwork
from etude.layers.hypernetwork_graph import architecture_graph as architecture_graph
from etude.layers.hypernetwork_magnitude import MagnitudeReport as MagnitudeReport
from etude.layers.hypernetwork_magnitude import magnitude_report as magnitude_report
from etude.layers.hypernetwork_recurrent import RecurrentHyperNetwork as RecurrentHyperNetwork
