"""One stop: ask the pruner, check its answer, and take the rows out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tokenprune.engine.chunk import Chunk, Move, Unit
from tokenprune.engine.context import SiteContext
from tokenprune.engine.ends import ending_units, holds_last, with_last
from tokenprune.engine.finite import WatchedView
from tokenprune.engine.rows import Rows, gather_rows
from tokenprune.engine.view import EngineView
from tokenprune.errors import NothingPrunedError
from tokenprune.models.joint import JointSpace
from tokenprune.pruner import Decision, Kept, Pruner, Stop, UnitRecord


@dataclass(frozen=True)
class DecoderInput:
    """What enters a decoder layer.

    Args:
        hidden: (B, S', D).
        rows: Which slots of the chunk the rows hold.
        origins: (B, S') slot of the chunk whose position each row has; `None` where it is the row's own slot.
        log_weights: (B, S') added to the attention logits of the rows, or `None`.
    """

    hidden: Tensor
    rows: Rows
    origins: Tensor | None = None
    log_weights: Tensor | None = None

    def positions(self) -> Tensor:
        """(B, S') slot of the chunk whose position each row has; 0 for padding."""
        return (self.rows.slots if self.origins is None else self.origins).clamp(min=0)


def decide(
    pruner: Pruner, chunk: Chunk, position: int, units: Sequence[Unit], joint: JointSpace | None
) -> tuple[list[tuple[Unit, Kept]], Decision]:
    """Ask the pruner about units of the chunk at the stop `position` of its plan.

    Units of the same size, grid and budget are seen in one view. A unit in which a prompt ends keeps its last token
    whatever the pruner says, because the answer is read from its row.

    Returns:
        One selection per unit in the chunk's order, and the last decision (its `resize` holds for all units).

    Raises:
        NothingPrunedError: An answer does not name distinct tokens that are there.
        NotFiniteError: The pruner was given, or answered, values that are not finite.
    """
    site = chunk.plan[position].site
    context = SiteContext(chunk, site, pruner, joint)
    groups: dict[tuple[int, int, int, tuple[int, int] | None, int], list[int]] = {}
    for number, unit in enumerate(units):
        keep = min(unit.tokens, chunk.asked(unit, position))
        groups.setdefault((unit.tokens, keep, unit.original, unit.span.grid, unit.span.frames), []).append(number)
    ending = ending_units(units, chunk.ends_in_image)
    answers: dict[int, Kept] = {}
    decision = Decision(())
    for (tokens, keep, *_), numbers in groups.items():
        seen = [units[number] for number in numbers]
        labels = [f"sample {unit.span.sample}, image {unit.span.image}" for unit in seen]
        view = WatchedView(EngineView(context, seen, numbers, keep), pruner.spec.name, labels)
        decision = view.asked(pruner.decide, chunk.stop_for(seen[0], position), chunk.state)
        if decision.resize is None and len(decision.units) != len(seen):
            raise NothingPrunedError(
                f"pruner `{pruner.spec.name}` answered for {len(decision.units)} of {len(seen)} images",
                hint="a decision holds one `Kept` per unit of the view",
            )
        for place, (number, kept) in enumerate(zip(numbers, decision.units, strict=False)):
            check_kept(pruner, kept, tokens, view, place)
            if number in ending:
                resized = decision.resize is not None
                if not resized and not holds_last(kept, tokens):
                    chunk.vision.held.add((position, units[number].span.index))
                kept = with_last(kept, tokens, resized=resized)
            answers[number] = kept
    return [(units[number], answers[number]) for number in sorted(answers)], decision


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
    hidden, origins, weights = sequence.hidden, sequence.positions(), sequence.log_weights
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
                hidden, origins = hidden.clone(), origins.clone()
                copied = True
            chunk.moves.append(Move(sample, unit.places, after.places, anchors, kept.merge if merge else None))
            source = rows.inverse[sample, unit.places]
            target = rows.inverse[sample, after.places]
            read, written = source.to(hidden.device), target.to(hidden.device)
            if merge and kept.merge is not None:
                emitted = kept.merge.to(hidden.device).float() @ sequence.hidden[sample, read].float()
                hidden[sample, written] = emitted.to(hidden.dtype)
            elif merge:
                hidden[sample, written] = sequence.hidden[sample, read[anchors.to(hidden.device)]]
            origins[sample, target] = sequence.positions()[sample, source[anchors]]
            if weights is not None or kept.log_weights is not None:
                old = torch.zeros(hidden.shape[:2], device=source.device) if weights is None else weights
                weights = old.clone()
                weights[sample, target] = old[sample, source[anchors]]
                if kept.log_weights is not None:
                    weights[sample, target] += kept.log_weights.to(source.device).float()
    chunk.units = [followed.get(id(unit), unit) for unit in chunk.units]
    index, shorter = rows.select(alive, pad_left=pad_left)
    return DecoderInput(
        hidden=gather_rows(hidden, index),
        rows=shorter,
        origins=origins.gather(1, index) if copied or sequence.origins is not None else None,
        log_weights=None if weights is None else weights.gather(1, index).masked_fill(~shorter.valid, 0.0),
    )


def record(chunk: Chunk, stop: Stop, position: int, selections: Sequence[tuple[Unit, Kept]]) -> list[UnitRecord]:
    """What the stop at a place in the plan did, per unit."""
    entries = []
    for unit, kept in selections:
        weights = () if kept.log_weights is None else tuple(float(weight) for weight in kept.log_weights.tolist())
        entries.append(
            UnitRecord(
                sample=unit.span.sample,
                image=unit.span.image,
                site=str(chunk.parts.family.made_at(stop.site)),
                decoder_layer=stop.site.decoder_layer,
                before=unit.tokens,
                asked=chunk.asked(unit, position),
                kept=len(kept.anchors),
                indices=tuple(unit.indices[kept.anchors.to(unit.indices.device)].tolist()),
                merged=kept.merge is not None,
                log_weights=weights,
                labels=kept.labels or (),
                auto=stop.auto,
                held=(position, unit.span.index) in chunk.vision.held,
            )
        )
    return entries


def _is_identity(unit: Unit, kept: Kept) -> bool:
    if kept.merge is not None or kept.log_weights is not None or len(kept.anchors) != unit.tokens:
        return False
    return bool((kept.anchors.cpu() == torch.arange(unit.tokens)).all())


def check_kept(pruner: Pruner, kept: Kept, tokens: int, view: WatchedView, unit: int) -> None:
    """Refuse an answer that does not name distinct tokens that are there.

    Args:
        pruner: Whose answer it is.
        kept: The answer for one unit.
        tokens: Tokens of the unit.
        view: What the pruner looked at.
        unit: Place of the unit in the view.

    Raises:
        NothingPrunedError: With what is wrong.
        NotFiniteError: The pruner was given, or answered, values that are not finite.
    """
    anchors = kept.anchors
    if anchors.ndim != 1 or anchors.dtype != torch.long:
        raise NothingPrunedError(f"pruner `{pruner.spec.name}` must answer with one int64 index per row")
    found = view.read(unit, kept)
    if found and (min(found) < 0 or max(found) >= tokens):
        raise NothingPrunedError(f"pruner `{pruner.spec.name}` names tokens outside 0..{tokens - 1}")
    if len(set(found)) != len(found):
        raise NothingPrunedError(f"pruner `{pruner.spec.name}` names a token twice")
    if kept.merge is not None and kept.merge.shape != (len(anchors), tokens):
        raise NothingPrunedError(
            f"pruner `{pruner.spec.name}` merges with a map of shape {tuple(kept.merge.shape)}, "
            f"not ({len(anchors)}, {tokens})"
        )
