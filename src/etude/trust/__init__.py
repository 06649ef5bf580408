"""Interpretable, calibrated and robust models."""

from etude.layers.prototypes import PrototypeLayer as PrototypeLayer
from etude.trust import hallucination as hallucination
from etude.trust.good_turing import GoodTuringGenerator as GoodTuringGenerator
from etude.trust.prototype_classifier import PrototypeClassifier as PrototypeClassifier
from etude.trust.prototype_network import Explanation as Explanation
from etude.trust.prototype_network import Lambdas as Lambdas
from etude.trust.prototype_network import PrototypeNetwork as PrototypeNetwork
from etude.trust.prototype_network import PrototypeReport as PrototypeReport
from etude.trust.prototype_network import deformed as deformed
from etude.trust.prototype_network import explanation_error as explanation_error
from etude.trust.prototype_network import explanations as explanations
from etude.trust.prototype_network import prototype_loss as prototype_loss
from etude.trust.prototype_network import prototype_network as prototype_network
from etude.trust.prototype_network import prototype_report as prototype_report
