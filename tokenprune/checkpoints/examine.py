"""Examine a model without its weights: its family, its parts, and where it can be cut."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Any

import torch
from torch import nn

from tokenprune.checkpoints.adapters import adapter_in
from tokenprune.checkpoints.loading import missing_package, model_path, quiet_loading
from tokenprune.errors import IncompatibleError, PrerequisiteError
from tokenprune.families.discovery import discover
from tokenprune.families.family import Family, resolve
from tokenprune.families.lookup import family_of
from tokenprune.plugins import Host
from tokenprune.registry import load_target
from tokenprune.site import SITE_KINDS


@dataclass(frozen=True)
class Examination:
    """The result of an examination.

    Args:
        model: Name of the model's class.
        model_type: Model type in the config.
        family: Name of the family that describes the model, or `None`.
        owner: Distribution that registered the family.
        parts: By part, its path and class; the class is `None` if the path does not exist.
        placeholders: By config attribute of the description, its token id; `None` if the attribute is missing.
        layer_types: By type of decoder layer, the number of layers.
        refusals: By kind of site, why the model cannot be cut there; `None` if it can.
        video: Whether prompts may hold videos.
        problem: Why the model cannot be pruned at all, or `None`.
        processor: Class of the processor; `None` if it cannot be loaded.
        processor_problem: Why the processor cannot be loaded.
    """

    model: str
    model_type: str
    family: str | None
    owner: str | None
    parts: Mapping[str, tuple[str, str | None]]
    placeholders: Mapping[str, int | None]
    layer_types: Mapping[str, int]
    refusals: Mapping[str, str | None]
    video: bool
    problem: str | None
    processor: str | None = None
    processor_problem: str | None = None


def examine(name_or_path: str, host: Host) -> Examination:
    """Examine the config and the processor of a model, by short name, directory or hub name.

    Raises:
        UnknownNameError: The name is no registered name, existing directory or hub name.
        PrerequisiteError: There is no config, or transformers cannot build a model from it.
    """
    path = model_path(name_or_path, host)
    adapter = adapter_in(path)
    found = examined(_skeleton(path if adapter is None else adapter.base, name_or_path), host)
    try:
        return replace(found, processor=_processor(path if adapter is None else adapter.processor))
    except (OSError, ValueError, ImportError, RuntimeError) as error:
        missing = missing_package(name_or_path, error)
        return replace(found, processor_problem=_sentence(error) if missing is None else f"{missing}; {missing.hint}")


def examined(model: nn.Module, host: Host) -> Examination:
    """Examine a model in memory, with or without weights; its processor is not examined."""
    config: Any = model.config
    spec = family_of(model, host)
    problem: str | None = None
    family: Family | None = None
    try:
        family = discover(model) if spec is None else load_target(spec.target)
        resolve(model, family)
    except IncompatibleError as error:
        problem = error.message
    return Examination(
        model=type(model).__name__,
        model_type=str(config.model_type),
        family=spec.name if spec is not None else None,
        owner=host.families.owner(spec.name) if spec is not None else None,
        parts=_parts(model, family) if family is not None else {},
        placeholders={name: getattr(config, name, None) for name in family.placeholders} if family is not None else {},
        layer_types=_layer_types(model, family) if family is not None else {},
        refusals={kind: problem if family is None else family.refusal(kind) or problem for kind in SITE_KINDS},
        video=family is not None and family.video,
        problem=problem,
    )


def _skeleton(path: str, name: str) -> nn.Module:
    """A model without weights, on the meta device."""
    try:
        from transformers import AutoConfig, AutoModelForImageTextToText

        with quiet_loading(), warnings.catch_warnings(), torch.device("meta"):
            warnings.simplefilter("ignore")  # warnings about missing weights
            config = AutoConfig.from_pretrained(path)
            skeleton: nn.Module = AutoModelForImageTextToText.from_config(config)
    except (OSError, ValueError, ImportError, RuntimeError) as error:
        missing = missing_package(name, error)
        if missing is not None:
            raise missing from error
        raise PrerequisiteError(
            f"cannot build a model from the config in `{name}`: {_sentence(error)}",
            hint="give a directory or a hub name of a vision-language model that transformers knows",
        ) from error
    return skeleton


def _processor(path: str) -> str:
    from transformers import AutoProcessor

    with quiet_loading():
        return type(AutoProcessor.from_pretrained(path)).__name__


def _sentence(error: Exception) -> str:
    """The first sentence of another library's message, on one line."""
    return " ".join(str(error).split()).split(". ")[0].rstrip(".") or type(error).__name__


def _parts(model: nn.Module, family: Family) -> dict[str, tuple[str, str | None]]:
    """Path and class of every part in a description."""
    paths = {
        "base": family.base,
        "text model": family.text,
        "decoder layers": f"{family.text}.{family.layers}",
        "final norm": f"{family.text}.{family.final_norm}",
        "rotary embedding": f"{family.text}.{family.rotary}",
    }
    if family.vision is not None:
        paths |= {
            "vision tower": family.vision.tower,
            "encoder layers": f"{family.vision.tower}.{family.vision.layers}",
            "projector": family.vision.projector,
        }
    if family.observed_encoder is not None:
        for number, layers in enumerate(family.observed_encoder.layers):
            paths["encoder layers" + (f" {number + 1}" if number else "")] = layers
    return {part: (path or "the model itself", _class(_follow(model, path))) for part, path in paths.items()}


def _layer_types(model: nn.Module, family: Family) -> Counter[str]:
    text = _follow(model, family.text)
    layers = _follow(model, f"{family.text}.{family.layers}")
    named = getattr(getattr(text, "config", None), "layer_types", None)
    return Counter(named or ["full_attention"] * len(layers or ()))


def _class(part: Any) -> str | None:
    if isinstance(part, nn.ModuleList):
        return f"{len(part)} x {'/'.join(dict.fromkeys(type(layer).__name__ for layer in part))}"
    return None if part is None else type(part).__name__


def _follow(model: nn.Module, path: str) -> Any:
    try:
        return attrgetter(path)(model) if path else model
    except AttributeError:
        return None
