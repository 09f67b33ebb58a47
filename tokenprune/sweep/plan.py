"""Expand a sweep file into cells: one (model, task, pruner, budget, seed) each, with a stable id."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenprune.budget import Account, Budget
from tokenprune.errors import ConfigError, PrerequisiteError, TokenPruneError
from tokenprune.plugins import Host
from tokenprune.sweep.config import REFERENCE, LensConfig, PrunerEntry, SweepConfig, TaskEntry
from tokenprune.sweep.environment import version_of
from tokenprune.sweep.identity import cell_id, directory_digest
from tokenprune.tasks.base import Task


class PlanChangedError(TokenPruneError):
    """A worker finds something else than what was planned, and must not file what it gives under the planned id."""


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
        """The cell's id (see `tokenprune.sweep.identity`)."""
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
        """Short name for people: `pruner/task@budget`, with the seed where it is not 0."""
        seed = f" seed {self.seed}" if self.seed else ""
        return f"{self.label}/{self.task}@{self.budget_label}{seed}"

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


@dataclass(frozen=True, slots=True)
class _Subject:
    """What the cells of one model and task share."""

    model: str
    model_digest: str
    task: TaskEntry
    task_version: str
    task_digest: str
    samples: int
    max_new_tokens: int


def plan_cells(config: SweepConfig, host: Host) -> tuple[Cell, ...]:
    """All cells of a sweep, the unpruned ones first within their model and task.

    A pruner without an option `seed` is deterministic and gets one cell per budget, whatever the list of seeds.

    Raises:
        UnknownNameError: A name is not installed.
        PrerequisiteError: A model or the data of a task is not on this machine.
    """
    cells: dict[str, Cell] = {}
    for model in config.models:
        digest = model_digest(model, host)
        for entry in config.tasks:
            subject = _subject(model, digest, entry, config, host)
            for cell in _cells_of(subject, config, host):
                cells.setdefault(cell.id, cell)
    return tuple(cells.values())


def model_digest(name: str, host: Host) -> str:
    """Hash of the weights and settings behind a model name; for a hub name the commit that is loaded.

    Raises:
        UnknownNameError: The name is neither registered nor a directory nor a hub name.
        PrerequisiteError: The model has no weights as safetensors, or the hub cannot be reached.
    """
    from tokenprune.models.loading import model_path
    from tokenprune.models.weights import check_weights

    path = model_path(name, host)
    if Path(path).is_dir():
        check_weights(Path(path))
        return _files(path, host)
    if Path(path).is_absolute() or path.startswith("."):
        raise PrerequisiteError(f"no model directory at `{path}`", hint="give a directory or a hub name")
    snapshot = _snapshot(path)
    check_weights(snapshot)
    return snapshot.name


def _files(path: str, host: Host) -> str:
    """Hash of a model directory, with that of the model that it changes where it holds an adapter."""
    from tokenprune.models.adapters import adapter_in

    own, adapter = directory_digest(Path(path)), adapter_in(path)
    if adapter is None:
        return own
    return hashlib.sha256(f"{own} {model_digest(adapter.base, host)}".encode()).hexdigest()[: len(own)]


def planned_model(cell: Cell, host: Host) -> str:
    """What to load a cell's model from: a hub name stands for the commit of the plan, whatever it stands for by now.

    Raises:
        UnknownNameError: The name is neither registered nor a directory nor a hub name.
        PrerequisiteError: The hub cannot be reached.
    """
    from tokenprune.models.loading import model_path

    path = model_path(cell.model, host)
    if Path(path).is_dir() or Path(path).is_absolute() or path.startswith("."):
        return cell.model
    return str(_snapshot(path, cell.model_digest))


def check_model(cell: Cell, host: Host) -> None:
    """Make sure that the files of a cell's model are those of the plan; asked after they were loaded.

    Raises:
        PlanChangedError: They are not.
    """
    from tokenprune.models.loading import model_path

    path = Path(model_path(cell.model, host))
    if path.is_dir():  # a commit of a hub does not change
        _must_be(f"the files of model `{cell.model}`", _files(str(path), host), cell.model_digest)


def check_task(cell: Cell, task: Task) -> None:
    """Make sure that a cell's task is that of the plan.

    Raises:
        PlanChangedError: It is not.
    """
    _must_be(f"the version of task `{cell.task}`", str(task.version), cell.task_version)
    _must_be(f"the data of task `{cell.task}`", str(task.digest()), cell.task_digest)


