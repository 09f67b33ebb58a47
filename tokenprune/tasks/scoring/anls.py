"""Average normalised Levenshtein similarity (DocVQA, InfoVQA). Source: lmms-eval 0.7.3."""

from __future__ import annotations

from collections.abc import Sequence


def edit_distance(first: str, second: str) -> int:
    """Levenshtein distance: the fewest insertions, deletions and replacements of one character."""
    row = list(range(len(second) + 1))
    for i, a in enumerate(first, start=1):
        previous, row = row, [i]
        for j, b in enumerate(second, start=1):
            row.append(min(previous[j] + 1, row[j - 1] + 1, previous[j - 1] + (a != b)))
    return row[-1]


def anls(prediction: str, references: Sequence[str], *, threshold: float = 0.5) -> float:
    """Similarity to the closest reference; 0 if it is below the threshold or if there is no reference.

    Formula: s = 1 - min over references of d / n. d is the edit distance of the texts in lower case with single
    spaces. n is the length of the longer text before this clean-up; d / n is 0 if n is 0.
    """
    best = 0.0
    ours = " ".join(prediction.lower().split())
    for reference in references:
        length = max(len(reference), len(prediction))
        distance = edit_distance(ours, " ".join(reference.lower().split()))
        best = max(best, 1 - distance / length if length else 1.0)
    return best if best >= threshold else 0.0
