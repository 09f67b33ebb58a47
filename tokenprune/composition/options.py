"""The options of a composed pruner: one part per axis, and the settings that the parts read."""

from __future__ import annotations

from dataclasses import dataclass

#: The options that choose a part, in the order of the axes.
AXES = ("site", "groups", "magnitude", "duplication", "selector", "merge")


@dataclass(frozen=True)
class Options:
    """One part per axis, and the settings that the parts read.

    A setting that no chosen part reads must keep its default, so that no setting is without effect.

    Args:
        site: `encoder`, `input`, `layer:2` (entering decoder layer 2) or `layer:2.mid` (between attention and MLP).
        groups: Among whom the budget is shared out.
        magnitude: How big a token's update is.
        duplication: How much of it is already there.
        selector: How the two are traded; `auto` is `mmr` where both are given, `top-k` or `max-min` where one is,
            else `stride`.
        merge: What becomes of the dropped tokens.
        magnitude_layer: Layer that the magnitude is read from (decoder or encoder, whichever it is of); -1 is the
            site's own, or the encoder layer that the projector reads.
        duplication_layer: The same for the duplication.
        rope_in_magnitude: Keep the rotary embedding in queries and keys of the magnitude.
        rope_in_duplication: Keep the rotary embedding in the keys of the duplication.
        rows: Whose queries measure the magnitude: `text`, `last` or `visual`.
        row_pooling: `logmeanexp`, `mean` or `max` over the rows.
        head_pooling: `mean`, `max` or `logmeanexp` over the key-value heads.
        normalise: Divide each row of the kernel by its sum over the visual tokens before pooling.
        negate: Take the relevance with the other sign (CLIP's patches are inverted).
        magnitude_scale: `rank`, `minmax` or `none`, before the magnitude is traded.
        centred: Subtract the mean of the values or features before their cosine.
        tau: Bandwidth of the duplication's Gaussian; 0 takes it from the data.
        trade_off: Weight of the magnitude against the duplication, in [0, 1].
        overlap: Penalise the `max` or the `mean` duplication with the tokens chosen so far.
        schedule: `exact`, `fixed`, `growing` or `shrinking` chunks.
        first_chunk: Size of the first (growing) or every (fixed) chunk.
        growth: Rate of the growing and shrinking schedules.
        suppression: Largest duplication inside one chunk; 0 = not checked.
        pivots: Tokens of the largest magnitude that choose the others; at most half of the budget.
        seed: Seed of the draw.
        window: Side of a window in tokens.
        mass_cap: Largest number of tokens that one token may stand for; 0 sets no limit.
        position_ids: `keep` the survivors' positions or `compact` them.
    """

    site: str = "input"
    groups: str = "image"
    magnitude: str = "one"
    duplication: str = "none"
    selector: str = "auto"
    merge: str = "none"

    magnitude_layer: int = -1
    duplication_layer: int = -1
    rope_in_magnitude: bool = True
    rope_in_duplication: bool = True
    rows: str = "text"
    row_pooling: str = "logmeanexp"
    head_pooling: str = "mean"
    normalise: bool = True
    negate: bool = False
    magnitude_scale: str = "rank"
    centred: bool = False
    tau: float = 1.0
    trade_off: float = 0.3
    overlap: str = "max"
    schedule: str = "growing"
    first_chunk: int = 2
    growth: float = 0.5
    suppression: float = 0.2
    pivots: int = 4
    seed: int = 0
    window: int = 4
    mass_cap: float = 0.0
    position_ids: str = "keep"
