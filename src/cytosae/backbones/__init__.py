"""Backbones: a frozen vision transformer turns an image into tokens."""

from cytosae.backbones._adapted import ADAPTED, ADAPTED_FILE, ADAPTED_VERSION
from cytosae.backbones._blood import BLOOD, blood_folder, pack_difference, unpack_difference, write_blood
from cytosae.backbones._compile import why_not_compiled
from cytosae.backbones._packaged import packaged_weights
from cytosae.backbones._preprocess import Preprocessing, to_input
from cytosae.backbones._registry import BACKBONES, BackboneInfo, load_backbone
from cytosae.backbones._tap import Layer, Tap, known_layer, layer_option, layer_text, parse_layer, same_layer
from cytosae.backbones._vit import Backbone, probe

__all__ = [
    "ADAPTED",
    "ADAPTED_FILE",
    "ADAPTED_VERSION",
    "BACKBONES",
    "BLOOD",
    "Backbone",
    "BackboneInfo",
    "Layer",
    "Preprocessing",
    "Tap",
    "blood_folder",
    "known_layer",
    "layer_option",
    "layer_text",
    "load_backbone",
    "pack_difference",
    "packaged_weights",
    "parse_layer",
    "probe",
    "same_layer",
    "to_input",
    "unpack_difference",
    "why_not_compiled",
    "write_blood",
]
