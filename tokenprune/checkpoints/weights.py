"""Accept weights as safetensors only, because loading a pickle may run any program."""

from __future__ import annotations

import shlex
from pathlib import Path

from tokenprune.errors import PrerequisiteError

SUFFIX = ".safetensors"
_PICKLED = (".bin", ".pt", ".pth", ".ckpt")
_CONVERT = (
    "from transformers import AutoModelForImageTextToText as M; "
    "M.from_pretrained({0!r}, use_safetensors=False).save_pretrained({0!r})"
)


def check_weights(folder: Path, convert: str = _CONVERT) -> None:
    """Make sure that a directory has weights as safetensors.

    Args:
        folder: The model directory.
        convert: Python code that converts pickled weights to safetensors; `{0!r}` stands for the directory.

    Raises:
        PrerequisiteError: The directory has no weights, or only pickled ones.
    """
    if any(folder.glob(f"*{SUFFIX}")):
        return
    # files such as `training_args.bin` are not weights
    pickled = sorted(path.name for path in folder.glob("*model*") if path.suffix in _PICKLED)
    if not pickled:
        raise PrerequisiteError(f"`{folder}` holds no weights", hint="train or download the model first")
    raise PrerequisiteError(
        f"`{folder}` holds its weights as `{pickled[0]}`; only safetensors are loaded, because a pickle may run any "
        "program",
        hint=f"if you trust the file, convert it: python -c {shlex.quote(convert.format(str(folder)))}",
    )