def check_pruner(cell: Cell, host: Host) -> None:
    """Make sure that a cell's pruner is that of the plan.

    Raises:
        PlanChangedError: Another plugin, or another version, has it here.
    """
    found = host.pruners.owner(cell.pruner)
    _must_be(f"the plugin of pruner `{cell.pruner}`", found, cell.distribution)
    _must_be(f"the version of `{found}`", version_of(found), cell.distribution_version)


def _must_be(what: str, found: str, planned: str) -> None:
    if found != planned:
        raise PlanChangedError(
            f"{what} changed since the plan was made ({planned or 'none'} to {found or 'none'})",
            hint="run the sweep again: it plans anew, with what is there now; machines that share it need the same",
        )


def _snapshot(name: str, commit: str | None = None) -> Path:
    """The files of a hub name on this machine."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, revision=commit))
    except Exception as error:
        raise PrerequisiteError(
            f"cannot get the model `{name}`: {str(error).strip().splitlines()[0]}",
            hint="check the name and the network, or give a directory",
        ) from error


def _subject(model: str, digest: str, entry: TaskEntry, config: SweepConfig, host: Host) -> _Subject:
    spec = host.tasks.get(entry.name)
    try:
        task = spec.build(entry.options)
    except (TokenPruneError, TypeError, ValueError) as error:
        if isinstance(error, TokenPruneError) and error.hint:
            raise
        raise ConfigError(f"task `{entry.name}`: {error}", hint=f"its options: {dict(spec.defaults)}") from error
    size = len(task)
    if size < 1:
        raise ConfigError(f"task `{entry.name}` has no samples", hint="check its options")
    return _Subject(
        model=model,
        model_digest=digest,
        task=entry,
        task_version=str(task.version),
        task_digest=str(task.digest()),
        samples=size if config.limit is None else min(config.limit, size),
        max_new_tokens=config.max_new_tokens or int(task.max_new_tokens),
    )


def _cells_of(subject: _Subject, config: SweepConfig, host: Host) -> Iterator[Cell]:
    listed = [entry for entry in config.pruners if entry.name == REFERENCE]
    reference = _cell(subject, config, host, listed[0] if listed else PrunerEntry(name=REFERENCE), None, 0, None)
    yield reference
    for entry in config.pruners:
        if entry.name == REFERENCE:
            continue
        seeds = config.seeds if _is_seeded(entry, host) else config.seeds[:1]
        for seed in seeds:
            for budget in config.budgets:
                yield _cell(subject, config, host, entry, budget.budget(config.account), seed, reference.id)


def _is_seeded(entry: PrunerEntry, host: Host) -> bool:
    """Whether the sweep's seeds are the pruner's: it has an option `seed`, left open, that is of effect.

    A pruner whose randomness comes from fingerprints is deterministic under options that need none.
    """
    spec = host.pruners.get(entry.name)
    if "seed" not in spec.defaults or "seed" in entry.options:
        return False
    return "fingerprint" not in spec.needs or "fingerprint" in spec.build(entry.options).needs


def _cell(
    subject: _Subject,
    config: SweepConfig,
    host: Host,
    entry: PrunerEntry,
    budget: Budget | None,
    seed: int,
    reference: str | None,
) -> Cell:
    spec = host.pruners.get(entry.name)
    options = {**spec.defaults, **spec.validate(entry.options)}
    if _is_seeded(entry, host):
        options["seed"] = seed
    distribution = host.pruners.owner(entry.name)
    return Cell(
        model=subject.model,
        model_digest=subject.model_digest,
        task=subject.task.name,
        task_version=subject.task_version,
        task_digest=subject.task_digest,
        task_options=dict(subject.task.options),
        samples=subject.samples,
        pruner=entry.name,
        label=entry.title,
        options={key: list(value) if isinstance(value, tuple) else value for key, value in options.items()},
        distribution=distribution,
        distribution_version=version_of(distribution),
        budget_ratio=None if budget is None else budget.ratio,
        budget_tokens=None if budget is None else budget.tokens,
        account="kept" if budget is None else budget.account,
        seed=seed,
        dtype=config.dtype,
        attention=config.attention,
        positions=config.positions if budget is not None else None,
        batch_size=config.batch_size,
        max_new_tokens=subject.max_new_tokens,
        lens=_lens(config.lens) if budget is not None else {},
        efficiency=config.efficiency.settings() if config.efficiency.enabled else {},
        reference=reference,
    )


def _lens(section: LensConfig) -> dict[str, Any]:
    """The settings of the lens, or nothing where it is off (so that unused settings change no id)."""
    return section.model_dump(exclude={"enabled"}) if section.enabled else {}
