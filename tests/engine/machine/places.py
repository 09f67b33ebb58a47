"""Devices that do not exist: every tensor has a place, and an operation on tensors of two places is an error.

Values are computed on the CPU as ever. A tensor's place is what its `device` says; `to` and the functions that make
tensors move and set it. So code that mixes devices fails here as it fails on a machine with several.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

FIRST, SECOND = torch.device("maia:0"), torch.device("maia:1")
_CPU = torch.device("cpu")
_READS = ("tolist", "item", "__bool__", "__int__", "__float__", "__index__", "__len__", "dim", "size", "__repr__")


def place_of(tensor: Tensor) -> torch.device:
    """Where a tensor is."""
    found: torch.device = tensor.__dict__.get("_place", _CPU)
    return found


def put(tensor: Tensor, place: torch.device) -> Tensor:
    """Say where a tensor is."""
    tensor.__dict__["_place"] = place
    return tensor


class Places(TorchFunctionMode):
    """Inside the block tensors have places."""

    def __torch_function__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        if func == Tensor.device.__get__:  # type: ignore[attr-defined]
            return place_of(args[0])
        if name in _READS:
            return func(*args, **kwargs)
        if name in ("to", "cpu", "type_as"):
            return self._moved(func, name, args, kwargs)
        asked = kwargs.get("device")
        if asked is not None:
            kwargs["device"] = _CPU
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        checked = tensors
        if name in ("__getitem__", "__setitem__"):  # indices may be on the CPU
            checked = [each for each in tensors if each is args[0] or place_of(each) != _CPU]
            checked += [each for each in args[2:] if isinstance(each, Tensor)]
        places = {place_of(each) for each in checked if each.ndim > 0} or {place_of(each) for each in tensors[:1]}
        if len(places) > 1:
            shapes = [(tuple(each.shape), str(place_of(each))) for each in tensors]
            raise RuntimeError(f"`{name}` on tensors of several devices: {shapes}")
        place = next(iter(places), _CPU) if asked is None else torch.device(asked)
        made = func(*args, **kwargs)
        if name.startswith("__set") or isinstance(made, torch.Size):
            return made
        return tree_map(lambda leaf: self._put(leaf, tensors, place), made)

    @staticmethod
    def _put(made: Any, given: Sequence[Tensor], place: torch.device) -> Any:
        if isinstance(made, Tensor) and not any(made is each for each in given):
            put(made, place)
        return made

    @staticmethod
    def _moved(func: Any, name: str, args: Sequence[Any], kwargs: dict[str, Any]) -> Tensor:
        """A tensor at another place, never the same object there."""
        tensor, place, rest = args[0], place_of(args[0]), []
        if name == "cpu":
            return put(tensor.clone(), _CPU)
        for each in args[1:]:
            if isinstance(each, Tensor):
                place = place_of(each)
                rest.append(each.dtype)
            elif isinstance(each, torch.device | str):
                place = torch.device(each)
            elif each is not None:
                rest.append(each)
        asked = kwargs.pop("device", None)
        place = place if asked is None else torch.device(asked)
        kwargs.pop("non_blocking", None)
        made: Tensor = Tensor.to(tensor, *rest, **kwargs) if rest or kwargs else tensor
        return made if place == place_of(tensor) and made is tensor else put(made.clone(), place)


class Moves(ModelHook):  # type: ignore[misc]
    """What accelerate does before a module that is on another device than what enters it."""

    def __init__(self, place: torch.device) -> None:
        self._place = place

    def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """Its arguments, where its weights are."""
        return tree_map(self._move, (args, kwargs))

    def _move(self, leaf: Any) -> Any:
        return leaf.to(self._place) if isinstance(leaf, Tensor) else leaf


@contextlib.contextmanager
def placed(model: nn.Module, second: Sequence[nn.Module], first: Sequence[nn.Module] = ()) -> Iterator[None]:
    """Inside, some modules of a model are on a second device, each moving what enters it there, as accelerate does.

    Args:
        model: The model.
        second: Modules on the second device.
        first: Modules on the first one that move what enters them, too; all others do where they have no children.
    """
    inside = {id(part) for module in second for part in module.modules()}
    for module in model.modules():
        place = SECOND if id(module) in inside else FIRST
        for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
            put(tensor, place)
        if not list(module.children()) or module in second or module in first:
            add_hook_to_module(module, Moves(place))
    try:
        with Places():
            yield
    finally:
        remove_hook_from_module(model, recurse=True)
        for tensor in (*model.parameters(), *model.buffers()):
            put(tensor, _CPU)
