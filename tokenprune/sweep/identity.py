"""What makes two cells the same cell: a versioned, pure function of everything that changes a result."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

CELL_ID_VERSION = 2
"""Raise it whenever the same facts must give another id; the golden table in the tests pins every version."""

ID_LENGTH = 16

#: Files of a model directory that decide what it computes.
_MODEL_FILES = ("*.safetensors", "*.json", "*.jinja", "*.txt", "*.model")


def cell_id(facts: Mapping[str, Any]) -> str:
    """Id of a cell: the first 16 hexadecimal digits of the SHA-256 of its facts as canonical JSON.

    Args:
        facts: Plain JSON types; the order of keys does not matter.

    Raises:
        ValueError: A number is not finite (JSON has no word for it).
        TypeError: A value is not a JSON type.
    """
    return hashlib.sha256(canonical({"cell_id_version": CELL_ID_VERSION, **facts}).encode()).hexdigest()[:ID_LENGTH]


def canonical(value: Any) -> str:
    """JSON with sorted keys, no white space and ASCII only: equal values give equal texts on every machine."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def directory_digest(directory: Path) -> str:
    """Hash of the model files of a directory, names and contents; where the directory lies does not matter."""
    digest = hashlib.sha256()
    files = {path for pattern in _MODEL_FILES for path in directory.rglob(pattern) if path.is_file()}
    for path in sorted(files, key=lambda found: found.relative_to(directory).as_posix()):
        digest.update(path.relative_to(directory).as_posix().encode() + b"\0")
        with path.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()[:ID_LENGTH]
