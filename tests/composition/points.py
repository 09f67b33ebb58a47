"""Named methods, and the compositions that must choose the same."""

from __future__ import annotations

from typing import Any

from tokenprune import load_host
from tokenprune.composition import Composed

HOST = load_host()


IWP = {
    "site": "layer:2",
    "magnitude": "kernel",
    "rope_in_magnitude": False,
    "duplication": "value-gauss",
    "selector": "chunked-mmr",
}


EXACT = {
    "site": "layer:2",
    "magnitude": "leave-one-out",
    "duplication": "value-metric",
    "selector": "chunked-mmr",
    "merge": "mass-correction",
}


DIVPRUNE = {"duplication": "cosine-projected", "selector": "max-min", "position_ids": "compact"}


CDPRUNER = {
    "magnitude": "relevance",
    "magnitude_scale": "minmax",
    "duplication": "cosine-projected",
    "selector": "dpp",
    "position_ids": "compact",
}


SCOPE = {
    "site": "encoder",
    "magnitude": "cls",
    "magnitude_scale": "none",
    "duplication": "features",
    "selector": "weighted-gain",
    "position_ids": "compact",
}


#: Named method, its options, and the composition that must choose the same.
POINTS: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("fastv", {}, {"site": "layer:2", "magnitude": "attention", "magnitude_layer": 1}),
    ("fastervlm", {}, {"site": "encoder", "magnitude": "cls", "position_ids": "compact"}),
    ("divprune", {}, DIVPRUNE),
    ("cdpruner", {"negate": False}, CDPRUNER),
    ("cdpruner", {"negate": True}, {**CDPRUNER, "negate": True}),
    ("scope", {}, SCOPE),
    ("iwp", {}, IWP),
    (
        "iwp",
        {"layer": 0, "trade_off": 0.6, "schedule": "exact"},
        {**IWP, "site": "layer:0", "selector": "mmr", "trade_off": 0.6},
    ),
    (
        "iwp",
        {"rope_in_magnitude": True, "rope_in_duplication": False},
        {**IWP, "rope_in_magnitude": True, "rope_in_duplication": False},
    ),
    ("iwp", {"mass_correction": True, "mass_cap": 2.0}, {**IWP, "merge": "mass-correction", "mass_cap": 2.0}),
    (
        "iwp",
        {"trade_off": 1.0, "suppression": 0.0},
        {"site": "layer:2", "magnitude": "kernel", "rope_in_magnitude": False},
    ),
    ("iwp-exact", {}, EXACT),
    ("random", {"seed": 3}, {"selector": "random", "seed": 3}),
    ("grid", {"spacing": "raster"}, {}),
]


IDS = ["+".join([name, *options]) for name, options, _ in POINTS]


def build(**options: Any) -> Composed:
    made = HOST.pruners.get("composed").build(options)
    assert isinstance(made, Composed)
    return made
