"""What the parts of all axes have in common: a name, a meaning, a term, the needs they open, where they work."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TypeVar

from tokenprune.errors import UnknownNameError
from tokenprune.site import SiteKind

#: Kinds of sites with decoder projections, and all kinds that a composition may cut at.
DECODER: tuple[SiteKind, ...] = ("input", "layer")
EVERYWHERE: tuple[SiteKind, ...] = ("encoder", "input", "layer")


@dataclass(frozen=True, kw_only=True)
class Part:
    """One value of one axis.

    Args:
        name: What a sweep file says.
        meaning: One line.
        term: What it contributes to the formula, in plain text.
        needs: What the view must give (see `tokenprune.pruner.NEEDS`).
        sites: Kinds of sites where the view can give it.
        reads: Settings that it reads, by the name of the option.
    """

    name: str
    meaning: str
    term: str
    needs: tuple[str, ...] = ()
    sites: tuple[SiteKind, ...] = EVERYWHERE
    reads: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """The term for people."""
        return self.term


AnyPart = TypeVar("AnyPart", bound=Part)


def by_name(parts: Iterable[AnyPart]) -> Mapping[str, AnyPart]:
    """A read-only table of parts in the given order."""
    return MappingProxyType({part.name: part for part in parts})


def find(axis: str, name: str, parts: Mapping[str, AnyPart]) -> AnyPart:
    """The part of that name.

    Raises:
        UnknownNameError: No such part; the hint gives close matches.
    """
    try:
        return parts[name]
    except KeyError:
        raise UnknownNameError(axis, str(name), parts) from None
