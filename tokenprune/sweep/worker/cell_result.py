"""What is stored of an evaluated cell: its samples, quality, token accounts, lens and overlays."""

from __future__ import annotations

from typing import Any

import numpy as np

from tokenprune.cells.cell import Cell
from tokenprune.evaluation.batches import prepare, token_grids
from tokenprune.evaluation.evaluate import Evaluation
from tokenprune.evaluation.model_cache import ModelCache
from tokenprune.evaluation.predictions import Predictions
from tokenprune.metrics.accounts import token_accounts
from tokenprune.metrics.distribution import FirstToken, kl_divergence
from tokenprune.metrics.lens import lens_errors
from tokenprune.metrics.quality import compare, summarise
from tokenprune.sweep.store.result_store import SweepStore
from tokenprune.sweep.worker.overlay_pictures import save_overlays


def save_predictions(
    store: SweepStore, cache: ModelCache, cell: Cell, evaluation: Evaluation, overlays: int
) -> dict[str, Any]:
    """Store the predictions of a cell, and return what its result says of them.

    Args:
        store: The sweep directory.
        cache: Models, tasks and batches.
        cell: The cell.
        evaluation: Its evaluation, with all predictions.
        overlays: Samples whose kept tokens are stored for pictures.

    Raises:
        NothingPrunedError: Tokens are there that should be gone, or the other way round.
        StorageError: The disk takes no more.
        TakenOverError: Another invocation has taken the directory over.
    """
    predictions = evaluation.finished()
    against = _compare(store, cell, predictions, evaluation.reference)
    lens = None
    if cell.lens:
        captured = cache.captures(cell)
        lens = lens_errors(captured.layers, [predictions.kept.get(index) for index in captured.indices])
    if cell.reference is None:
        store.write_first_token(cell, predictions.first_token())
    store.write_samples(cell, predictions.rows)
    if overlays:
        store.write_overlays(cell, _overlays(store, cache, cell, predictions, overlays))
    return {
        "quality": summarise(predictions.rows),
        "against_none": against,
        "tokens": token_accounts(predictions.rows),
        "lens": lens,
        "family": cache.model(cell).family,
    }


def _compare(
    store: SweepStore, cell: Cell, predictions: Predictions, reference: FirstToken | None
) -> dict[str, float | None] | None:
    """The cell against the unpruned one; each sample gets its divergence."""
    if cell.reference is None or reference is None:
        return None
    divergence = kl_divergence(reference.log_probs, predictions.first_token().log_probs)
    for row, value in zip(predictions.rows, divergence, strict=True):
        row["kl"] = float(value) if np.isfinite(value) else None
    known = [row["kl"] for row in predictions.rows if row["kl"] is not None]
    return {
        **compare(predictions.rows, store.samples(cell.reference)),
        "kl": sum(known) / len(known) if known else None,
    }


def _overlays(store: SweepStore, cache: ModelCache, cell: Cell, predictions: Predictions, count: int) -> dict[str, Any]:
    drawn = {index: kept for index, kept in predictions.kept.items() if index < count}
    if not drawn:
        return {"samples": []}
    loaded = cache.model(cell)
    batches = {index: prepare(loaded, cache.task(cell), [index]) for index in sorted(drawn)}
    samples = {index: batch.samples[0] for index, batch in batches.items()}
    grids = {index: token_grids(loaded, batch)[0] for index, batch in batches.items()}
    return save_overlays(store.directory, cell, samples, grids, drawn, predictions.rows)
