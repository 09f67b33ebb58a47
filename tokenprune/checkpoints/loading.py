"""Load a vision-language model by short name, directory or hub name, with the stock classes of transformers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from tokenprune.checkpoints.adapters import adapter_in
from tokenprune.checkpoints.joint import JointSpace
from tokenprune.checkpoints.loaded_model import LoadedModel
from tokenprune.checkpoints.torchvision_build import torchvision_hint, torchvision_problem
from tokenprune.checkpoints.weights import check_weights
from tokenprune.errors import ConfigError, PrerequisiteError, UnknownNameError
from tokenprune.families.lookup import parts_of
from tokenprune.plugins import Host, default_host

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load_model(
    name_or_path: str = "scenes",
    *,
    device: str = "cpu",
    dtype: str = "float32",
    attention: str = "sdpa",
    host: Host | None = None,
) -> LoadedModel:
    """Load a model with its processor, and its joint image-text space if the directory has a folder `clip`.

    Args:
        name_or_path: Registered short name (`scenes`), directory, or hub name. A directory may hold a PEFT adapter
            that names its base model.
        device: Torch device.
        dtype: `float32`, `bfloat16` or `float16`.
        attention: Attention kernel: `sdpa`, `eager` or another one of transformers.
        host: Plugins; by default the installed ones.

    Raises:
        PrerequisiteError: The path has no model, its weights are not safetensors, or a package that it needs is
            missing or does not work (such as torchvision for another torch).
        IncompatibleError: The model cannot be pruned: no family describes it, and its parts cannot be discovered.

    Example:
        >>> from tokenprune import load_model
        >>> loaded = load_model("scenes")
        >>> loaded.family, loaded.facts.num_layers
        ('llava', 6)
    """
    host = host or default_host()
    if dtype not in _DTYPES:
        raise ConfigError(f"unknown dtype `{dtype}`", hint="use " + ", ".join(f"`{name}`" for name in _DTYPES))
    path = model_path(name_or_path, host)
    adapter = adapter_in(path)
    base_path = path if adapter is None else adapter.base
    if (Path(base_path) / "config.json").is_file():  # without a config, transformers' own error says what is missing
        check_weights(Path(base_path))
    try:
        from transformers import AutoModelForImageTextToText, AutoProcessor

        with quiet_loading():
            processor = AutoProcessor.from_pretrained(path if adapter is None else adapter.processor)
            model = AutoModelForImageTextToText.from_pretrained(
                base_path, dtype=_DTYPES[dtype], attn_implementation=attention, use_safetensors=True
            )
            if adapter is not None:
                adapter.put_into(model)
    except OSError as error:
        raise PrerequisiteError(
            f"cannot load a model from `{name_or_path}`: {str(error).splitlines()[0]}",
            hint="known short names: " + ", ".join(f"`{name}`" for name in host.models.names()),
        ) from error
    except (ImportError, RuntimeError, ValueError, AttributeError) as error:
        missing = missing_package(name_or_path, error)
        if missing is None:
            raise
        raise missing from error
    model = model.to(device).eval()
    parts = parts_of(model, host)
    tokenizer = getattr(processor, "tokenizer", processor)
    tokenizer.padding_side = "left"  # generation continues at the right edge

    def decode(ids: Sequence[int]) -> str:
        return str(tokenizer.decode(ids, skip_special_tokens=True))

    clip = Path(base_path) / "clip"
    with quiet_loading():
        joint = JointSpace.load(clip, decode, device=device, dtype=_DTYPES[dtype]) if clip.is_dir() else None
    return LoadedModel(model, processor, joint, path, parts)


def missing_package(name: str, error: Exception) -> PrerequisiteError | None:
    """The error that names a missing package, if that is why loading failed; otherwise `None`."""
    reason = " ".join(str(error).split()).split(". ")[0]
    problem = torchvision_problem()
    if problem is not None:
        return PrerequisiteError(f"cannot load `{name}`: {problem} [{reason}]", hint=torchvision_hint())
    if not isinstance(error, ImportError):
        return None
    return PrerequisiteError(f"cannot load `{name}`: {reason}", hint="install the package that it names with pip")


@contextlib.contextmanager
def quiet_loading() -> Iterator[None]:
    """Hide the progress bar of transformers: commands that load models show their own."""
    from transformers.utils import logging

    was_enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_enabled:
            logging.enable_progress_bar()


def model_path(name_or_path: str, host: Host) -> str:
    """The directory of a registered short name; a directory or hub name is returned as it is.

    Raises:
        UnknownNameError: The name is no registered name, existing directory or hub name.
    """
    if name_or_path in host.models:
        target = host.models.get(name_or_path).target
        package, _, rest = target.partition("/")
        import importlib.util

        found = importlib.util.find_spec(package) if package and rest else None  # an absolute path names no package
        if found is not None and found.submodule_search_locations:
            return str(Path(next(iter(found.submodule_search_locations))) / rest)
        return target
    if Path(name_or_path).is_dir() or "/" in name_or_path:
        return name_or_path
    raise UnknownNameError("model", name_or_path, host.models.names())
