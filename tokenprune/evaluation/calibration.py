"""A loaded model and some prompts, as `Pruner.calibrate` sees them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tokenprune.budget import Budget
from tokenprune.checkpoints import LoadedModel
from tokenprune.errors import IncompatibleError
from tokenprune.evaluation.batches import Batch, Questions, prepare, token_grids
from tokenprune.evaluation.generation import Pruning
from tokenprune.plugins import Host
from tokenprune.pruner import ModelFacts, Prefill, Pruner


@dataclass(frozen=True)
class PromptCalibrator:
    """Prefills prompts one at a time; a `tokenprune.pruner.Calibrator`.

    Args:
        loaded: The model.
        prompts: The prompts, each a batch of one sample with the same number of visual tokens per image.
        tokens: Visual tokens of each image.
        host: Plugins.
    """

    loaded: LoadedModel
    prompts: tuple[Batch, ...]
    tokens: int
    host: Host

    @classmethod
    def of(cls, loaded: LoadedModel, task: Questions, indices: Sequence[int], host: Host) -> PromptCalibrator:
        """A calibrator on some samples of a task; it counts the visual tokens itself.

        Raises:
            IncompatibleError: There is no image, or images differ in their number of visual tokens.
        """
        prompts = tuple(prepare(loaded, task, [index]) for index in indices)
        grids = [grid for prompt in prompts for grid in token_grids(loaded, prompt)[0]]
        found = {rows * columns for rows, columns in grids} - {0}
        if len(found) != 1:
            counts = " and ".join(str(count) for count in sorted(found)) or "no"
            raise IncompatibleError(
                f"a calibration needs images of one size, but the samples have images of {counts} visual tokens",
                hint="choose a task whose pictures all have one size",
            )
        return cls(loaded, prompts, found.pop(), host)

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
        pruning = Pruning(self.loaded, pruner, budget, host=self.host)
        made = [pruning.generate(prompt.inputs, max_new_tokens=1) for prompt in self.prompts]
        return tuple(Prefill(each.record, each.first_logits[0].float()) for each in made)
