"""What identifies a checkpoint: a hash of its files, or the commit of the hub that is loaded."""

from __future__ import annotations

import hashlib
from pathlib import Path

from tokenprune.checkpoints.adapters import adapter_in
from tokenprune.checkpoints.loading import model_path
from tokenprune.checkpoints.weights import check_weights
from tokenprune.errors import PrerequisiteError
from tokenprune.plugins import Host

DIGEST_LENGTH = 16

#: Files of a model directory that decide what it computes.
_MODEL_FILES = ("*.safetensors", "*.json", "*.jinja", "*.txt", "*.model")


def directory_digest(directory: Path) -> str:
    """Hash of the model files of a directory, names and contents; where the directory lies does not matter."""
    digest = hashlib.sha256()
    files = {path for pattern in _MODEL_FILES for path in directory.rglob(pattern) if path.is_file()}
    for path in sorted(files, key=lambda found: found.relative_to(directory).as_posix()):
        digest.update(path.relative_to(directory).as_posix().encode() + b"\0")
        with path.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()[:DIGEST_LENGTH]


def model_digest(name: str, host: Host) -> str:
    """Hash of the weights and settings behind a model name; for a hub name the commit that is loaded.

    Raises:
        UnknownNameError: The name is neither registered nor a directory nor a hub name.
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
    """Hash of a model directory, with that of the model that it changes where it holds an adapter."""
    own, adapter = directory_digest(Path(path)), adapter_in(path)
    if adapter is None:
        return own
    return hashlib.sha256(f"{own} {model_digest(adapter.base, host)}".encode()).hexdigest()[: len(own)]


def snapshot(name: str, commit: str | None = None) -> Path:
    """The files of a hub name on this machine."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, revision=commit))
    except Exception as error:
        raise PrerequisiteError(
            f"cannot get the model `{name}`: {str(error).strip().splitlines()[0]}",
            hint="check the name and the network, or give a directory",
        ) from error
