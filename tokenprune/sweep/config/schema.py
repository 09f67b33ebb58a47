"""A sweep file: YAML with positions, checked as a whole, every problem with its line and the close match."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError

from tokenprune.budget import Account, Budget
from tokenprune.cells.cell import canonical
from tokenprune.errors import BudgetError, ConfigError, TokenPruneError, UnknownNameError
from tokenprune.plugins import NO_TRACKER, Host
from tokenprune.registry import load_target
from tokenprune.sweep.config.calibrated import with_calibrated
from tokenprune.sweep.config.executor_options import check_option
from tokenprune.sweep.config.paths import long_form, with_paths
from tokenprune.sweep.config.pruner_entries import expand_entries
from tokenprune.sweep.config.yaml_source import Location, Source, read_yaml

DEFAULT_FILE = "default.yaml"


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TaskEntry(_Section):
    """A task by name, with its options."""

    name: str
    options: dict[str, Any] = {}


class PrunerEntry(_Section):
    """A pruner by name, with its options and the label that tables show."""

    name: str
    options: dict[str, Any] = {}
    label: str = ""

    @property
    def title(self) -> str:
        """The label, or the name with the options that were set."""
        if self.label:
            return self.label
        options = ",".join(f"{key}={value}" for key, value in sorted(self.options.items()))
        return f"{self.name}[{options}]" if options else self.name


class ExecutorEntry(_Section):
    """How cells are run: an executor by name, with its options."""

    name: str
    options: dict[str, Any] = {}


class BudgetEntry(_Section):
    """One budget: a ratio (`0.25`, `25%`) or a number of tokens (`64`), as `Budget.parse` reads it."""

    ratio: float | None = None
    tokens: int | None = None

    @model_validator(mode="before")
    @classmethod
    def _written(cls, value: Any) -> Any:
        """What people write in the long form; whole figures in the long form are checked alike."""
        if isinstance(value, Mapping):
            if not set(value) <= set(cls.model_fields):
                return value  # an unknown key: the check of the keys tells it
            made = _budget(lambda: Budget(**value))
        else:
            made = _budget(lambda: Budget.parse(value))
        return {"ratio": made.ratio, "tokens": made.tokens}

    def budget(self, account: Account) -> Budget:
        """The budget object under the sweep's account."""
        return Budget(ratio=self.ratio, tokens=self.tokens, account=account)


class LensConfig(_Section):
    """Exact dual-form and output errors on the first few samples."""

    enabled: bool = True
    samples: int = Field(default=2, ge=1)


class EfficiencyConfig(_Section):
    """Time, memory, FLOPs and energy of the first sample, alone on the device (`tokenprune.evaluation.cost`)."""

    enabled: bool = True
    warmup: int = Field(default=1, ge=0)
    repeats: int = Field(default=12, ge=1)
    new_tokens: int = Field(default=8, ge=1)
    max_repeats: int | None = Field(default=None, ge=1)
    tolerance: float = Field(default=0.05, gt=0.0, allow_inf_nan=False)
    threads: int | None = Field(default=None, ge=1)
    busy: Literal["mark", "refuse"] = "mark"
    floor: bool = True
    time_limit_s: float = Field(default=4.0, gt=0.0, allow_inf_nan=False)

    @field_validator("max_repeats")
    @classmethod
    def _at_least_the_least(cls, value: int | None, info: ValidationInfo) -> int | None:
        least = info.data.get("repeats", 1)
        if value is not None and value < least:
            raise PydanticCustomError("max_repeats", "fewer than the {least} that `repeats` asks for", {"least": least})
        return value

    def settings(self) -> dict[str, Any]:
        """What a cell's identity sees: the first three keys always, the others, which came later, where they are set.

        So the cells of a file that does not know the later keys keep their ids.
        """
        first = {"warmup", "repeats", "new_tokens"}
        return {**self.model_dump(include=first), **self.model_dump(exclude={"enabled", *first}, exclude_defaults=True)}


