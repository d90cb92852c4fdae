"""Adapting the later blocks of a backbone to cells, without labels."""

from cytosae.training.adapt._adapt import adapt
from cytosae.training.adapt._adaptation import Adaptation
from cytosae.training.adapt._views import view

__all__ = ["Adaptation", "adapt", "view"]
