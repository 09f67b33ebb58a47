"""In which order the computations that are compared take turns, how often, and what their ratios are."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

MIRRORED = 2
"""Turns of a round: one, and one in the opposite order."""


def order_of(names: Sequence[str], turn: int) -> tuple[str, ...]:
    """Who runs when in one turn: `U P F` and `F P U`, then `P F U` and `U F P`, then `F U P` and `P U F`, and again.

    Two turns are a round: the second one is the first one backwards. So in a round the mean place of each is the same,
    and a machine that gets slower by the same amount from run to run adds the same to all. As many rounds as there are
    names are a rotation: in it each has had every place of a round once, so what a place does to a run, it does to all.

    Args:
        names: The computations that are compared.
        turn: Number of the turn, from 0.
    """
    shift = turn // MIRRORED % len(names)
    forward = (*names[shift:], *names[:shift])
    return forward if turn % MIRRORED == 0 else forward[::-1]


def take_turns(
    names: Sequence[str],
    run: Callable[[str, int], None],
    enough: Callable[[], bool],
    *,
    least: int,
    most: int,
    limit_s: float,
    now: Callable[[], float] = time.monotonic,
) -> int:
    """Run all computations turn by turn: `least` turns, then further rotations until one of the limits is reached.

    Args:
        names: The computations.
        run: Runs one of them in a turn.
        enough: Whether the results are good enough; asked after `least` turns and after every further rotation.
        least: Turns at least; an odd number is made even, because rounds are whole.
        most: Turns at most; the same.
        limit_s: Seconds after which no further rotation begins.
        now: A clock, in seconds.

    Returns:
        The number of turns.
    """
    least, most = (MIRRORED * -(-each // MIRRORED) for each in (least, most))
    rotation = MIRRORED * len(names)
    begin = now()
    for turn in range(max(least, most)):
        for name in order_of(names, turn):
            run(name, turn)
        beyond = turn + 1 - least
        if beyond >= 0 and beyond % rotation == 0 and (enough() or now() - begin >= limit_s):
            return turn + 1
    return max(least, most)


def paired(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """One ratio per round: the time of both turns, divided by the other's.

    Exact where each run takes longer than the one before by the same amount, because in a round the places of all have
    the same sum.

    Args:
        ours: Times, turn by turn.
        theirs: The other's, of the same turns.
    """
    rounds = range(0, len(ours), MIRRORED)
    return [sum(ours[turn : turn + MIRRORED]) / sum(theirs[turn : turn + MIRRORED]) for turn in rounds]
