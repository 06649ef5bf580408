"""Torch modules that several methods share."""

from etude.layers.convnets import convnet as convnet
from etude.layers.convnets import resnet as resnet
from etude.layers.mlp import StackedLinear as StackedLinear
from etude.layers.mlp import mlp as mlp
from etude.layers.straight_through import binarize as binarize
from etude.layers.straight_through import gumbel_softmax as gumbel_softmax
from etude.layers.straight_through import round_ste as round_ste
from etude.layers.straight_through import straight_through as straight_through
