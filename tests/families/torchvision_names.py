"""Make torchvision importable for the tests that need it, beside a torch that no build of it matches.

Video processors and a few image processors of transformers exist on torchvision only. Its wheel loads without
its compiled operators as soon as the two names that its Python code refers to are declared; processors use none of
them. The folder is kept off the environment's own path, so that commands see the environment as a user has it.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

EXTRAS = Path(sys.prefix) / "extras"
HINT = f"pip install --no-deps --target {EXTRAS} -c constraints.txt torchvision timm num2words docopt"

_SIGNATURE = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_LIBRARIES: list[object] = []  # a library's declarations live as long as the object


def enable() -> bool:
    """Whether torchvision can be used in this process; transformers must not have been imported before."""
    if "transformers" in sys.modules:
        return _usable_by_transformers()
    if importlib.util.find_spec("torchvision") is None:
        if not (EXTRAS / "torchvision").is_dir():
            return False
        sys.path.append(str(EXTRAS))
    if not _imports_as_it_is():
        _declare_names()
    importlib.import_module("torchvision")
    return True


def _imports_as_it_is() -> bool:
    """Whether the wheel matches this torch; asked in another process, as names declared twice end the process."""
    probe = f"import sys; sys.path.append({str(EXTRAS)!r}); import torchvision"
    return subprocess.run([sys.executable, "-c", probe], capture_output=True, check=False).returncode == 0


def _declare_names() -> None:
    import torch

    for name in ("nms", "qnms"):
        try:
            torch._C._dispatch_find_schema_or_throw(f"torchvision::{name}", "")
        except RuntimeError:
            library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
            library.define(name + _SIGNATURE)  # type: ignore[no-untyped-call]
            _LIBRARIES.append(library)


def _usable_by_transformers() -> bool:
    from transformers.utils import is_torchvision_available

    return "torchvision" in sys.modules and bool(is_torchvision_available())
