"""One golden file: tensors `in.*` and `out.*`, and the parameters of the published run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenprune.errors import PrerequisiteError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Case:
    """The content of one file.

    Args:
        path: The file; its folder names the method.
        tensors: By full name, `in.*` and `out.*`.
        parameters: The header's `hyper_parameters`.
    """

    path: Path
    tensors: Mapping[str, Tensor]
    parameters: Mapping[str, Any]

    @classmethod
    def read(cls, path: Path) -> Case:
        """Read a file.

        Raises:
            PrerequisiteError: It is not a golden file.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, "pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
                parameters = json.loads((file.metadata() or {})["hyper_parameters"])
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise PrerequisiteError(
                f"`{path}` is no golden file: {error}", hint="a safetensors file with `hyper_parameters` in its header"
            ) from error
        return cls(path, tensors, parameters)

    def given(self, name: str) -> Tensor:
        """An input, without the prefix `in.`."""
        return self.tensors[f"in.{name}"]

    def wanted(self, name: str) -> Tensor:
        """An expected output, without the prefix `out.`."""
        return self.tensors[f"out.{name}"]

    def has(self, name: str) -> bool:
        """Whether there is a tensor of this full name."""
        return name in self.tensors
