"""One check: a name, a sentence, a function; and what came of it."""

from __future__ import annotations

import traceback
import unittest
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tokenprune.errors import IncompatibleError, TokenPruneError
from tokenprune.pruner import Pruner
from tokenprune.testing.conformance.result import ConformanceError, ConformanceWarning, NotApplicable, Result
from tokenprune.testing.conformance.under_test import PrunerUnderTest

Group = Literal["spec", "plan", "choice", "model"]


@dataclass(frozen=True, slots=True)
class Check:
    """A law of pruners, as something that can be run.

    Args:
        name: Short name.
        group: `spec`, `plan` and `choice` run on recorded tensors, `model` on a real model.
        law: The law in one sentence.
        function: Raises `ConformanceError` or `NotApplicable`; returns remarks.
    """

    name: str
    group: Group
    law: str
    function: Callable[[PrunerUnderTest], tuple[str, ...]]

    def __str__(self) -> str:
        return self.name

    def evaluate(self, tested: PrunerUnderTest) -> Result:
        """PlanRun the check and report; whatever a pruner raises becomes a failure."""
        try:
            remarks = self.function(tested)
        except NotApplicable as reason:
            return Result(self.name, "skipped", str(reason))
        except IncompatibleError as error:
            return Result(self.name, "skipped", error.message)
        except ConformanceError as error:
            return Result(self.name, "failed", error.what, error.expected, error.found)
        except Exception as error:  # noqa: BLE001 - a stranger's code may raise anything
            return Result(self.name, "failed", _place(error), "no exception", _name(error))
        return Result(self.name, "warned", "; ".join(remarks)) if remarks else Result(self.name, "ok")

    def run(
        self,
        pruner: str | Pruner,
        *,
        options: Mapping[str, Any] | None = None,
        model: str = "scenes",
        thorough: bool = False,
    ) -> Result:
        """PlanRun the check as a test: a failure raises, a law that does not apply skips the test.

        Args:
            pruner: Name of an installed pruner, or a pruner.
            options: Options on top of the defaults, with a name.
            model: Short name, directory or hub name of the model that the group `model` runs on.
            thorough: Every budget in every check; otherwise plans at every budget, the rest at two.

        Raises:
            ConformanceError: The pruner breaks the law.
            unittest.SkipTest: The law does not apply (test runners report it as skipped).
            UnknownNameError: No pruner of that name is installed.
            ConfigError: An option is not valid.
        """
        result = self.evaluate(PrunerUnderTest.of(pruner, options=options, model=model, thorough=thorough))
        if result.status == "failed":
            raise ConformanceError(result.what, expected=result.expected, found=result.found)
        if result.status == "skipped":
            raise unittest.SkipTest(result.what)
        if result.status == "warned":
            warnings.warn(f"{self.name}: {result.what}", ConformanceWarning, stacklevel=2)
        return result


def _name(error: Exception) -> str:
    text = error.message if isinstance(error, TokenPruneError) else str(error)
    return f"{type(error).__name__}: {text}"


def _place(error: Exception) -> str:
    """Where the exception came from: file and line of the last frame."""
    frames = traceback.extract_tb(error.__traceback__)
    return f"raised in {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "raised"
