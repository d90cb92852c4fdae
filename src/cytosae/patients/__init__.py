"""Patients: simulated cohorts, profiles, differential concepts, classification, and a patient explained."""

from cytosae.patients._artifact import KIND, VERSION, Patients, read_patients, write_patients
from cytosae.patients._classify import Classification, classify
from cytosae.patients._cohort import Cohort, read_cohort
from cytosae.patients._designs import Extras
from cytosae.patients._differential import DifferentialConfig, differential
from cytosae.patients._driving import concept_cells, driving_cells, driving_patches, hit_cells, strongest_patches
from cytosae.patients._few import Rarefaction, rarefied_profiles, shrunken_profiles
from cytosae.patients._likeness import Likeness
from cytosae.patients._lineage import trained_among
from cytosae.patients._linear import Contributions, LinearModel, contributions, load_model
from cytosae.patients._plan import FixedFolds, read_fixed_folds
from cytosae.patients._plots import against_each_other, volcano
from cytosae.patients._pooled import PooledTokens, pool_tokens
from cytosae.patients._predict import Prediction, Unusual, predict_patients, prediction_record
from cytosae.patients._profiles import ProfileRule, profile_patients
from cytosae.patients._protocol import MODELS, ClassifyConfig
from cytosae.patients._published import published_profiles
from cytosae.patients._rare import (
    PLANTED,
    average_precision,
    concepts_chosen_elsewhere,
    planted_concepts,
    precision_within_patients,
    read_annotations,
    score_annotations,
)
from cytosae.patients._sensitivity import sensitivity
from cytosae.patients._simulate import draw_cohort, simulate_cohort
from cytosae.patients._spec import BatchSpec, CohortSpec, DiagnosisSpec, packaged_specs, parse_spec, read_spec

__all__ = [
    "KIND",
    "MODELS",
    "PLANTED",
    "VERSION",
    "BatchSpec",
    "Classification",
    "ClassifyConfig",
    "Cohort",
    "CohortSpec",
    "Contributions",
    "DiagnosisSpec",
    "DifferentialConfig",
    "Extras",
    "FixedFolds",
    "Likeness",
    "LinearModel",
    "Patients",
    "PooledTokens",
    "Prediction",
    "ProfileRule",
    "Rarefaction",
    "Unusual",
    "against_each_other",
    "average_precision",
    "classify",
    "concept_cells",
    "concepts_chosen_elsewhere",
    "contributions",
    "differential",
    "draw_cohort",
    "driving_cells",
    "driving_patches",
    "hit_cells",
    "load_model",
    "packaged_specs",
    "parse_spec",
    "planted_concepts",
    "pool_tokens",
    "precision_within_patients",
    "predict_patients",
    "prediction_record",
    "profile_patients",
    "published_profiles",
    "rarefied_profiles",
    "read_annotations",
    "read_cohort",
    "read_fixed_folds",
    "read_patients",
    "read_spec",
    "score_annotations",
    "sensitivity",
    "shrunken_profiles",
    "simulate_cohort",
    "strongest_patches",
    "trained_among",
    "volcano",
    "write_patients",
]
