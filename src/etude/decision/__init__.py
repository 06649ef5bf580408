"""Choosing actions and architectures."""

from etude.decision.arm_networks import ArmNetwork as ArmNetwork
from etude.decision.arm_networks import ModuleArms as ModuleArms
from etude.decision.bandit_learner import BanditLearner as BanditLearner
from etude.decision.bandit_learner import BanditSettings as BanditSettings
from etude.decision.bandit_learner import draw_arms as draw_arms
from etude.decision.bandit_simulation import BanditRun as BanditRun
from etude.decision.bandit_simulation import ClassificationBandit as ClassificationBandit
from etude.decision.bandit_simulation import SyntheticBandit as SyntheticBandit
from etude.decision.bandit_simulation import simulate as simulate
from etude.decision.decisions import Decision as Decision
from etude.decision.decisions import LoggedDecisions as LoggedDecisions
from etude.decision.gap_rules import epsilon_greedy_probabilities as epsilon_greedy_probabilities
from etude.decision.gap_rules import fastcb_probabilities as fastcb_probabilities
from etude.decision.gap_rules import squarecb_probabilities as squarecb_probabilities
from etude.decision.gap_rules import thompson_probabilities as thompson_probabilities
from etude.decision.neural_bandit import NeuralBandit as NeuralBandit
from etude.decision.off_policy import PolicyValue as PolicyValue
from etude.decision.off_policy import policy_value as policy_value
from etude.decision.online_regression import log_slope as log_slope
from etude.decision.online_regression import regression_regret as regression_regret
from etude.decision.regret_bounds import effective_dimension as effective_dimension
from etude.decision.regret_bounds import orthonormal_bounds as orthonormal_bounds
from etude.decision.regret_bounds import orthonormal_dimension as orthonormal_dimension
