"""The sections of a scorecard, in the order of the page."""

from __future__ import annotations

from cytosae.evaluation._reconstruction import Reconstruction
from cytosae.evaluation._section import Section

SECTIONS: tuple[Section, ...] = (Reconstruction(),)
