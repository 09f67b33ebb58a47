"""Search for the subset with the smallest exact attention-output error: headroom, not a method.

The error is E_q ||o - o_S||^2 with renormalisation, over all heads and the given query rows. Greedy starts, then
sweeps of swaps that can only lower the error.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tokenprune.dual.error import subset_error
from tokenprune.dual.magnitude import leave_one_out, squared_distance
from tokenprune.dual.selection.select import first_largest, top_k
from tokenprune.errors import BudgetError


@dataclass(frozen=True)
class _Moves:
    """What adding or removing one token does, prepared once, for every unit, head and row.

    With r = num - den o for a subset's numerator and mass, adding i gives the error ||r + a_i u_i||^2 / (den + a_i)^2
    where u_i = v_i - o.
    """

    attention: Tensor  # (B, H, R, N)
    values: Tensor  # (B, H, N, d)
    output: Tensor  # (B, H, R, d)
    distances: Tensor  # ||u_i||^2, (B, H, R, N)
    weights: Tensor  # (B, R), rows sum to one

    def nothing(self) -> Tensor:
        """An empty subset, (B, N) bool."""
        return torch.zeros_like(self.attention[:, 0, 0], dtype=torch.bool)

    def scores(self, residual: Tensor, mass: Tensor, sign: float) -> Tensor:
        """Error after one more (sign 1) or one less (sign -1) token, for each of the N candidates, (B, N)."""
        along = residual @ self.values.transpose(-1, -2) - (residual * self.output).sum(-1, keepdim=True)
        moved = residual.square().sum(-1, keepdim=True)
        moved = moved + 2.0 * sign * self.attention * along + self.attention.square() * self.distances
        left = (mass.unsqueeze(-1) + sign * self.attention).clamp_min(torch.finfo(torch.float32).eps)
        return ((moved.clamp_min(0.0) / left.square()).sum(dim=1) * self.weights.unsqueeze(-1)).sum(dim=1)

    def change(self, residual: Tensor, mass: Tensor, index: Tensor, sign: float) -> tuple[Tensor, Tensor]:
        """Residual and mass after adding (sign 1) or removing (sign -1) token `index` (B,)."""
        at = index[:, None, None, None]
        share = self.attention.gather(-1, at.expand(*self.attention.shape[:3], 1))
        value = self.values.gather(2, at.expand(*self.values.shape[:2], 1, self.values.shape[-1]))
        return residual + sign * share * (value - self.output), mass + sign * share.squeeze(-1)


def search_subset(
    attention: Tensor, values: Tensor, output: Tensor, k: int, *, rows: Tensor | None = None, sweeps: int = 2
) -> Tensor:
    """Indices of k visual tokens whose exact output error is locally smallest, (B, k).

    Two starts: greedy growth from nothing (greedy elimination from everything where k > N/2), and the k largest
    leave-one-out magnitudes. Each goes through `sweeps` passes in which every pick may be exchanged for any other
    token; the better end wins. Ties go to the lower index.

    Args:
        attention: Probabilities of the visual tokens over the whole causal row, (B, H, R, N).
        values: (B, G, N, d).
        output: Attention output over the whole causal row, (B, H, R, d).
        k: Tokens to keep.
        rows: Which rows count, (B, R) bool, or `None` for all.
        sweeps: Passes of swaps after each start.

    Raises:
        BudgetError: k is out of range.
    """
    units, tokens = attention.shape[0], attention.shape[-1]
    if not 1 <= k <= tokens:
        raise BudgetError(f"cannot select {k} of {tokens} tokens", hint=f"select between 1 and {tokens}")
    moves = _prepare(attention, values, output, rows)
    everything = torch.arange(tokens, device=attention.device).expand(units, -1)
    if k == tokens:
        return everything
    greedy = _grow(moves, k) if k <= tokens // 2 else _eliminate(moves, k)
    largest = top_k(leave_one_out(attention, values, output, rows), k)
    found = [_swap(moves, start, sweeps) for start in (greedy, largest)]
    errors = [_error(attention, values, output, picks, rows).unsqueeze(-1) for picks in found]
    return torch.where(errors[1] < errors[0], found[1], found[0])


def _prepare(attention: Tensor, values: Tensor, output: Tensor, rows: Tensor | None) -> _Moves:
    attention, output = attention.float(), output.float()
    values = values.float().repeat_interleave(attention.shape[1] // values.shape[1], dim=1)
    if rows is None:
        weights = torch.full((attention.shape[0], attention.shape[2]), 1.0 / attention.shape[2], device=values.device)
    else:
        weights = rows.float() / rows.float().sum(dim=-1, keepdim=True).clamp_min(1.0)
    return _Moves(attention, values, output, squared_distance(output, values), weights)


def _only_text(moves: _Moves) -> tuple[Tensor, Tensor]:
    """Residual and mass of a context without any visual token: r = A_V o - sum_V a_i v_i, mass = 1 - A_V."""
    visual = moves.attention.sum(dim=-1)
    residual = visual.unsqueeze(-1) * moves.output - moves.attention @ moves.values
    return residual, (1.0 - visual).clamp_min(0.0)


def _grow(moves: _Moves, k: int) -> Tensor:
    """Add the best token k times, (B, k)."""
    residual, mass = _only_text(moves)
    kept = moves.nothing()
    for _ in range(k):
        pick = first_largest((-moves.scores(residual, mass, 1.0)).masked_fill(kept, -torch.inf))
        kept = kept.scatter(-1, pick.unsqueeze(-1), True)
        residual, mass = moves.change(residual, mass, pick, 1.0)
    return _members(kept, k)


def _eliminate(moves: _Moves, k: int) -> Tensor:
    """Take the least missed token away until k are left, (B, k)."""
    residual, mass = torch.zeros_like(moves.output), torch.ones_like(moves.attention[..., 0])
    kept = ~moves.nothing()
    for _ in range(kept.shape[-1] - k):
        drop = first_largest((-moves.scores(residual, mass, -1.0)).masked_fill(~kept, -torch.inf))
        kept = kept.scatter(-1, drop.unsqueeze(-1), False)
        residual, mass = moves.change(residual, mass, drop, -1.0)
    return _members(kept, k)


def _swap(moves: _Moves, start: Tensor, sweeps: int) -> Tensor:
    """Exchange each pick in turn for the best token outside (itself included, so the error never rises), (B, k)."""
    picks = start.clone()
    kept = moves.nothing().scatter(-1, picks, True)
    residual, mass = _only_text(moves)
    for slot in range(picks.shape[-1]):
        residual, mass = moves.change(residual, mass, picks[:, slot], 1.0)
    for _ in range(sweeps):
        for slot in range(picks.shape[-1]):
            old = picks[:, slot]
            residual, mass = moves.change(residual, mass, old, -1.0)
            kept = kept.scatter(-1, old.unsqueeze(-1), False)
            scores = moves.scores(residual, mass, 1.0).masked_fill(kept, torch.inf)
            new = first_largest(-scores)
            better = scores.gather(-1, new.unsqueeze(-1)) < scores.gather(-1, old.unsqueeze(-1))
            new = torch.where(better.squeeze(-1), new, old)
            residual, mass = moves.change(residual, mass, new, 1.0)
            kept = kept.scatter(-1, new.unsqueeze(-1), True)
            picks[:, slot] = new
    return picks.sort(dim=-1).values


def _members(kept: Tensor, k: int) -> Tensor:
    """Indices of the k True entries of each row, ascending, (B, k)."""
    return (~kept).sort(dim=-1, stable=True).indices[:, :k]


def _error(attention: Tensor, values: Tensor, output: Tensor, picks: Tensor, rows: Tensor | None) -> Tensor:
    """Exact squared error of a subset, summed over heads, (B,)."""
    kept = torch.zeros(picks.shape[0], attention.shape[-1], dtype=torch.bool, device=picks.device)
    kept = kept.scatter(-1, picks, True)
    return subset_error(attention, values, output, kept, rows=rows).error.sum(dim=-1)
