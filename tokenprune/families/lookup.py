"""Look up the family of a model, and resolve the parts of the model."""

from __future__ import annotations

import warnings

from torch import nn

from tokenprune.errors import IncompatibleError
from tokenprune.families.discovery import discover
from tokenprune.families.family import Family, Parts, resolve
from tokenprune.families.unwrap import unwrap
from tokenprune.plugins import Host, default_host
from tokenprune.registry import FamilySpec, load_target


def parts_of(model: nn.Module, host: Host | None = None) -> Parts:
    """Find the family that describes a model and follow its paths; without a family, the parts are discovered.

    Args:
        model: A model. If it is wrapped (`tokenprune.families.unwrap`), the parts are those of the model inside.
        host: Plugins; by default the installed ones.

    Raises:
        IncompatibleError: No registered family has the model's type and its parts cannot be discovered; or the family
            or the wrapper does not allow pruning.
    """
    host = host or default_host()
    model = unwrap(model)
    spec = family_of(model, host)
    if spec is not None:
        family: Family = load_target(spec.target)
        return resolve(model, family)
    model_type = getattr(getattr(model, "config", None), "model_type", None)
    if model_type is None:
        raise IncompatibleError(
            f"no model family describes `{type(model).__name__}`: it has no config that names the type of a model",
            hint="pass a transformers vision-language model" + _inner_model_hint(model),
        )
    try:
        family = discover(model)
    except IncompatibleError as error:
        known = sorted({name for known in host.families for name in known.model_types})
        raise IncompatibleError(
            f"no model family describes `{type(model).__name__}` (model type `{model_type}`), and {error.message}",
            hint=f"described: {', '.join(known)}; a plugin can add one (hook `register_families`)",
        ) from error
    warnings.warn(
        f"no model family describes `{model_type}`: its decoder was found by the usual pattern, every run of "
        "placeholders counts as one image without a grid",
        stacklevel=2,
    )
    return resolve(model, family)


def _inner_model_hint(model: nn.Module) -> str:
    """The end of a hint: the attribute in which an unknown wrapper may hold a model, or nothing."""
    inner = [name for name, part in model.named_children() if hasattr(part, "config")]
    return f", such as the one in its `{inner[0]}`" if inner else ""


def family_of(model: nn.Module, host: Host) -> FamilySpec | None:
    """The registered family of a model; `None` if no family has its type."""
    model_type = getattr(getattr(model, "config", None), "model_type", None)
    return next((spec for spec in host.families if model_type in spec.model_types), None)
