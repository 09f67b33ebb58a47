"""Greedy generation under a pruner: the model's part of every evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass

from torch import Tensor

from tokenprune.budget import Budget
from tokenprune.checkpoints import LoadedModel
from tokenprune.engine import PrefillMemo, Session, pruned
from tokenprune.plugins import Host
from tokenprune.pruner import PositionPolicy, Pruner, PruneRecord


@dataclass(frozen=True)
class Generated:
    """What the model generated for a batch.

    Args:
        tokens: (B, S) ids of the new tokens.
        first_logits: (B, V) logits of the first new token.
        record: What the pruner did.
    """

    tokens: Tensor
    first_logits: Tensor
    record: PruneRecord


@dataclass(frozen=True)
class Pruning:
    """A pruner at a budget on a loaded model.

    Args:
        loaded: The model.
        pruner: The pruner.
        budget: Visual tokens that stay.
        positions: Position policy; `None` leaves it to the pruner.
        frames: Whether the images of a sample are the frames of one video.
        host: Plugins; the installed ones if it is not given.
    """

    loaded: LoadedModel
    pruner: Pruner
    budget: Budget
    positions: PositionPolicy | None = None
    frames: bool = False
    host: Host | None = None

    def session(self, memo: PrefillMemo | None = None) -> AbstractContextManager[Session]:
        """The context in which the model is pruned; see `tokenprune.pruned`."""
        return pruned(
            self.loaded,
            self.pruner,
            self.budget,
            positions=self.positions,
            frames=self.frames,
            memo=memo,
            host=self.host,
        )

    def generate(self, inputs: Mapping[str, Tensor], max_new_tokens: int, memo: PrefillMemo | None = None) -> Generated:
        """Generate greedily.

        Args:
            inputs: The processor's tensors, padded on the left.
            max_new_tokens: Most new tokens.
            memo: What other pruners have computed of the same batch.

        Raises:
            BudgetError: The pruner cannot meet the budget.
            IncompatibleError: The pruner cannot work on this model.
        """
        with self.session(memo) as session:
            made = self.loaded.model.generate(
                **inputs,
                do_sample=False,
                max_new_tokens=max_new_tokens,
                return_dict_in_generate=True,
                output_logits=True,
            )
        return Generated(made.sequences[:, inputs["input_ids"].shape[1] :], made.logits[0], session.last)
