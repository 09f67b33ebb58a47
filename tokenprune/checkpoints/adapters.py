"""PEFT adapters: directories with an adapter, which name the base model that it changes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenprune.errors import IncompatibleError, PrerequisiteError
from tokenprune.families.unwrap import adapter_refusal

_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
#: Files of a processor; an adapter may have its own.
_PROCESSOR = ("processor_config.json", "preprocessor_config.json", "tokenizer_config.json")


@dataclass(frozen=True)
class Adapter:
    """An adapter and its base model.

    Args:
        folder: The directory with the adapter's weights.
        base: Directory or hub name of the base model.
    """

    folder: Path
    base: str

    @property
    def processor(self) -> str:
        """Directory or hub name of the processor: the adapter's own if it is complete, otherwise the base model's."""
        return str(self.folder) if all((self.folder / name).is_file() for name in _PROCESSOR[1:]) else self.base

    def put_into(self, model: Any) -> None:
        """Load the adapter into its base model and activate it.

        Raises:
            PrerequisiteError: PEFT is missing, or the adapter does not fit the model.
            IncompatibleError: A model with an adapter of this kind cannot be pruned.
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
            reason = " ".join(str(error).split())[:200]
            raise PrerequisiteError(
                f"the adapter in `{self.folder}` does not fit `{self.base}`: {reason}",
                hint="load it with the model that it was trained on",
            ) from error


def adapter_in(path: str) -> Adapter | None:
    """The adapter in a directory; `None` if the directory has no adapter, or a complete model.

    Raises:
        PrerequisiteError: The adapter names no base model, or its weights as safetensors are missing.
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
            f"the adapter in `{folder}` changes the model `{base}`, which does not exist here",
            hint=f"set `base_model_name_or_path` in its {_CONFIG} to the model's directory or hub name",
        )
    if not (folder / _WEIGHTS).is_file():
        raise PrerequisiteError(
            f"`{folder}` holds an adapter without `{_WEIGHTS}`", hint="save it with `save_pretrained` of PEFT"
        )
    return Adapter(folder, str(base))
