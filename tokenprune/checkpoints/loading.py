"""Load a vision-language model by short name, directory or hub name, through the stock classes."""

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
    """Load model, processor and, where a folder `clip` lies beside the weights, the joint image-text space.

    Args:
        name_or_path: Registered short name (`scenes`), directory, or hub name; also a directory with an adapter of PEFT
            that names its model.
        device: Torch device.
        dtype: `float32`, `bfloat16` or `float16`.
        attention: Attention kernel: `sdpa`, `eager` or another that transformers knows.
        host: Plugin host; loaded where it is not given.

    Raises:
        PrerequisiteError: The path holds no model, its weights are not safetensors, or a package that it needs is
            missing or does not work (torchvision beside another torch).
        IncompatibleError: No registered family describes the model.

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
    whole = path if adapter is None else adapter.base
    if (Path(whole) / "config.json").is_file():  # of anything else, the loader says what is missing
        check_weights(Path(whole))
    try:
        from transformers import AutoModelForImageTextToText, AutoProcessor

        with quiet_loading():
            processor = AutoProcessor.from_pretrained(path if adapter is None else adapter.processor)
            model = AutoModelForImageTextToText.from_pretrained(
                whole, dtype=_DTYPES[dtype], attn_implementation=attention, use_safetensors=True
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

    clip = Path(whole) / "clip"
    with quiet_loading():
        joint = JointSpace.load(clip, decode, device=device, dtype=_DTYPES[dtype]) if clip.is_dir() else None
    return LoadedModel(model, processor, joint, path, parts)


def missing_package(name: str, error: Exception) -> PrerequisiteError | None:
    """What to install where loading failed for want of a package, `None` where it failed for another reason."""
    reason = " ".join(str(error).split()).split(". ")[0]
    problem = torchvision_problem()
    if problem is not None:
        return PrerequisiteError(f"cannot load `{name}`: {problem} [{reason}]", hint=torchvision_hint())
    if not isinstance(error, ImportError):
        return None
    return PrerequisiteError(f"cannot load `{name}`: {reason}", hint="install the package that it names with pip")


@contextlib.contextmanager
def quiet_loading() -> Iterator[None]:
    """No progress bar of transformers: loading is a part of commands that show progress of their own."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def model_path(name_or_path: str, host: Host) -> str:
    """Directory of a registered short name; anything else is returned as it is.

    Raises:
        UnknownNameError: It is neither a registered name nor an existing directory nor a hub name.
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
