"""Identify a checkpoint: by a hash of its files, or by its commit on the hub."""

from __future__ import annotations

import hashlib
from pathlib import Path

from tokenprune.checkpoints.adapters import adapter_in
from tokenprune.checkpoints.loading import model_path
from tokenprune.checkpoints.weights import check_weights
from tokenprune.errors import PrerequisiteError
from tokenprune.plugins import Host

DIGEST_LENGTH = 16

#: Files of a model directory that determine what the model computes.
_MODEL_FILES = ("*.safetensors", "*.json", "*.jinja", "*.txt", "*.model")


def directory_digest(directory: Path) -> str:
    """Hash of the names and contents of a directory's model files; it does not depend on the directory's path."""
    digest = hashlib.sha256()
    files = {path for pattern in _MODEL_FILES for path in directory.rglob(pattern) if path.is_file()}
    for path in sorted(files, key=lambda found: found.relative_to(directory).as_posix()):
        digest.update(path.relative_to(directory).as_posix().encode() + b"\0")
        with path.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()[:DIGEST_LENGTH]


def model_digest(name: str, host: Host) -> str:
    """Hash of the weights and settings of a model; for a hub name, the commit.

    Raises:
        UnknownNameError: The name is no registered name, directory or hub name.
        PrerequisiteError: The model has no weights as safetensors, or the hub cannot be reached.
    """
    path = model_path(name, host)
    if Path(path).is_dir():
        check_weights(Path(path))
        return files_digest(path, host)
    if Path(path).is_absolute() or path.startswith("."):
        raise PrerequisiteError(f"no model directory at `{path}`", hint="give a directory or a hub name")
    found = snapshot(path)
    check_weights(found)
    return found.name


def files_digest(path: str, host: Host) -> str:
    """Hash of a model directory; for an adapter it includes the hash of the base model."""
    own, adapter = directory_digest(Path(path)), adapter_in(path)
    if adapter is None:
        return own
    return hashlib.sha256(f"{own} {model_digest(adapter.base, host)}".encode()).hexdigest()[: len(own)]


def snapshot(name: str, commit: str | None = None) -> Path:
    """Download the files of a hub name, or find them in the local cache.

    Raises:
        PrerequisiteError: The hub does not give them.
    """
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, revision=commit))
    except Exception as error:
        raise PrerequisiteError(
            f"cannot get the model `{name}`: {str(error).strip().splitlines()[0]}",
            hint="check the name and the network, or give a directory",
        ) from error
