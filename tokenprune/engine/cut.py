"""One stop: ask the pruner, check its answer, and take the rows out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tokenprune.engine.chunk import Chunk, Layer, Unit
from tokenprune.engine.rows import Rows
from tokenprune.engine.view import EngineView, SiteContext
from tokenprune.errors import NothingPrunedError
from tokenprune.models.joint import JointSpace
from tokenprune.pruner import Decision, Kept, Pruner, Stop, UnitRecord


@dataclass(frozen=True)
class DecoderInput:
    """What enters a decoder layer: hidden (B, S', D), position ids (B, S'), embeddings (B, S', d) x 2, rows."""

    hidden: Tensor
    position_ids: Tensor
    position_embeddings: tuple[Tensor, Tensor]
    rows: Rows
    log_weights: Tensor | None


def decide(
    pruner: Pruner, chunk: Chunk, position: int, joint: JointSpace | None
) -> tuple[list[tuple[Unit, Kept]], Decision]:
    """Ask the pruner about every image of the chunk at the stop `position` of its plan.

    Units of the same size, grid and budget are seen in one view.

    Returns:
        One selection per unit in the chunk's order, and the last decision (its `resize` holds for all units).

    Raises:
        NothingPrunedError: An answer does not name distinct tokens that are there.
    """
    site = chunk.plan[position].site
    context = SiteContext(chunk, site, pruner.spec, joint)
    groups: dict[tuple[int, int, tuple[int, int]], list[int]] = {}
    for number, unit in enumerate(chunk.units):
        keep = min(unit.tokens, chunk.stop_for(unit, position).keep(unit.original))
        groups.setdefault((unit.tokens, keep, unit.span.grid), []).append(number)
    answers: dict[int, Kept] = {}
    decision = Decision(())
    for (tokens, keep, _), numbers in groups.items():
        units = [chunk.units[number] for number in numbers]
        view = EngineView(context, units, numbers, keep)
        decision = pruner.decide(view, chunk.stop_for(units[0], position), chunk.state)
        if decision.resize is None and len(decision.units) != len(units):
            raise NothingPrunedError(
                f"pruner `{pruner.spec.name}` answered for {len(decision.units)} of {len(units)} images",
                hint="a decision holds one `Kept` per unit of the view",
            )
        for number, kept in zip(numbers, decision.units, strict=False):
            _check(pruner, kept, tokens)
            answers[number] = kept
    return [(chunk.units[number], answers[number]) for number in sorted(answers)], decision


def take(
    chunk: Chunk, sequence: DecoderInput, selections: Sequence[tuple[Unit, Kept]], *, merge: bool, pad_left: bool
) -> DecoderInput:
    """Take the rows that are not kept out of the sequence; the same object comes back where nothing changes.

    Args:
        chunk: Its units are replaced.
        sequence: What enters the layer.
        selections: One per unit.
        merge: Build merged rows here; `False` where the emitted rows already stand in place.
        pad_left: Side of the padding of the shorter samples.
    """
    if all(_is_identity(unit, kept) for unit, kept in selections):
        return sequence
    rows = sequence.rows
    alive = rows.inverse >= 0
    hidden, position_ids = sequence.hidden, sequence.position_ids
    cos, sin = sequence.position_embeddings
    weights = sequence.log_weights
    copied = False
    followed: dict[int, Unit] = {}
    for unit, kept in selections:
        after = unit.follow(kept)
        followed[id(unit)] = after
        sample = unit.span.sample
        alive[sample, unit.places] = False
        alive[sample, after.places] = True
        anchors = kept.anchors.to(unit.places.device)
        moved = kept.merge is not None or not bool((anchors[1:] > anchors[:-1]).all())
        if moved or kept.log_weights is not None:
            if not copied:
                hidden, position_ids = hidden.clone(), position_ids.clone()
                cos, sin = cos.clone(), sin.clone()
                copied = True
            source = rows.inverse[sample, unit.places]
            target = rows.inverse[sample, after.places]
            if merge and kept.merge is not None:
                emitted = kept.merge.to(hidden.device).float() @ sequence.hidden[sample, source].float()
                hidden[sample, target] = emitted.to(hidden.dtype)
            elif merge:
                hidden[sample, target] = sequence.hidden[sample, source[anchors]]
            position_ids[sample, target] = sequence.position_ids[sample, source[anchors]]
            for moved_to, original in zip((cos, sin), sequence.position_embeddings, strict=True):
                moved_to[sample, target] = original[sample, source[anchors]]
            if weights is not None or kept.log_weights is not None:
                old = torch.zeros(hidden.shape[:2], device=hidden.device) if weights is None else weights
                weights = old.clone()
                weights[sample, target] = old[sample, source[anchors]]
                if kept.log_weights is not None:
                    weights[sample, target] += kept.log_weights.to(hidden.device).float()
    chunk.units = [followed.get(id(unit), unit) for unit in chunk.units]
    index, shorter = rows.select(alive, pad_left=pad_left)
    return DecoderInput(
        hidden=_gather(hidden, index),
        position_ids=position_ids.gather(1, index),
        position_embeddings=(_gather(cos, index), _gather(sin, index)),
        rows=shorter,
        log_weights=None if weights is None else weights.gather(1, index).masked_fill(~shorter.valid, 0.0),
    )


def record(stop: Stop, selections: Sequence[tuple[Unit, Kept]], kept_of: Sequence[int]) -> list[UnitRecord]:
    """What one stop did, per unit; `kept_of` holds the budget that was asked for."""
    entries = []
    for (unit, kept), asked in zip(selections, kept_of, strict=True):
        weights = () if kept.log_weights is None else tuple(float(weight) for weight in kept.log_weights.tolist())
        entries.append(
            UnitRecord(
                sample=unit.span.sample,
                image=unit.span.image,
                site=str(stop.site),
                decoder_layer=stop.site.decoder_layer,
                before=unit.tokens,
                asked=asked,
                kept=len(kept.anchors),
                indices=tuple(unit.indices[kept.anchors.to(unit.indices.device)].tolist()),
                merged=kept.merge is not None,
                log_weights=weights,
                labels=kept.labels or (),
            )
        )
    return entries


def entered(chunk: Chunk, sequence: DecoderInput) -> Layer:
    """A snapshot of what enters a layer, for views at this layer and later."""
    return Layer(
        hidden=sequence.hidden,
        position_embeddings=sequence.position_embeddings,
        rows=sequence.rows,
        log_weights=sequence.log_weights,
        place_of=tuple(unit.place_of for unit in chunk.units),
    )


def _gather(values: Tensor, index: Tensor) -> Tensor:
    return values.gather(1, index[..., None].expand(-1, -1, values.shape[-1]))


def _is_identity(unit: Unit, kept: Kept) -> bool:
    if kept.merge is not None or kept.log_weights is not None or len(kept.anchors) != unit.tokens:
        return False
    return bool((kept.anchors.cpu() == torch.arange(unit.tokens)).all())


def _check(pruner: Pruner, kept: Kept, tokens: int) -> None:
    anchors = kept.anchors
    if anchors.ndim != 1 or anchors.dtype != torch.long:
        raise NothingPrunedError(f"pruner `{pruner.spec.name}` must answer with one int64 index per row")
    if len(anchors) and (int(anchors.min()) < 0 or int(anchors.max()) >= tokens):
        raise NothingPrunedError(f"pruner `{pruner.spec.name}` names tokens outside 0..{tokens - 1}")
    if len(set(anchors.tolist())) != len(anchors):
        raise NothingPrunedError(f"pruner `{pruner.spec.name}` names a token twice")
    if kept.merge is not None and kept.merge.shape != (len(anchors), tokens):
        raise NothingPrunedError(
            f"pruner `{pruner.spec.name}` merges with a map of shape {tuple(kept.merge.shape)}, "
            f"not ({len(anchors)}, {tokens})"
        )
