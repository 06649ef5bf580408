"""Kernel machines of infinitely wide and deep networks."""

from etude.kernels.classifier import DeepKernelClassifier as DeepKernelClassifier
from etude.kernels.deep import LimitKernel as LimitKernel
from etude.kernels.deep import deep_kernel as deep_kernel
from etude.kernels.deep import deep_predictions as deep_predictions
from etude.kernels.deep import log_limit_ratio as log_limit_ratio
from etude.kernels.deep import solve_kernel as solve_kernel
from etude.kernels.dual import DualActivation as DualActivation
from etude.kernels.dual import ErfDual as ErfDual
from etude.kernels.dual import PowerDual as PowerDual
from etude.kernels.dual import ReluDual as ReluDual
from etude.kernels.dual import SineDual as SineDual
from etude.kernels.dual import dual_activation as dual_activation
from etude.kernels.hermite import ActivationReport as ActivationReport
from etude.kernels.hermite import HermiteActivation as HermiteActivation
from etude.kernels.hermite import ScaledActivation as ScaledActivation
from etude.kernels.hermite import activation_report as activation_report
from etude.kernels.hermite import hermite_coefficients as hermite_coefficients
from etude.kernels.hermite import hermite_values as hermite_values
from etude.kernels.hermite import optimal_activation as optimal_activation
from etude.kernels.hermite import sine_frequency as sine_frequency
from etude.kernels.votes import hilbert_weights as hilbert_weights
from etude.kernels.votes import nearest_weights as nearest_weights
from etude.kernels.votes import power_weights as power_weights
from etude.kernels.votes import vote_shares as vote_shares
