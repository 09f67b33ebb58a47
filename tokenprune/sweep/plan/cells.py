"""Expand a sweep file into cells: one (model, task, pruner, budget, seed) each, with a stable id."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tokenprune.budget import Budget
from tokenprune.cells.cell import REFERENCE, Cell
from tokenprune.errors import ConfigError, TokenPruneError
from tokenprune.evaluation.environment import version_of
from tokenprune.plugins import Host
from tokenprune.sweep.config.schema import LensConfig, PrunerEntry, SweepConfig, TaskEntry


@dataclass(frozen=True, slots=True)
class _PlannedTask:
    """What the cells of one task share."""

    entry: TaskEntry
    version: str
    digest: str
    samples: int
    max_new_tokens: int


@dataclass(frozen=True, slots=True)
class _Subject:
    """What the cells of one model and task share."""

    model: str
    model_digest: str
    task: _PlannedTask


def plan_cells(config: SweepConfig, host: Host) -> tuple[Cell, ...]:
    """All cells of a sweep, the unpruned ones first within their model and task.

    A pruner without an option `seed` is deterministic and gets one cell per budget, whatever the list of seeds.

    Raises:
        UnknownNameError: A name is not installed.
        PrerequisiteError: A model or the data of a task is not on this machine.
    """
    from tokenprune.checkpoints.digest import model_digest  # imports torch

    cells: dict[str, Cell] = {}
    digests = [(model, model_digest(model, host)) for model in config.models]
    tasks = [_planned(entry, config, host) for entry in config.tasks]  # once: a task may read and hash a large file
    for model, digest in digests:
        for task in tasks:
            for cell in _cells_of(_Subject(model, digest, task), config, host):
                cells.setdefault(cell.id, cell)
    return tuple(cells.values())


def _planned(entry: TaskEntry, config: SweepConfig, host: Host) -> _PlannedTask:
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
    return _PlannedTask(
        entry=entry,
        version=str(task.version),
        digest=str(task.digest()),
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
        task=subject.task.entry.name,
        task_version=subject.task.version,
        task_digest=subject.task.digest,
        task_options=dict(subject.task.entry.options),
        samples=subject.task.samples,
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
        max_new_tokens=subject.task.max_new_tokens,
        lens=_lens(config.lens) if budget is not None else {},
        efficiency=config.efficiency.settings() if config.efficiency.enabled else {},
        reference=reference,
    )


def _lens(section: LensConfig) -> dict[str, Any]:
    """The settings of the lens, or nothing where it is off (so that unused settings change no id)."""
    return section.model_dump(exclude={"enabled"}) if section.enabled else {}
