"""A cell: one model, task, pruner, budget and seed, and the id that all its facts make."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, Literal

from tokenprune.budget import Account, Budget
from tokenprune.errors import ConfigError

REFERENCE = "none"
"""The pruner of the unpruned cell, with which all others are compared."""

CELL_ID_VERSION = 2
"""Raise it whenever the same facts must give another id; the golden table in the tests pins every version."""

ID_LENGTH = 16

Outcome = Literal["done", "failed", "refused"]

Phase = Literal["answers", "cost"]
"""Phases of a cell: `answers` evaluates its samples; then `cost` measures it, alone on the device."""


@dataclass(frozen=True)
class Cell:
    """One point of the grid.

    Everything that may change an answer is part of its id. `model`, `label` and `reference` are not: `model_digest`
    says which weights, wherever they lie. Nor is `efficiency`: how costs are measured changes no answer, and a cell
    that is to be measured in another way keeps those that it has.
    """

    model: str
    model_digest: str
    task: str
    task_version: str
    task_digest: str
    task_options: Mapping[str, Any]
    samples: int
    pruner: str
    label: str
    options: Mapping[str, Any]
    distribution: str
    distribution_version: str
    budget_ratio: float | None
    budget_tokens: int | None
    account: Account
    seed: int
    dtype: str
    attention: str
    positions: str | None
    batch_size: int
    max_new_tokens: int
    lens: Mapping[str, Any] = field(default_factory=dict)
    efficiency: Mapping[str, Any] = field(default_factory=dict)
    reference: str | None = None
    """Id of the unpruned cell that this one is compared with; `None` for the unpruned cell itself."""

    @cached_property
    def id(self) -> str:
        """The cell's id (see `cell_id`)."""
        facts = asdict(self)
        for name in ("model", "label", "reference", "efficiency"):
            del facts[name]
        return cell_id(facts)

    @property
    def budget(self) -> Budget:
        """What the pruner is asked for; the unpruned cell asks for everything."""
        if self.budget_ratio is None and self.budget_tokens is None:
            return Budget(ratio=1.0, account=self.account)
        return Budget(ratio=self.budget_ratio, tokens=self.budget_tokens, account=self.account)

    @property
    def budget_label(self) -> str:
        """`25%`, `64`, or `all` for the unpruned cell."""
        return "all" if self.pruner == REFERENCE else self.budget.label()

    @property
    def name(self) -> str:
        """Short name for people: `pruner/task@budget`, with the seed if it is not 0."""
        seed = f" seed {self.seed}" if self.seed else ""
        return f"{self.label}/{self.task}@{self.budget_label}{seed}"

    @property
    def model_key(self) -> tuple[str, ...]:
        """What cells of the same loaded model have in common."""
        return self.model, self.model_digest, self.dtype, self.attention

    @property
    def task_key(self) -> tuple[str, ...]:
        """What cells of the same task, under the same options, have in common."""
        return self.task, self.task_version, self.task_digest, canonical(dict(self.task_options))

    def to_json(self) -> dict[str, Any]:
        """The cell as plain JSON types."""
        return {"id": self.id, **asdict(self)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Cell:
        """The inverse of `to_json`.

        Raises:
            ConfigError: The stored id is not the id of the stored facts (another version wrote it).
        """
        facts = {key: value for key, value in data.items() if key != "id"}
        try:
            cell = cls(**facts)
        except TypeError as error:
            raise ConfigError(f"not a cell of this version: {error}", hint="use a new sweep directory") from error
        if data.get("id") != cell.id:
            raise ConfigError(
                f"cell `{data.get('id')}` was written by another version of tokenprune (now `{cell.id}`)",
                hint="use a new sweep directory",
            )
        return cell


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
