"""Paths in a sweep file start at the file: models that are directories, and tables of the user's own questions."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenprune.errors import ConfigError
from tokenprune.plugins import Host
from tokenprune.sweep.config.yaml_source import Source

TABLE = "table"
"""Name of the task that reads a table, and of its option with the path."""


def with_paths(source: Source, folder: Path, host: Host | None) -> Source:
    """The sweep file with what lies beside it as absolute paths.

    Workers on other machines and later commands (`runs retry`) start elsewhere than this one. Registered names and hub
    names stay; without a host a plain word counts as registered.

    Args:
        source: The sweep file.
        folder: Its folder.
        host: Plugins, whose names of models are no paths.

    Raises:
        ConfigError: A path starts where the command was given, not at the file.
    """
    data = dict(source.data)
    problems: list[str] = []
    names = [data["models"]] if isinstance(data.get("models"), str) else data.get("models")
    if isinstance(names, list):
        data["models"] = [
            name
            if not isinstance(name, str) or (name in host.models if host is not None else "/" not in name)
            else _absolute(name, folder, "directory", f"{source.position(('models', index))}: models.{index}", problems)
            for index, name in enumerate(names)
        ]
    tasks = [data["tasks"]] if isinstance(data.get("tasks"), Mapping) else data.get("tasks")
    if isinstance(tasks, list):
        data["tasks"] = [
            _with_table(task, folder, f"{source.position(('tasks', index))}: tasks.{index}", problems)
            for index, task in enumerate(tasks)
        ]
    if problems:
        raise ConfigError("\n".join(problems), hint="give the path as seen from the sweep file, or an absolute one")
    return dataclasses.replace(source, data=data)


def long_form(task: Any) -> Any:
    """`{table: my.parquet, question: q}` is short for `{name: table, options: {...}}`."""
    short = isinstance(task, Mapping) and TABLE in task and "name" not in task
    return {"name": TABLE, "options": dict(task)} if short else task


def _with_table(task: Any, folder: Path, where: str, problems: list[str]) -> Any:
    task = long_form(task)
    options = task.get("options") if isinstance(task, Mapping) and task.get("name") == TABLE else None
    if not isinstance(options, Mapping) or not isinstance(options.get(TABLE), str):
        return task
    return {**task, "options": {**options, TABLE: _absolute(options[TABLE], folder, TABLE, where, problems)}}


def _absolute(name: str, folder: Path, kind: str, where: str, problems: list[str]) -> str:
    """The path as seen from the folder; the name itself if nothing lies there."""
    path = Path(os.path.normpath(folder / name))
    if path.is_dir() or (kind == TABLE and path.exists()) or name.startswith("."):
        return str(path)
    elsewhere = Path(name).is_dir() or (kind == TABLE and Path(name).exists())
    if not Path(name).is_absolute() and elsewhere:
        problems.append(f"{where}: no {kind} `{path}`; paths start at the sweep file")
    return name
