"""Interpretable, calibrated and robust models."""

from etude.layers.prototypes import PrototypeLayer as PrototypeLayer
from etude.trust import hallucination as hallucination
from etude.trust.good_turing import GoodTuringGenerator as GoodTuringGenerator
from etude.trust.prototype_classifier import PrototypeClassifier as PrototypeClassifier
from etude.trust.prototypes import Explanation as Explanation
from etude.trust.prototypes import Lambdas as Lambdas
from etude.trust.prototypes import PrototypeNetwork as PrototypeNetwork
from etude.trust.prototypes import PrototypeReport as PrototypeReport
from etude.trust.prototypes import deformed as deformed
from etude.trust.prototypes import explanation_error as explanation_error
from etude.trust.prototypes import explanations as explanations
from etude.trust.prototypes import prototype_loss as prototype_loss
from etude.trust.prototypes import prototype_network as prototype_network
from etude.trust.prototypes import prototype_report as prototype_report
