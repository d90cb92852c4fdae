"""Artifacts: written under a temporary name, flushed, renamed; hashed, versioned, and checked on reading."""

from cytosae.storage._atomic import commit_file, commit_folder, working_folder
from cytosae.storage._cache import cache_folder
from cytosae.storage._hash import hash_bytes, hash_file, hash_json
from cytosae.storage._manifest import (
    Manifest,
    artifact_hash,
    created_by,
    is_artifact,
    read_manifest,
    same_work,
    write_json,
)
from cytosae.storage._parquet import is_own_parquet, read_parquet_record, read_table, refuse_other_table, write_table

__all__ = [
    "Manifest",
    "artifact_hash",
    "cache_folder",
    "commit_file",
    "commit_folder",
    "created_by",
    "hash_bytes",
    "hash_file",
    "hash_json",
    "is_artifact",
    "is_own_parquet",
    "read_manifest",
    "read_parquet_record",
    "read_table",
    "refuse_other_table",
    "same_work",
    "working_folder",
    "write_json",
    "write_table",
]
