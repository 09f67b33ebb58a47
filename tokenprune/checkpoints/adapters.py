"""Directories that hold an adapter of PEFT and name the model that it changes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenprune.errors import IncompatibleError, PrerequisiteError
from tokenprune.families.unwrap import adapter_refusal

_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
#: Files of a processor; an adapter may bring one of its own.
_PROCESSOR = ("processor_config.json", "preprocessor_config.json", "tokenizer_config.json")


@dataclass(frozen=True)
class Adapter:
    """An adapter beside its model.

    Args:
        folder: The directory with its weights.
        base: Directory or hub name of the model that it changes.
    """

    folder: Path
    base: str

    @property
    def processor(self) -> str:
        """Directory or hub name of the processor: the adapter's own, where it brings one whole."""
        return str(self.folder) if all((self.folder / name).is_file() for name in _PROCESSOR[1:]) else self.base

    def put_into(self, model: Any) -> None:
        """Load the adapter into its model and make it active.

        Raises:
            PrerequisiteError: PEFT is missing, or the adapter does not fit the model.
            IncompatibleError: Models with an adapter of this kind cannot be pruned.
        """
        try:
            from peft import PeftConfig
        except ImportError as error:
            raise PrerequisiteError(
                f"`{self.folder}` holds an adapter, and the package `peft` is missing", hint="pip install peft"
            ) from error
        refusal = adapter_refusal(PeftConfig.from_pretrained(str(self.folder)))
        if refusal is not None:
            raise IncompatibleError(
                f"the model of `{self.folder}` cannot be pruned: {refusal.reason}", hint=refusal.hint
            )
        try:
            model.load_adapter(str(self.folder))
        except (RuntimeError, ValueError, KeyError) as error:
            said = " ".join(str(error).split())[:200]
            raise PrerequisiteError(
                f"the adapter in `{self.folder}` does not fit `{self.base}`: {said}",
                hint="load it with the model that it was trained on",
            ) from error


def adapter_in(path: str) -> Adapter | None:
    """The adapter that a directory holds, `None` where it holds none or a whole model.

    Raises:
        PrerequisiteError: It names no model, or its weights are not there as safetensors.
    """
    folder = Path(path)
    if not (folder / _CONFIG).is_file() or (folder / "config.json").is_file():
        return None
    base = json.loads((folder / _CONFIG).read_text(encoding="utf-8")).get("base_model_name_or_path")
    if not base:
        raise PrerequisiteError(
            f"`{folder}` holds an adapter that names no model", hint=f"set `base_model_name_or_path` in its {_CONFIG}"
        )
    if not (Path(base).is_dir() or ("/" in base and not Path(base).is_absolute())):
        raise PrerequisiteError(
            f"the adapter in `{folder}` changes the model `{base}`, which is not there",
            hint=f"set `base_model_name_or_path` in its {_CONFIG} to the model's directory or hub name",
        )
    if not (folder / _WEIGHTS).is_file():
        raise PrerequisiteError(
            f"`{folder}` holds an adapter without `{_WEIGHTS}`", hint="save it with `save_pretrained` of PEFT"
        )
    return Adapter(folder, str(base))
