"""Find the stock model inside a wrapper (PEFT, `torch.compile`, data parallelism), or refuse the wrapper."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from tokenprune.errors import IncompatibleError


@dataclass(frozen=True)
class Refusal:
    """Why a model cannot be pruned, as a clause, and what to do."""

    reason: str
    hint: str


#: Class of the wrapper that `torch.compile(module)` returns.
COMPILED = "torch._dynamo.eval_frame.OptimizedModule"

#: By class of wrapper, the attribute with the model. Classes are given by name, because most packages are optional.
INSIDE: Mapping[str, str] = {
    COMPILED: "_orig_mod",
    "torch.nn.parallel.data_parallel.DataParallel": "module",
    "torch.nn.parallel.distributed.DistributedDataParallel": "module",
    "torch.optim.swa_utils.AveragedModel": "module",
    "peft.peft_model.PeftModel": "base_model",
    "peft.mixed_model.PeftMixedModel": "base_model",
    "peft.tuners.tuners_utils.BaseTuner": "model",
}

_ONE_DEVICE = "load the model on one device, or over several with `device_map`"


def _replicas(model: Any) -> Refusal | None:
    devices = list(model.device_ids)
    if len(devices) < 2:
        return None
    return Refusal(
        f"it copies the model to the devices {devices} in every call, and the state of pruning is lost with the copies",
        "use one device (`device_ids=[0]`), or one process for each device",
    )


def adapter_refusal(config: Any) -> Refusal | None:
    """Why a model with a PEFT adapter cannot be pruned, from the adapter's config; `None` if it can."""
    kind = str(getattr(config.peft_type, "value", config.peft_type))
    if config.is_prompt_learning:
        return Refusal(
            f"its adapter ({kind}) puts virtual tokens before the prompt, so the positions of images are not known",
            "use an adapter that changes layers, such as LoRA, or the model without it",
        )
    if kind in _OTHER_ADAPTERS:
        return Refusal(f"its adapter ({kind}) {_OTHER_ADAPTERS[kind]}", "use an adapter such as LoRA")
    return None


#: Adapters that do more than change layers.
_OTHER_ADAPTERS = {
    "ADAPTION_PROMPT": "attends to virtual tokens in an attention of its own",
    "XLORA": "runs the whole model twice in every call",
}


def _sharded(model: Any) -> Refusal | None:
    del model
    return Refusal(
        "FSDP keeps a part of each weight on each process and gathers it only while a layer runs, but pruners read "
        "projections of layers before they run",
        _ONE_DEVICE,
    )


#: By class of wrapper, a function that returns why it is refused, or `None`.
REFUSALS: Mapping[str, Callable[[Any], Refusal | None]] = {
    "torch.nn.parallel.data_parallel.DataParallel": _replicas,
    "torch.distributed.fsdp.fully_sharded_data_parallel.FullyShardedDataParallel": _sharded,
    "torch.distributed.fsdp.FSDPModule": _sharded,
    "peft.peft_model.PeftModel": lambda model: adapter_refusal(model.active_peft_config),
}


def unwrap(model: nn.Module) -> nn.Module:
    """The stock model inside any wrappers; the model itself if it has none.

    Changes of the layers by a wrapper, such as LoRA weights, stay.

    Raises:
        IncompatibleError: A wrapper does not allow pruning.
    """
    inner = model
    while (name := _known(inner, INSIDE)) is not None:
        _check(inner)
        inner = getattr(inner, INSIDE[name])
    for part in {type(part): part for part in inner.modules()}.values():
        _check(part)
    if int(getattr(inner, "_tp_size", None) or 1) > 1:
        raise IncompatibleError(
            f"`{type(inner).__name__}` is split over {inner._tp_size} processes by heads (tensor parallelism), so each "
            "process would choose tokens by its own heads",
            hint=_ONE_DEVICE,
        )
    return inner


def uncompiled(module: nn.Module) -> nn.Module:
    """A module without the wrapper of `torch.compile`."""
    while is_a(module, COMPILED):
        module = getattr(module, INSIDE[COMPILED])
    return module


def is_a(module: nn.Module, name: str) -> bool:
    """Whether a module is of a class, given by its full name."""
    return _known(module, {name: None}) is not None


def _check(module: nn.Module) -> None:
    name = _known(module, REFUSALS)
    refusal = REFUSALS[name](module) if name is not None else None
    if refusal is not None:
        raise IncompatibleError(
            f"a model in `{(name or '').rpartition('.')[2]}` cannot be pruned: {refusal.reason}", hint=refusal.hint
        )


def _known(module: nn.Module, classes: Mapping[str, Any]) -> str | None:
    names = (f"{kind.__module__}.{kind.__qualname__}" for kind in type(module).__mro__)
    return next((name for name in names if name in classes), None)
