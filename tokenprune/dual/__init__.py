"""Pure tensor maths on keys, values, queries and features: magnitude, duplication, selection, merging, error.

Knows no transformers. Importing this package imports no torch, so that a pruner's file may say
`from tokenprune import dual` and still be listed in no time; the functions load on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenprune.dual.adaptive import outliers as outliers
    from tokenprune.dual.cover import propagated as propagated
    from tokenprune.dual.cover import weighted_gain as weighted_gain
    from tokenprune.dual.duplication import DenseDuplication as DenseDuplication
    from tokenprune.dual.duplication import Duplication as Duplication
    from tokenprune.dual.duplication import KernelDuplication as KernelDuplication
    from tokenprune.dual.duplication import bandwidth_scaled as bandwidth_scaled
    from tokenprune.dual.duplication import cosine_duplication as cosine_duplication
    from tokenprune.dual.duplication import metric_duplication as metric_duplication
    from tokenprune.dual.duplication import nearest_neighbour_bandwidth as nearest_neighbour_bandwidth
    from tokenprune.dual.duplication import value_key_duplication as value_key_duplication
    from tokenprune.dual.error import SquaredError as SquaredError
    from tokenprune.dual.error import dual_error as dual_error
    from tokenprune.dual.error import masked_softmax as masked_softmax
    from tokenprune.dual.error import output_error as output_error
    from tokenprune.dual.error import subset_error as subset_error
    from tokenprune.dual.greedy import coverage as coverage
    from tokenprune.dual.greedy import dpp_greedy as dpp_greedy
    from tokenprune.dual.greedy import pivot_dissimilar as pivot_dissimilar
    from tokenprune.dual.groups import capped_top_k as capped_top_k
    from tokenprune.dual.groups import rank_in_group as rank_in_group
    from tokenprune.dual.groups import split_budget as split_budget
    from tokenprune.dual.index import complement as complement
    from tokenprune.dual.index import member_mask as member_mask
    from tokenprune.dual.index import one_hot as one_hot
    from tokenprune.dual.magnitude import attention_magnitude as attention_magnitude
    from tokenprune.dual.magnitude import kernel_magnitude as kernel_magnitude
    from tokenprune.dual.magnitude import leave_one_out as leave_one_out
    from tokenprune.dual.magnitude import mean_rows as mean_rows
    from tokenprune.dual.magnitude import query_free_magnitude as query_free_magnitude
    from tokenprune.dual.magnitude import scaled as scaled
    from tokenprune.dual.magnitude import squared_distance as squared_distance
    from tokenprune.dual.merge import assign as assign
    from tokenprune.dual.merge import best_match as best_match
    from tokenprune.dual.merge import bipartite_merge as bipartite_merge
    from tokenprune.dual.merge import mean_map as mean_map
    from tokenprune.dual.merge import represented as represented
    from tokenprune.dual.merge import stride_targets as stride_targets
    from tokenprune.dual.oracle import exhaustive_subset as exhaustive_subset
    from tokenprune.dual.oracle import search_subset as search_subset
    from tokenprune.dual.peaks import density_peaks as density_peaks
    from tokenprune.dual.rotary import rotary_response as rotary_response
    from tokenprune.dual.rotary import rotation as rotation
    from tokenprune.dual.select import chunk_sizes as chunk_sizes
    from tokenprune.dual.select import chunked_mmr as chunked_mmr
    from tokenprune.dual.select import first_largest as first_largest
    from tokenprune.dual.select import max_min as max_min
    from tokenprune.dual.select import mmr as mmr
    from tokenprune.dual.select import top_k as top_k
    from tokenprune.dual.tiling import TiledMatrix as TiledMatrix
    from tokenprune.dual.tiling import tiles as tiles
    from tokenprune.dual.transport import transported_mass as transported_mass
    from tokenprune.dual.video import by_frame as by_frame
    from tokenprune.dual.video import cell_cosine as cell_cosine
    from tokenprune.dual.video import constant_cells as constant_cells
    from tokenprune.dual.video import even_places as even_places
    from tokenprune.dual.video import even_shares as even_shares
    from tokenprune.dual.video import mean_pairwise_cosine as mean_pairwise_cosine
    from tokenprune.dual.video import neighbour_cosine as neighbour_cosine
    from tokenprune.dual.video import quota_members as quota_members
    from tokenprune.dual.video import runs as runs
    from tokenprune.dual.video import similarity_segments as similarity_segments
    from tokenprune.dual.video import static_windows as static_windows
    from tokenprune.dual.view import centre as centre
    from tokenprune.dual.view import expand_groups as expand_groups
    from tokenprune.dual.view import group_queries as group_queries
    from tokenprune.dual.view import log_norm as log_norm
    from tokenprune.dual.view import rotate as rotate
    from tokenprune.dual.view import unit as unit
    from tokenprune.dual.view import unrotate as unrotate

_HOMES = {
    "adaptive": ("outliers",),
    "cover": ("propagated", "weighted_gain"),
    "duplication": (
        "DenseDuplication",
        "Duplication",
        "KernelDuplication",
        "bandwidth_scaled",
        "cosine_duplication",
        "metric_duplication",
        "nearest_neighbour_bandwidth",
        "value_key_duplication",
    ),
    "error": ("SquaredError", "dual_error", "masked_softmax", "output_error", "subset_error"),
    "greedy": ("coverage", "dpp_greedy", "pivot_dissimilar"),
    "groups": ("capped_top_k", "rank_in_group", "split_budget"),
    "index": ("complement", "member_mask", "one_hot"),
    "magnitude": (
        "attention_magnitude",
        "kernel_magnitude",
        "leave_one_out",
        "mean_rows",
        "query_free_magnitude",
        "scaled",
        "squared_distance",
    ),
    "merge": ("assign", "best_match", "bipartite_merge", "mean_map", "represented", "stride_targets"),
    "oracle": ("exhaustive_subset", "search_subset"),
    "peaks": ("density_peaks",),
    "rotary": ("rotary_response", "rotation"),
    "select": ("chunk_sizes", "chunked_mmr", "first_largest", "max_min", "mmr", "top_k"),
    "tiling": ("TiledMatrix", "tiles"),
    "transport": ("transported_mass",),
    "video": (
        "by_frame",
        "cell_cosine",
        "constant_cells",
        "even_places",
        "even_shares",
        "mean_pairwise_cosine",
        "neighbour_cosine",
        "quota_members",
        "runs",
        "similarity_segments",
        "static_windows",
    ),
    "view": ("centre", "expand_groups", "group_queries", "log_norm", "rotate", "unit", "unrotate"),
}
_MODULES = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(importlib.import_module(f"tokenprune.dual.{_MODULES[name]}"), name)
    raise AttributeError(f"module `tokenprune.dual` has no attribute `{name}`")


def __dir__() -> list[str]:
    return sorted(_MODULES)
