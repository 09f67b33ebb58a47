"""Small models of every family, built once per session."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.families.proving import REPRESENTATIVES
from tests.families.zoo import FAMILIES, Built, Sample

HERE = Path(__file__).parent
OF_ALL = ("test_proofs.py", "test_encoder_views.py")
"""Files whose tests are fast tests for every family; those in `descriptions/` are, too."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of one family run in one process, so that its models are built once.

    The fast tests hold the description and the proofs of every family. All else they ask of `REPRESENTATIVES`; the
    other families are asked by the thorough tests.
    """
    for item in items:
        callspec = getattr(item, "callspec", None)
        if callspec is not None and item.path.is_relative_to(HERE):
            family = callspec.params.get("family", callspec.params.get("name"))
            name = getattr(family, "name", family)
            if name in FAMILIES:
                item.add_marker(pytest.mark.xdist_group(f"family {name}"))
                of_all = item.path.name in OF_ALL or item.path.parent == HERE / "descriptions"
                if not of_all and name not in REPRESENTATIVES:
                    item.add_marker(pytest.mark.thorough)


def transformers_version() -> str:
    """The installed release."""
    return metadata.version("transformers")


class PicturesOnly(Built):
    """A small model whose stock `forward` does not take its own processor's videos: tests that ask for one skip."""

    def inputs(self, *samples: Sample, **how: Any) -> Any:
        """As ever, without videos."""
        if any(sample.videos for sample in samples):
            pytest.skip(f"the stock forward of {self.family.name} in this transformers does not take its videos")
        return super().inputs(*samples, **how)


def forwards_videos(built: Built) -> bool:
    """Whether the stock model runs on what its processor makes of a video; some releases drop a tensor on the way."""
    if not built.family.videos:
        return True
    try:
        with torch.no_grad():
            built.model(**built.inputs(Sample(images=0, videos=1)))
    except ValueError:
        return False
    return True


@pytest.fixture(scope="session")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Built]:
    """A function that builds a family by name, kernel and precision, once per session."""
    folder: Path = tmp_path_factory.mktemp("zoo")
    made: dict[tuple[str, str, torch.dtype], Built] = {}
    whole: dict[str, bool] = {}

    def build(name: str, kernel: str = "sdpa", dtype: torch.dtype = torch.float32) -> Built:
        family = FAMILIES[name]
        fails = family.stock_fails.get(transformers_version())
        if fails is not None:
            pytest.skip(f"the stock {name} of transformers {transformers_version()} takes no picture: {fails}")
        if (name, kernel, dtype) not in made:
            built = family.build(folder, kernel, dtype)
            if name not in whole:
                whole[name] = forwards_videos(family.build(folder))
            if not whole[name]:
                built = PicturesOnly(built.family, built.path, built.model, built.processor)
            made[name, kernel, dtype] = built
        return made[name, kernel, dtype]

    return build


@pytest.fixture
def dense_flex() -> Iterator[None]:
    """`flex_attention` without the compiler: the same mask and bias functions, evaluated for every pair of tokens."""
    with torch.compiler.set_stance("force_eager"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="flex_attention called without torch.compile")
        yield
