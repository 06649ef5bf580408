"""Torch modules that several methods share."""

from etude.layers.convnets import convnet as convnet
from etude.layers.convnets import resnet as resnet
from etude.layers.mlp import StackedLinear as StackedLinear
from etude.layers.mlp import mlp as mlp
