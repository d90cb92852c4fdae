"""Kinds of dictionaries in training, a file each, behind one small interface: encode, loss, inference."""

from cytosae.sae.models._base import Encoded, Error, Model
from cytosae.sae.models.batchtopk import BatchTopK
from cytosae.sae.models.dead import AuxK, auxiliary_term, ghost_gradients, resample
from cytosae.sae.models.jumprelu import JumpRelu
from cytosae.sae.models.matryoshka import Matryoshka, group_bounds
from cytosae.sae.models.relu import ReluL1
from cytosae.sae.models.start import cluster_rows, geometric_median, published_start, start_rows
from cytosae.sae.models.topk import TopK

#: Names that a recipe may give.
MODELS = ("relu-l1", "topk", "batchtopk", "jumprelu", "matryoshka")

__all__ = [
    "MODELS",
    "AuxK",
    "BatchTopK",
    "Encoded",
    "Error",
    "JumpRelu",
    "Matryoshka",
    "Model",
    "ReluL1",
    "TopK",
    "auxiliary_term",
    "cluster_rows",
    "geometric_median",
    "ghost_gradients",
    "group_bounds",
    "published_start",
    "resample",
    "start_rows",
]
