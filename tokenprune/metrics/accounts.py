"""The token accounts: how many visual tokens a cell really ran with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

#: Name of an account in results, and the field of a sample row that it averages.
ACCOUNTS: Final[Mapping[str, str]] = {
    "original": "original_tokens",
    "entering": "entering_tokens",
    "layer_average": "layer_average_tokens",
    "kv": "kv_tokens",
    "final": "final_tokens",
}


def token_accounts(rows: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """Mean visual tokens per sample under each account, over the samples that ran.

    Returns:
        `original` before pruning, `entering` the LLM, `layer_average` over the decoder layers, in the `kv` cache
        (mean over layers), `final` after the last cut, and `layer_average_ratio`; all `None` where nothing ran.
    """
    ran = [row for row in rows if not row.get("error")]
    if not ran:
        return {**dict.fromkeys(ACCOUNTS), "layer_average_ratio": None}
    means: dict[str, float | None] = {
        name: sum(float(row[column]) for row in ran) / len(ran) for name, column in ACCOUNTS.items()
    }
    original, average = means["original"], means["layer_average"]
    means["layer_average_ratio"] = average / original if original and average is not None else None
    return means
