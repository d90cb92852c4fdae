"""Sparse autoencoders: the dictionary as it is used, its files, and the mathematics of one training step."""

from cytosae.sae._bundled import BUNDLED, DEFAULT, bundled_folder, find_sae, is_bundled
from cytosae.sae._io import KIND, VERSION, load_sae, round_sae, save_sae
from cytosae.sae._metrics import ReconstructionSums, pca_fvu
from cytosae.sae._model import ACTIVATIONS, SparseAutoencoder

__all__ = [
    "ACTIVATIONS",
    "BUNDLED",
    "DEFAULT",
    "KIND",
    "VERSION",
    "ReconstructionSums",
    "SparseAutoencoder",
    "bundled_folder",
    "find_sae",
    "is_bundled",
    "load_sae",
    "pca_fvu",
    "round_sae",
    "save_sae",
]
