"""Ask the pruner at one stop, and check its decision."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from tokenprune.checkpoints.joint import JointSpace
from tokenprune.engine.finite import WatchedView
from tokenprune.engine.observe.context import SiteContext
from tokenprune.engine.observe.view import EngineView
from tokenprune.engine.prompt_end import ending_units, keeps_last, with_last
from tokenprune.engine.state.prefill import Prefill, Unit
from tokenprune.errors import NothingPrunedError
from tokenprune.pruner import Decision, Kept, Pruner


def decide(
    pruner: Pruner, prefill: Prefill, position: int, units: Sequence[Unit], joint: JointSpace | None
) -> tuple[list[tuple[Unit, Kept]], Decision]:
    """Ask the pruner about the units of the prompt, at stop number `position` of its plan.

    Units of the same size, grid and budget share one view. If a prompt ends in a unit, the unit's last token stays
    whatever the pruner decides, because the model's answer is read from that row.

    Returns:
        One selection per unit in the prompt's order, and the last decision (its `resize` holds for all units).

    Raises:
        NothingPrunedError: A decision does not name distinct existing tokens.
        NotFiniteError: The view, or the decision, holds values that are not finite.
    """
    site = prefill.plan[position].site
    context = SiteContext(prefill, site, pruner, joint)
    groups: dict[tuple[int, int, int, tuple[int, int] | None, int], list[int]] = {}
    for number, unit in enumerate(units):
        keep = min(unit.tokens, prefill.asked(unit, position))
        groups.setdefault((unit.tokens, keep, unit.original, unit.span.grid, unit.span.frames), []).append(number)
    prompt_ends = ending_units(units, prefill.ends_in_image)
    kept_of: dict[int, Kept] = {}
    decision = Decision(())
    for (tokens, keep, *_), numbers in groups.items():
        group = [units[number] for number in numbers]
        labels = [f"sample {unit.span.sample}, image {unit.span.image}" for unit in group]
        view = WatchedView(EngineView(context, group, numbers, keep), pruner.spec.name, labels)
        decision = view.asked(pruner.decide, prefill.stop_for(group[0], position), prefill.state)
        if decision.resize is None and len(decision.units) != len(group):
            raise NothingPrunedError(
                f"pruner `{pruner.spec.name}` answered for {len(decision.units)} of {len(group)} images",
                hint="a decision holds one `Kept` per unit of the view",
            )
        for index, (number, kept) in enumerate(zip(numbers, decision.units, strict=False)):
            check_kept(pruner, kept, tokens, view, index)
            if number in prompt_ends:
                resized = decision.resize is not None
                if not resized and not keeps_last(kept, tokens):
                    prefill.vision.held.add((position, units[number].span.index))
                kept = with_last(kept, tokens, resized=resized)
            kept_of[number] = kept
    return [(units[number], kept_of[number]) for number in sorted(kept_of)], decision


def check_kept(pruner: Pruner, kept: Kept, tokens: int, view: WatchedView, unit: int) -> None:
    """Refuse a decision that does not name distinct existing tokens.

    Args:
        pruner: The pruner.
        kept: Its decision for one unit.
        tokens: Tokens of the unit.
        view: The view of the decision.
        unit: Index of the unit in the view.

    Raises:
        NothingPrunedError: The decision is not valid.
        NotFiniteError: The view, or the decision, holds values that are not finite.
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