class SweepConfig(_Section):
    """Everything that a sweep is; see `docs/sweep-files.md` for the keys."""

    models: tuple[str, ...] = Field(default=("scenes",), min_length=1)
    tasks: tuple[TaskEntry, ...] = Field(default=(TaskEntry(name="scenes"),), min_length=1)
    pruners: tuple[PrunerEntry, ...] = Field(min_length=1)
    budgets: tuple[BudgetEntry, ...] = Field(min_length=1)
    account: Account = "kept"
    seeds: tuple[int, ...] = Field(default=(0,), min_length=1)
    limit: int | None = Field(default=None, ge=1)
    batch_size: int = Field(default=16, ge=1)
    max_new_tokens: int | None = Field(default=None, ge=1)
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    attention: str = "sdpa"
    positions: Literal["keep", "compact"] | None = None
    executor: ExecutorEntry = ExecutorEntry(name="local")
    device: tuple[str, ...] = Field(default=("auto",), min_length=1)
    lens: LensConfig = LensConfig()
    efficiency: EfficiencyConfig = EfficiencyConfig()
    overlays: int = Field(default=2, ge=0)
    share: int = Field(default=12, ge=1)
    trackers: tuple[str, ...] | None = None
    """Names of the trackers that hear of the sweep; `None` is all that are installed, and no name is none of them."""
    out: str | None = None

    @field_validator("models", "seeds", "device", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return [value] if isinstance(value, str | int) else value

    @field_validator("tasks", "pruners", mode="before")
    @classmethod
    def _names(cls, value: Any) -> Any:
        items = [value] if isinstance(value, str | Mapping) else value
        return [{"name": item} if isinstance(item, str) else item for item in items] if _is_list(items) else items

    @field_validator("tasks", mode="before")
    @classmethod
    def _tables(cls, value: Any) -> Any:
        """`{table: my.parquet, question: q}` is short for `{name: table, options: {...}}`."""
        items = [value] if isinstance(value, Mapping) else value
        return [long_form(item) for item in items] if _is_list(items) else items

    @field_validator("executor", mode="before")
    @classmethod
    def _executor(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @field_validator("trackers", mode="before")
    @classmethod
    def _trackers(cls, value: Any) -> Any:
        if isinstance(value, bool):
            return None if value else []
        names = [value] if isinstance(value, str) else value
        if not _is_list(names) or NO_TRACKER not in names:
            return list(dict.fromkeys(names)) if _is_list(names) and all(isinstance(it, str) for it in names) else names
        if len(names) > 1:
            raise PydanticCustomError("trackers", "`none` means no tracker, so it stands alone")
        return []

    @field_validator("budgets", mode="before")
    @classmethod
    def _budgets(cls, value: Any) -> Any:
        return [value] if isinstance(value, str | int | float) else value

    @model_validator(mode="before")
    @classmethod
    def _switches(cls, data: Any) -> Any:
        """`lens: false` is short for `lens: {enabled: false}`."""
        if not isinstance(data, Mapping):
            return data
        short = {key: {"enabled": data[key]} for key in ("lens", "efficiency") if isinstance(data.get(key), bool)}
        return {**data, **short}

    def to_json(self) -> dict[str, Any]:
        """The resolved file as plain JSON types; reading it back gives an equal config."""
        return self.model_dump(mode="json")


def default_config(host: Host | None = None) -> SweepConfig:
    """The packaged default sweep.

    Args:
        host: Where given, the names in the file are checked against what is installed.
    """
    with resources.as_file(resources.files("tokenprune.sweep.config") / DEFAULT_FILE) as path:
        return load_config(path, host)


def load_config(path: str | Path, host: Host | None = None) -> SweepConfig:
    """Read and check a sweep file.

    Args:
        path: YAML file.
        host: Where given, names and pruner options are checked against what is installed.

    Raises:
        ConfigError: Everything that is wrong, one line each: `file:line:column: key: what, what is allowed`.
    """
    path = Path(path)
    source = with_calibrated(read_yaml(path), path.parent)
    return parse_config(with_paths(source, path.resolve().parent, host), host)


def with_changes(config: SweepConfig, changes: Mapping[str, Any], host: Host | None = None) -> SweepConfig:
    """The config with some top-level keys replaced, checked again (for command-line options).

    Raises:
        ConfigError: A change is not valid.
    """
    return parse_config(Source("command line", {**config.to_json(), **changes}), host)


def parse_config(source: Source, host: Host | None = None) -> SweepConfig:
    """Check parsed data; see `load_config`."""
    entries = expand_entries(source.data.get("pruners"), host)
    data = {**source.data, "pruners": entries.data} if "pruners" in source.data else source.data
    problems: list[tuple[Location, str]] = []
    config = None
    try:
        config = SweepConfig.model_validate(data)
    except ValidationError as error:
        problems = [_explain(detail) for detail in _own(error.errors(include_url=False))]
    if config is not None:
        problems = list(_duplicates(config))
        if host is not None:
            problems += _unknown_names(config, host)
    problems = [*entries.problems, *((entries.place(location), text) for location, text in problems)]
    if config is None or problems:
        lines = [f"{source.position(location)}: {_key(location)}{text}" for location, text in dict.fromkeys(problems)]
        raise ConfigError("\n".join(lines), hint="`tokenprune list` shows what is installed")
    return config


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple)


def _budget(make: Callable[[], Budget]) -> Budget:
    """A budget, its error in pydantic's words."""
    try:
        return make()
    except BudgetError as error:
        raise PydanticCustomError(
            "budget", "{problem}; {hint}", {"problem": error.message, "hint": error.hint}
        ) from None


def _own(details: Sequence[Any]) -> Iterator[Any]:
    """Pydantic's errors without "too short" of a list: entries that are wrong do not count for pydantic."""
    places = [tuple(detail["loc"]) for detail in details]
    for detail, place in zip(details, places, strict=True):
        inside = any(other[: len(place)] == place != other for other in places)
        if not (detail["type"] == "too_short" and inside):
            yield detail


def _explain(detail: Any) -> tuple[Location, str]:
    """One pydantic error as a location in the file and a sentence."""
    location: tuple[str | int, ...] = tuple(detail["loc"])
    kind = detail["type"]
    if kind == "extra_forbidden":
        known = _fields_at(location[:-1])
        close = difflib.get_close_matches(str(location[-1]), known, n=1)
        tail = f", did you mean `{close[0]}`?" if close else ""
        return location, f"unknown key{tail} (allowed: {', '.join(known)})"
    if kind == "missing":
        return location, "this key is missing"
    if kind == "budget":
        return location, detail["msg"]
    got = "" if isinstance(detail.get("input"), dict | list) else f", got {detail.get('input')!r}"
    message = detail["msg"][:1].lower() + detail["msg"][1:]
    return location, f"{message}{got}"


def _fields_at(location: Location) -> list[str]:
    """The keys that a section knows."""
    sections: dict[str, type[BaseModel]] = {
        "tasks": TaskEntry,
        "pruners": PrunerEntry,
        "budgets": BudgetEntry,
        "executor": ExecutorEntry,
        "lens": LensConfig,
        "efficiency": EfficiencyConfig,
    }
    section = sections.get(str(location[0]), SweepConfig) if location else SweepConfig
    return sorted(section.model_fields)


def _key(location: Location) -> str:
    return ".".join(str(part) for part in location) + ": " if location else ""


def _duplicates(config: SweepConfig) -> Iterator[tuple[Location, str]]:
    """Entries that would give the same row twice."""
    titles: dict[str, int] = {}
    for index, entry in enumerate(config.pruners):
        if entry.title in titles:
            yield ("pruners", index), f"`{entry.title}` is already pruners.{titles[entry.title]}; give it a `label`"
        titles.setdefault(entry.title, index)
    seen: dict[BudgetEntry, int] = {}
    for index, entry_budget in enumerate(config.budgets):
        if entry_budget in seen:
            yield ("budgets", index), f"the same budget as budgets.{seen[entry_budget]}"
        seen.setdefault(entry_budget, index)


def _unknown_names(config: SweepConfig, host: Host) -> list[tuple[Location, str]]:
    """Names and options that no installed plugin knows."""
    problems: list[tuple[Location, str]] = []

    def attempt(location: Location, check: Any, *arguments: Any) -> Any:
        try:
            return check(*arguments)
        except TokenPruneError as error:
            if location[-1] == "options" and isinstance(error, UnknownNameError):
                location = (*location, error.kind)  # an axis whose value is unknown
            problems.append((location, f"{error.message}; {error.hint}" if error.hint else error.message))
        except (TypeError, ValueError) as error:  # a pruner's own check of its options
            problems.append((location, str(error)))
        return None

    for index, name in enumerate(config.models):
        if "/" not in name and not Path(name).is_dir():
            attempt(("models", index), host.models.get, name)
    for index, task in enumerate(config.tasks):
        attempt(("tasks", index, "name"), host.tasks.get, task.name)
    same: dict[tuple[str, str], int] = {}
    for index, entry in enumerate(config.pruners):
        spec = attempt(("pruners", index, "name"), host.pruners.get, entry.name)
        if spec is None or (
            entry.options and attempt(("pruners", index, "options"), spec.build, entry.options) is None
        ):
            continue
        point = (entry.name, canonical({**spec.defaults, **spec.validate(entry.options)}))
        if point in same:  # one cell cannot stand in two rows
            other = config.pruners[same[point]].title
            problems.append(
                (("pruners", index), f"`{entry.title}` is `{other}` with other words; leave one of them out")
            )
        same.setdefault(point, index)
    for index, name in enumerate(config.trackers or ()):
        attempt(("trackers", index), host.trackers.get, name)
    executor = attempt(("executor",), host.executors.get, config.executor.name)
    if executor is not None and config.executor.options:
        make = attempt(("executor",), load_target, executor.target)
        for option, value in config.executor.options.items() if make is not None else ():
            attempt(("executor", "options", option), check_option, executor.name, make, option, value)
    return problems
