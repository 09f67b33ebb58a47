"""The selection that both variants share: progressive chunked MMR, and the correction of the kept tokens' mass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tokenprune import dual
from tokenprune.correction import mass_corrected
from tokenprune.errors import ConfigError
from tokenprune.pruner import Decision, OneCut

if TYPE_CHECKING:
    from torch import Tensor

    from tokenprune.dual.duplication import Duplication

#: Options of the selection under which the pruners that share it are tested.
MMR_VARIANTS: tuple[Mapping[str, Any], ...] = (
    {"trade_off": 0.0},
    {"trade_off": 1.0},
    {"magnitude_scale": "minmax"},
    {"overlap": "mean"},
    {"schedule": "exact"},
    {"schedule": "fixed"},
    {"schedule": "shrinking"},
    {"suppression": 0.0},
    {"suppression": 0.7},
    {"first_chunk": 8},
    {"growth": 1.0},
    {"tau": 0.0},
    {"tau": 3.0},
    {"mass_correction": True},
    {"mass_correction": True, "mass_cap": 2.0},
)


@dataclass(frozen=True)
class ChunkedSelection(OneCut):
    """A cut entering a decoder layer that trades magnitude against duplication, several tokens per step.

    Args:
        layer: Decoder layer that the cut enters, 0-based.
        trade_off: Weight of the magnitude against the duplication, in [0, 1]; 1 is top-k.
        magnitude_scale: `rank` or `minmax` of the log magnitude, before it is traded.
        overlap: Penalise the `max` or the `mean` duplication with the tokens chosen so far.
        schedule: `exact`, `fixed`, `growing` or `shrinking` chunks.
        first_chunk: Size of the first (growing) or every (fixed) chunk.
        growth: Rate of the growing and shrinking schedules.
        suppression: Largest duplication inside one chunk; 0 = not checked.
        tau: Bandwidth of the key kernel; 0 takes it from the median nearest-neighbour distance.
        mass_correction: Add the log of the number of tokens that a kept token stands for to its attention logit.
        mass_cap: Largest number that one token may stand for; 0 sets no limit.
    """

    layer: int = 2
    trade_off: float = 0.3
    magnitude_scale: str = "rank"
    overlap: str = "max"
    schedule: str = "growing"
    first_chunk: int = 2
    growth: float = 0.5
    suppression: float = 0.2
    tau: float = 1.0
    mass_correction: bool = False
    mass_cap: float = 0.0

    def __post_init__(self) -> None:
        one_of("magnitude_scale", self.magnitude_scale, ("rank", "minmax", "none"))
        one_of("overlap", self.overlap, ("max", "mean"))
        one_of("schedule", self.schedule, ("exact", "fixed", "growing", "shrinking"))
        in_range("layer", self.layer, 0)
        in_range("trade_off", self.trade_off, 0, 1)
        in_range("first_chunk", self.first_chunk, 1)
        in_range("growth", self.growth, 1e-6, 1)
        in_range("suppression", self.suppression, 0, 1)
        in_range("tau", self.tau, 0)
        if self.mass_cap != 0:
            in_range("mass_cap", self.mass_cap, 1)

    def select(self, log_magnitude: Tensor, duplication: Duplication, keep: int) -> Decision:
        """Keep `keep` tokens per unit by log magnitude (B, N) and duplication."""
        picks = dual.chunked_mmr(
            dual.scaled(log_magnitude, self.magnitude_scale),  # type: ignore[arg-type]  # checked above
            duplication,
            keep,
            trade_off=self.trade_off,
            overlap=self.overlap,  # type: ignore[arg-type]
            schedule=self.schedule,  # type: ignore[arg-type]
            first=self.first_chunk,
            growth=self.growth,
            suppression=self.suppression,
        )
        decision = Decision.keep(picks)
        return mass_corrected(decision, duplication, cap=self.mass_cap) if self.mass_correction else decision


def one_of(option: str, value: str, allowed: Sequence[str]) -> None:
    """Check an option that is a word.

    Raises:
        ConfigError: The value is not one of the allowed ones.
    """
    if value not in allowed:
        names = ", ".join(f"`{name}`" for name in allowed)
        raise ConfigError(f"option `{option}` must be one of {names}, got `{value}`", hint=f"for example {allowed[0]}")


def in_range(option: str, value: float, low: float, high: float = float("inf")) -> None:
    """Check an option that is a number.

    Raises:
        ConfigError: The value is outside [low, high].
    """
    if not low <= value <= high:
        raise ConfigError(f"option `{option}` must lie in [{low:g}, {high:g}], got {value}")
