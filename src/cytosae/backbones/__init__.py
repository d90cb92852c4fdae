"""Backbones: a frozen vision transformer turns an image into tokens."""

from cytosae.backbones._packaged import packaged_weights
from cytosae.backbones._preprocess import Preprocessing, to_input
from cytosae.backbones._registry import BACKBONES, BackboneInfo, load_backbone
from cytosae.backbones._vit import Backbone

__all__ = [
    "BACKBONES",
    "Backbone",
    "BackboneInfo",
    "Preprocessing",
    "load_backbone",
    "packaged_weights",
    "to_input",
]
