"""Sparse autoencoders: the dictionary as it is used, its files, and the mathematics of one training step."""

from cytosae.sae._io import KIND, VERSION, load_sae, save_sae
from cytosae.sae._metrics import ReconstructionSums, pca_fvu
from cytosae.sae._model import ACTIVATIONS, SparseAutoencoder

__all__ = [
    "ACTIVATIONS",
    "KIND",
    "VERSION",
    "ReconstructionSums",
    "SparseAutoencoder",
    "load_sae",
    "pca_fvu",
    "save_sae",
]
