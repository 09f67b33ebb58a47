"""A loaded model and some prompts, as `Pruner.calibrate` sees them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tokenprune.budget import Budget
from tokenprune.checkpoints import LoadedModel
from tokenprune.engine import pruned
from tokenprune.errors import IncompatibleError
from tokenprune.families.lookup import parts_of
from tokenprune.plugins import Host
from tokenprune.pruner import ModelFacts, Prefill, Pruner


@dataclass(frozen=True)
class PromptCalibrator:
    """Prefills prompts one at a time; a `tokenprune.pruner.Calibrator`.

    Args:
        loaded: The model.
        prompts: The processor's tensors of each prompt (B = 1), with the images.
        tokens: Visual tokens of each image.
    """

    loaded: LoadedModel
    prompts: tuple[Mapping[str, Tensor], ...]
    tokens: int

    @classmethod
    def of(cls, loaded: LoadedModel, prompts: Sequence[Mapping[str, Tensor]], host: Host) -> PromptCalibrator:
        """A calibrator that counts the visual tokens itself.

        Raises:
            IncompatibleError: There is no image, or images differ in their number of visual tokens.
        """
        parts = parts_of(loaded.model, host)
        found = {visual.tokens for inputs in prompts for visual in parts.visuals(inputs) if visual.tokens}
        if len(found) != 1:
            counts = " and ".join(str(count) for count in sorted(found)) or "no"
            raise IncompatibleError(
                f"a calibration needs images of one size, but the samples have images of {counts} visual tokens",
                hint="choose a task whose pictures all have one size",
            )
        return cls(loaded, tuple(prompts), found.pop())

    @property
    def facts(self) -> ModelFacts:
        """Shape of the model."""
        return self.loaded.facts

    def run(self, pruner: Pruner, budget: Budget) -> tuple[Prefill, ...]:
        """Prefill every prompt with a pruner, in order, each alone.

        Raises:
            BudgetError: The pruner cannot meet the budget.
            IncompatibleError: The pruner cannot work on this model.
        """
        found = []
        for inputs in self.prompts:
            with torch.no_grad(), pruned(self.loaded.model, pruner, budget, joint=self.loaded.joint) as session:
                logits: Tensor = self.loaded.model(**inputs).logits[0, -1]
            found.append(Prefill(session.last, logits.float()))
        return tuple(found)
