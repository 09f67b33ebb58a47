"""One rule for published layer numbers, and one solver for methods that cut more than once.

Layers. Methods name the decoder layers of a 32-layer model (encoder layers of a 24-layer tower). With `relative=true`,
the default everywhere, a published layer l of a model with L layers becomes floor(l L / 32 + 1/2), at least 1 and
above the one before it; with `relative=false` the numbers are taken as they are and a shallower model is refused.

Counts. A method with several cuts is a family of counts that grows with one number t in [0, 1]; `solved_stops` finds
the t that meets the budget: the count after the last cut (account `kept`) or the mean over the layers (`average`),
where a layer that is cut between attention and MLP counts with the mean of both sizes.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

from tokenprune.budget import Budget
from tokenprune.errors import BudgetError, ConfigError, IncompatibleError
from tokenprune.pruner import ModelFacts, Site, Stop

DECODER_DEPTH = 32
ENCODER_DEPTH = 24
#: Halvings of [0, 1] in the search for t: far below one token for any picture.
_STEPS = 50


def decoder_layers(name: str, option: str, layers: Sequence[int], facts: ModelFacts, relative: bool) -> tuple[int, ...]:
    """The decoder layers that the cuts of a method enter in this model.

    Args:
        name: The pruner, for messages.
        option: The option that holds the layers, for messages.
        layers: As published, for 32 layers, or as the user gave them.
        facts: Shape of the model.
        relative: Scale by depth.

    Raises:
        ConfigError: The layers do not grow, or start below 1.
        IncompatibleError: The model is too shallow.
    """
    if not layers or layers[0] < 1 or any(after <= before for before, after in itertools.pairwise(layers)):
        raise ConfigError(
            f"option `{option}` of `{name}` must be growing layer numbers >= 1, got {tuple(layers)}",
            hint="the published ones are the default",
        )
    used = _scaled(layers, facts.num_layers) if relative else tuple(layers)
    if used[-1] >= facts.num_layers:
        raise IncompatibleError(
            f"`{name}` cuts at decoder layers {used}, but the model has {facts.num_layers} layers",
            hint=f"set its option `{option}` to layers of at most {facts.num_layers - 1}, or `relative` to true",
        )
    return used


def encoder_layer(layer: int, facts: ModelFacts, relative: bool) -> int:
    """The encoder layer (0-based) that stands where `layer` stands in a 24-layer tower.

    Raises:
        IncompatibleError: The encoder is too shallow for an absolute layer.
    """
    used = math.floor(layer * facts.encoder_layers / ENCODER_DEPTH + 0.5) if relative else layer
    if not 0 <= used < facts.encoder_layers:
        raise IncompatibleError(
            f"encoder layer {used} was asked for, but the vision encoder has {facts.encoder_layers} layers",
            hint="set the layer option lower, or `relative` to true",
        )
    return used


def require_encoder(name: str, facts: ModelFacts, hint: str) -> None:
    """Refuse a model whose vision encoder cannot be cut.

    Raises:
        IncompatibleError: The family does not describe the encoder's layers.
    """
    if facts.encoder_layers < 1:
        raise IncompatibleError(
            f"`{name}` cuts inside the vision encoder, whose layers the family `{facts.family}` does not describe",
            hint=hint,
        )


def encoder_cuts(name: str, option: str, layers: Sequence[int], facts: ModelFacts, relative: bool) -> tuple[int, ...]:
    """The encoder layers inside which a method cuts in this model: growing, none after the one that is read.

    Scaled to a shallow tower several published layers may become one, so that there are fewer cuts.

    Args:
        name: The pruner, for messages.
        option: The option that holds the layers, for messages.
        layers: As published, for 24 layers, or as the user gave them.
        facts: Shape of the model.
        relative: Scale by depth.

    Raises:
        ConfigError: The layers do not grow, or start below 0.
        IncompatibleError: The encoder is too shallow for absolute layers.
    """
    if not layers or layers[0] < 0 or any(after <= before for before, after in itertools.pairwise(layers)):
        raise ConfigError(
            f"option `{option}` of `{name}` must be growing layer numbers >= 0, got {tuple(layers)}",
            hint="the published ones are the default",
        )
    if relative:
        scaled = (math.floor(layer * facts.encoder_layers / ENCODER_DEPTH + 0.5) for layer in layers)
        return tuple(sorted({min(layer, facts.encoder_read_layer) for layer in scaled}))
    if layers[-1] > facts.encoder_read_layer:
        raise IncompatibleError(
            f"`{name}` cuts inside encoder layers {tuple(layers)}, but the projector reads layer "
            f"{facts.encoder_read_layer}",
            hint=f"set its option `{option}` to layers of at most {facts.encoder_read_layer}, or `relative` to true",
        )
    return tuple(layers)


def asked_tokens(budget: Budget, tokens: int) -> float:
    """What a budget asks for of `tokens`: a whole number by the account `kept`, as it is by `average`."""
    if budget.account == "kept":
        return float(budget.count(tokens))
    return min(float(tokens), budget.ratio * tokens if budget.ratio is not None else float(budget.tokens or 0))


def depth(site: Site) -> float:
    """Decoder layers that run at the size before the cut; a cut in the middle of a layer leaves half of it behind."""
    return site.decoder_layer + (0.5 if site.kind == "layer" and site.point == "mid" else 0.0)


def geometric(tokens: int, cuts: int) -> Callable[[float], list[float]]:
    """Counts N r, N r^2, ... after each cut, for r in [0, 1]."""
    return lambda ratio: [tokens * ratio ** (cut + 1) for cut in range(cuts)]


def layer_average(cuts: Sequence[float], counts: Sequence[float], tokens: int, num_layers: int) -> float:
    """Visual tokens per decoder layer, each layer counted at the size that it runs with.

    Args:
        cuts: Depth of each cut: the decoder layer that it enters (see `depth`).
        counts: Tokens left after each cut.
        tokens: N.
        num_layers: L.
    """
    starts, sizes = [0, *cuts], [tokens, *counts]
    ends = [*cuts, num_layers]
    return sum(size * (end - start) for start, end, size in zip(starts, ends, sizes, strict=True)) / num_layers


def solved_stops(
    name: str,
    sites: Sequence[Site],
    family: Callable[[float], Sequence[float]],
    facts: ModelFacts,
    budget: Budget,
    tokens: int,
) -> tuple[Stop, ...]:
    """Stops whose counts are the member of the family that meets the budget.

    Args:
        name: The pruner, for messages.
        sites: Where the cuts are, in order.
        family: Tokens after each cut as a growing function of t in [0, 1]; t = 1 keeps all.
        facts: Shape of the model.
        budget: What was asked for.
        tokens: N.

    Raises:
        BudgetError: The budget lies under the floor of the method; the message gives it.
    """
    cuts = [depth(site) for site in sites]

    def counts(t: float) -> list[float]:
        return [min(float(tokens), max(1.0, count)) for count in family(t)]

    def measure(sizes: Sequence[float]) -> float:
        return sizes[-1] if budget.account == "kept" else layer_average(cuts, sizes, tokens, facts.num_layers)

    asked = asked_tokens(budget, tokens)
    floor = measure(counts(0.0))
    if asked < floor - 0.5:
        raise BudgetError(
            f"`{name}` with cuts at {', '.join(map(str, sites))} cannot go under {floor:.1f} of {tokens} tokens "
            f"({floor / tokens:.1%}) by the account `{budget.account}`, asked for {asked:.1f}",
            hint="cut at earlier layers, raise the budget, or compare at equal `kept` tokens",
        )
    low, high = 0.0, 1.0
    for _ in range(_STEPS):
        middle = (low + high) / 2.0
        low, high = (middle, high) if measure(counts(middle)) < asked else (low, middle)
    sizes = [math.floor(count + 0.5) for count in counts(high)]
    if budget.account == "kept":
        sizes[-1] = int(asked)
        for cut in range(len(sizes) - 2, -1, -1):
            sizes[cut] = max(sizes[cut], sizes[cut + 1])
    else:
        # whole tokens: the last cut, which counts in the fewest layers, makes up for the rounding of the others, and
        # the cut before it for what would take the last one out of order
        shares = [end - start for start, end in itertools.pairwise((*cuts, facts.num_layers))]
        for cut in (cut for cut in range(len(sizes) - 1, -1, -1) if shares[cut] > 0):
            missing = (asked - measure(sizes)) * facts.num_layers / shares[cut]
            below, above = (*sizes, 1)[cut + 1], (tokens, *sizes)[cut]
            sizes[cut] = min(above, max(below, sizes[cut] + math.floor(missing + 0.5)))
    return tuple(Stop(site, Budget(tokens=max(1, min(size, tokens)))) for site, size in zip(sites, sizes, strict=True))


def _scaled(layers: Sequence[int], num_layers: int) -> tuple[int, ...]:
    scaled: list[int] = []
    for layer in layers:
        scaled.append(max(scaled[-1] + 1 if scaled else 1, math.floor(layer * num_layers / DECODER_DEPTH + 0.5)))
    return tuple(scaled)
