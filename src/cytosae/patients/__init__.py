"""Patients: simulated cohorts, profiles, differential concepts, classification, and a patient explained."""

from cytosae.patients._artifact import KIND, VERSION, Patients, read_patients, write_patients
from cytosae.patients._classify import Classification, classify
from cytosae.patients._cohort import Cohort, read_cohort
from cytosae.patients._designs import Extras
from cytosae.patients._differential import DifferentialConfig, differential
from cytosae.patients._likeness import Likeness
from cytosae.patients._linear import Contributions, LinearModel, contributions, load_model
from cytosae.patients._plan import FixedFolds, read_fixed_folds
from cytosae.patients._pooled import PooledTokens, pool_tokens
from cytosae.patients._predict import Prediction, Unusual, predict_patients, prediction_record
from cytosae.patients._profiles import ProfileRule, profile_patients
from cytosae.patients._protocol import MODELS, ClassifyConfig
from cytosae.patients._simulate import draw_cohort, simulate_cohort
from cytosae.patients._spec import CohortSpec, DiagnosisSpec, packaged_specs, parse_spec, read_spec

__all__ = [
    "KIND",
    "MODELS",
    "VERSION",
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
    "Unusual",
    "classify",
    "contributions",
    "differential",
    "draw_cohort",
    "load_model",
    "packaged_specs",
    "parse_spec",
    "pool_tokens",
    "predict_patients",
    "prediction_record",
    "profile_patients",
    "read_cohort",
    "read_fixed_folds",
    "read_patients",
    "read_spec",
    "simulate_cohort",
    "write_patients",
]
