"""What a pruner leaves at the end, judged at one decoder layer that is the same for all of them.

Three figures of a kept set: how much duplication is left in it, how well it covers the tokens that are gone, and how
far its attention output is from what the best subset of its size would give. Projections are the unpruned model's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tokenprune.dual.duplication import KernelDuplication, value_key_duplication
from tokenprune.dual.error import masked_softmax, subset_error
from tokenprune.dual.index import member_mask
from tokenprune.dual.selection.oracle import search_subset
from tokenprune.dual.view import expand_groups
from tokenprune.engine import CapturedLayer
from tokenprune.metrics.lens import KeptTokens, kept_mask


@dataclass(frozen=True, slots=True)
class SubsetFigures:
    """Figures of the kept sets, means over the samples.

    Args:
        duplication: Mean over the kept tokens of the largest value-key duplication with another kept one.
        coverage: Mean over all tokens of the largest duplication with a kept one (1 for a kept one).
        regret: Relative output error minus that of the subset which a search of the exact error finds; a method with
            weights of its own on the kept keys can come out below 0.
    """

    duplication: float
    coverage: float
    regret: float


@dataclass(frozen=True)
class _Subject:
    """One sample at the layer, B = 1."""

    attention: Tensor  # (1, H, R, N)
    values: Tensor  # (1, G, N, d)
    output: Tensor  # (1, H, R, d)
    duplication: KernelDuplication


@dataclass
class SubsetLens:
    """Measures kept sets on one captured layer; what the pruners share is made once.

    Args:
        captured: The unpruned capture of some samples at the layer.
        sweeps: Passes of swaps of the search (see `search_subset`).
    """

    captured: CapturedLayer
    sweeps: int = 1
    _subjects: dict[int, _Subject] = field(default_factory=dict)
    _best: dict[tuple[int, int], float] = field(default_factory=dict)

    def figures(self, kept: Sequence[KeptTokens | None]) -> SubsetFigures | None:
        """Means over the captured samples.

        Args:
            kept: Per captured sample, its cuts; `None` where the sample failed.

        Returns:
            `None` where nothing can be measured: rows are merged or re-encoded (see `KeptTokens.inexact`), or a
            sample has no visual token left.
        """
        usable = [(sample, cuts) for sample, cuts in enumerate(kept) if cuts is not None]
        if not usable or not all(cuts.exact() for _, cuts in usable):
            return None
        rows = [self._measure(sample, cuts) for sample, cuts in usable]
        if not all(rows):
            return None
        duplication, coverage, regret = (sum(column) / len(rows) for column in zip(*rows, strict=True))
        return SubsetFigures(duplication, coverage, regret)

    def _measure(self, sample: int, cuts: KeptTokens) -> tuple[float, ...]:
        """Duplication, coverage and regret of one sample; nothing where it has no visual token left."""
        subject = self._subject(sample)
        tokens = subject.values.shape[2]
        kept, log_weights = kept_mask(cuts, cuts.final(), tokens, subject.values.device)
        places = kept.nonzero()[None, :, 0]
        count = places.shape[-1]
        if count == 0:
            return ()
        columns = subject.duplication.block(None, places)[0]
        columns[places[0], torch.arange(count, device=columns.device)] = 1.0  # a zero vector stands for itself, too
        covered = float(columns.amax(dim=-1).mean())
        twins = float(columns[places[0]].fill_diagonal_(0.0).amax(dim=-1).mean())
        return twins, covered, self._error(subject, kept, log_weights) - self._least(sample, count)

    def _least(self, sample: int, count: int) -> float:
        """Relative output error of the best subset of that size that the search finds."""
        key = (sample, count)
        if key not in self._best:
            subject = self._subject(sample)
            tokens = subject.values.shape[2]
            picks = search_subset(subject.attention, subject.values, subject.output, count, sweeps=self.sweeps)
            self._best[key] = self._error(subject, member_mask(picks, tokens)[0], None)
        return self._best[key]

    @staticmethod
    def _error(subject: _Subject, kept: Tensor, log_weights: Tensor | None) -> float:
        weights = None if log_weights is None else log_weights[None]
        found = subset_error(subject.attention, subject.values, subject.output, kept[None], log_weights=weights)
        return float(found.relative().sqrt())

    def _subject(self, sample: int) -> _Subject:
        if sample not in self._subjects:
            self._subjects[sample] = self._prepare(sample)
        return self._subjects[sample]

    def _prepare(self, sample: int) -> _Subject:
        """Attention and output of the text rows after the image over their causal rows, and the duplication."""
        captured, one = self.captured, slice(sample, sample + 1)
        visual, rows = captured.visual[sample], captured.text_after[sample]
        queries = captured.queries[one][:, :, rows]
        keys, values = (expand_groups(x[one], queries.shape[1]) for x in (captured.keys, captured.values))
        places = torch.arange(keys.shape[2], device=keys.device)
        allowed = (places <= rows[:, None]) & captured.valid[sample]
        probabilities = masked_softmax(queries @ keys.transpose(-1, -2) * captured.scaling, allowed)
        kept_values, kept_keys = captured.values[one][:, :, visual], captured.keys[one][:, :, visual]
        return _Subject(
            attention=probabilities[..., visual],
            values=kept_values,
            output=probabilities @ values,
            duplication=value_key_duplication(kept_values, kept_keys),
        )
