"""Patients: cohorts, profiles, differential concepts, classification."""

from cytosae.patients._simulate import draw_cohort, simulate_cohort

__all__ = ["draw_cohort", "simulate_cohort"]
