"""Checks of single options: the site, words and numbers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import cast

from tokenprune.composition.options import Options
from tokenprune.errors import ConfigError, UnknownNameError
from tokenprune.site import Site, SiteKind

_SITE = re.compile(r"(?P<kind>[a-z]+)(:(?P<layer>\d+)(?P<mid>\.mid)?)?")
_HERE = ("encoder", "input", "layer")
_EXAMPLES = ("encoder", "input", "layer:2", "layer:2.mid")
_ELSEWHERE: Mapping[str, str] = {
    "pixels": "at `pixels` there are no tokens yet to choose from",
    "tower": "inside the encoder the rows are not the tokens yet that the parts speak of",
    "decode": "a decoding step selects a view of the cache, which no part describes",
}
_WORDS: Mapping[str, tuple[str, ...]] = {
    "rows": ("text", "last", "visual"),
    "row_pooling": ("logmeanexp", "mean", "max"),
    "head_pooling": ("mean", "max", "logmeanexp"),
    "magnitude_scale": ("rank", "minmax", "none"),
    "overlap": ("max", "mean"),
    "schedule": ("exact", "fixed", "growing", "shrinking"),
    "position_ids": ("keep", "compact"),
}
_RANGES: Mapping[str, tuple[float, float]] = {
    "magnitude_layer": (-1, float("inf")),
    "duplication_layer": (-1, float("inf")),
    "tau": (0, float("inf")),
    "trade_off": (0, 1),
    "first_chunk": (1, float("inf")),
    "growth": (1e-6, 1),
    "suppression": (0, 1),
    "pivots": (1, float("inf")),
    "window": (1, float("inf")),
}


def parse_site(text: str) -> Site:
    """`encoder`, `input`, `layer:2` or `layer:2.mid`.

    Raises:
        ConfigError: Not a site, or one where parts cannot work.
    """
    found = _SITE.fullmatch(text)
    kind = found["kind"] if found else text
    if kind in _ELSEWHERE:
        raise ConfigError(
            f"a composition cannot cut at site `{text}`: {_ELSEWHERE[kind]}", hint="use `encoder`, `input` or `layer:2`"
        )
    if found is None or kind not in _HERE:
        raise UnknownNameError("site", text, _EXAMPLES)
    if (kind == "layer") != (found["layer"] is not None):
        raise ConfigError(f"not a site: `{text}`", hint="use `encoder`, `input`, `layer:2` or `layer:2.mid`")
    return Site(cast(SiteKind, kind), int(found["layer"] or 0), "mid" if found["mid"] else "in")


def check_values(options: Options) -> None:
    """Check the options that are words and numbers.

    Raises:
        ConfigError: One is not allowed.
    """
    for name, allowed in _WORDS.items():
        value = getattr(options, name)
        if value not in allowed:
            unknown = UnknownNameError(f"value of option `{name}`", value, allowed)
            raise ConfigError(unknown.message, hint=unknown.hint)
    for name, (low, high) in _RANGES.items():
        if not low <= getattr(options, name) <= high:
            raise ConfigError(f"option `{name}` must lie in [{low:g}, {high:g}], got {getattr(options, name)}")
    if options.mass_cap != 0 and options.mass_cap < 1:
        raise ConfigError(f"option `mass_cap` must be 0 or at least 1, got {options.mass_cap}", hint="0 sets no limit")
