"""Quality from sample rows: accuracy per family, and the comparison with the unpruned model.

A row is one question with `score` in [0, 1], `family` and `prediction`. A sample that raised an error has score 0 and
stays in every denominator.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tokenprune.errors import ConfigError

Row = Mapping[str, Any]


def summarise(rows: Sequence[Row]) -> dict[str, Any]:
    """Accuracy over all questions, per family, and the mean of the families.

    Raises:
        ConfigError: There are no rows.
    """
    if not rows:
        raise ConfigError("a cell without questions has no accuracy", hint="raise `limit`")
    families: dict[str, list[float]] = {}
    for row in rows:
        families.setdefault(str(row["family"]), []).append(float(row["score"]))
    means = {family: sum(scores) / len(scores) for family, scores in sorted(families.items())}
    return {
        "questions": len(rows),
        "errors": sum(1 for row in rows if row.get("error")),
        "accuracy": sum(float(row["score"]) for row in rows) / len(rows),
        "accuracy_macro": sum(means.values()) / len(means),
        "families": {family: {"accuracy": mean, "questions": len(families[family])} for family, mean in means.items()},
    }


def compare(rows: Sequence[Row], reference: Sequence[Row]) -> dict[str, float | None]:
    """How a pruned cell relates to the unpruned one on the same questions.

    Returns:
        `retention`: accuracy divided by the unpruned accuracy (`None` where that is 0);
        `retention_macro`: mean over the families of the same quotient (families that the unpruned model never
        answers are left out of this mean); `agreement`: share of questions with the same text as the unpruned
        answer (a failed sample agrees with nothing).

    Raises:
        ConfigError: The two do not hold the same questions in the same order.
    """
    if [row["id"] for row in rows] != [row["id"] for row in reference]:
        raise ConfigError("cells with different questions cannot be compared", hint="run both with the same task")
    ours, theirs = summarise(rows), summarise(reference)
    quotients = [
        ours["families"][family]["accuracy"] / facts["accuracy"]
        for family, facts in theirs["families"].items()
        if facts["accuracy"] > 0
    ]
    same = sum(
        1
        for row, base in zip(rows, reference, strict=True)
        if not row.get("error") and not base.get("error") and row["prediction"] == base["prediction"]
    )
    return {
        "retention": ours["accuracy"] / theirs["accuracy"] if theirs["accuracy"] > 0 else None,
        "retention_macro": sum(quotients) / len(quotients) if quotients else None,
        "agreement": same / len(rows),
    }
