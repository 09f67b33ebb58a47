"""How wrong a pruned layer is: the error of the implicit weight, and the exact error of the attention output.

Everything is in logarithms or relative to its own maximum; sums of squares are accumulated in float64. Heads are
taken one by one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from tokenprune.dual.tiling import tiles
from tokenprune.dual.view import centre, l2_normalize, log_norm


@dataclass(frozen=True, slots=True)
class SquaredError:
    """A squared error and the squared size of what it is an error of, per unit and head.

    Args:
        error: (B, H) float64.
        size: (B, H) float64, on the same scale.
    """

    error: Tensor
    size: Tensor

    def relative(self) -> Tensor:
        """Sum of the heads' errors over the sum of their sizes, (B,) float64; 0 where nothing was there to lose."""
        return _ratio(self.error.sum(dim=-1), self.size.sum(dim=-1))

    def per_head(self) -> Tensor:
        """Relative error of each head, (B, H) float64."""
        return _ratio(self.error, self.size)


def dual_error(
    keys: Tensor, values: Tensor, kept: Tensor, log_weights: Tensor | None = None, *, centred: bool = True
) -> SquaredError:
    """Error of the implicit weight, ||W - W_S||^2 = c^T G c with G_ij = kappa(k_i, k_j) <v_i, v_j>.

    c_i is 1 for a dropped token, 1 - w_i for a kept one of weight w_i. Each head is on its own scale (its largest
    update has norm 1), so that no exponential overflows; take `per_head().mean(-1)` over heads of different key norms.

    Args:
        keys: (B, G, N, d), with or without RoPE.
        values: (B, G, N, d).
        kept: (B, N) bool.
        log_weights: Logarithms of w, (B, N), read at kept tokens only, or `None` for w = 1.
        centred: Subtract the mean key first. Attention does not change when all keys move together, but the size of
            the updates does; the mean is the choice that makes them smallest.

    Returns:
        Squared error and squared norm of W, per key-value head; memory is some rows of one head's Gram matrix.
    """
    units, groups, tokens, width = keys.shape
    coefficients = _coefficients(kept, log_weights)
    keys = centre(keys) if centred else keys.float()
    scaled = keys / width**0.25
    error = torch.zeros(units, groups, dtype=torch.float64, device=keys.device)
    size = torch.zeros_like(error)
    for group in range(groups):
        key, direction = scaled[:, group], l2_normalize(values[:, group])
        half = 0.5 * key.square().sum(dim=-1)
        log_size = half.double() + log_norm(values[:, group]).double()
        update = (log_size - log_size.amax(dim=-1, keepdim=True)).exp()
        lost = coefficients * update
        for part in tiles(tokens, tokens):
            squares = half[:, part, None] + half.unsqueeze(-2)
            kernel = (key[:, part] @ key.transpose(-1, -2) - squares).clamp_max(0.0).exp()
            gram = (kernel * (direction[:, part] @ direction.transpose(-1, -2))).double()
            error[:, group] += torch.einsum("bi,bij,bj->b", lost[:, part], gram, lost)
            size[:, group] += torch.einsum("bi,bij,bj->b", update[:, part], gram, update)
    return SquaredError(error.clamp_min(0.0), size.clamp_min(0.0))


def output_error(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    kept: Tensor,
    *,
    allowed: Tensor | None = None,
    rows: Tensor | None = None,
    log_weights: Tensor | None = None,
) -> SquaredError:
    """Exact error of the softmax attention output, E_q ||o - o_S||^2, renormalisation included.

    Args:
        queries: (B, H, R, d), with RoPE.
        keys: Keys of the whole context, text too, (B, G, S, d), with RoPE.
        values: (B, G, S, d).
        kept: (B, S) bool; text is kept.
        allowed: Which keys a row may see (causal mask, padding), (B, R, S) bool, or `None` for all.
        rows: Which rows count, (B, R) bool, or `None` for all.
        log_weights: Added to the logits of the kept keys, (B, S), or `None`.

    Returns:
        Squared error and squared size of the output, per query head, means over the rows. A row that sees no kept key
        has output zero.
    """
    units, heads, count, width = queries.shape
    per_group = heads // keys.shape[1]
    if allowed is None:
        allowed = torch.ones(units, count, keys.shape[2], dtype=torch.bool, device=keys.device)
    row_weight = _row_weight(rows, units, count, keys.device)
    centred = centre(keys)
    error = torch.zeros(units, heads, dtype=torch.float64, device=keys.device)
    size = torch.zeros_like(error)
    for head in range(heads):
        key, value = centred[:, head // per_group], values[:, head // per_group].float()
        logits = queries[:, head].float() @ key.transpose(-1, -2) / math.sqrt(width)
        output = masked_softmax(logits, allowed) @ value
        biased = logits if log_weights is None else logits + log_weights.float().unsqueeze(1)
        pruned = masked_softmax(biased, allowed & kept.unsqueeze(1)) @ value
        error[:, head] = ((output - pruned).double().square().sum(-1) * row_weight).sum(-1)
        size[:, head] = (output.double().square().sum(-1) * row_weight).sum(-1)
    return SquaredError(error, size)


def subset_error(
    attention: Tensor,
    values: Tensor,
    output: Tensor,
    kept: Tensor,
    *,
    rows: Tensor | None = None,
    log_weights: Tensor | None = None,
) -> SquaredError:
    """The same error as `output_error`, from probabilities and outputs that are already there.

    o_S = (o - sum_R a_i v_i) / (1 - A_R): the rest of the context (text) need not be known token by token.

    Args:
        attention: Probabilities of the N visual tokens over the whole causal row, (B, H, R, N).
        values: Values of the visual tokens, (B, G, N, d).
        output: Attention output over the whole causal row, (B, H, R, d).
        kept: (B, N) bool.
        rows: Which rows count, (B, R) bool, or `None` for all.
        log_weights: Added to the logits of the kept tokens, (B, N), or `None`.
    """
    units, heads, count, _ = attention.shape
    per_group = heads // values.shape[1]
    row_weight = _row_weight(rows, units, count, attention.device)
    change = _coefficients(kept, log_weights).float()
    error = torch.zeros(units, heads, dtype=torch.float64, device=attention.device)
    size = torch.zeros_like(error)
    for head in range(heads):
        lost = attention[:, head].float() * change.unsqueeze(1)
        value, full = values[:, head // per_group].float(), output[:, head].float()
        mass = lost.sum(dim=-1, keepdim=True)
        # o - o_S = (sum_R a_i v_i - A_R o) / (1 - A_R); the mass left is floored, not the error
        moved = (lost @ value - mass * full) / (1.0 - mass).clamp_min(torch.finfo(torch.float32).eps)
        error[:, head] = (moved.double().square().sum(-1) * row_weight).sum(-1)
        size[:, head] = (full.double().square().sum(-1) * row_weight).sum(-1)
    return SquaredError(error, size)


def masked_softmax(logits: Tensor, allowed: Tensor) -> Tensor:
    """Softmax over the allowed columns in float32; a row without any is all zeros, not NaN."""
    hidden = logits.float().masked_fill(~allowed, -torch.inf)
    top = hidden.amax(dim=-1, keepdim=True)
    weight = (hidden - torch.where(top.isfinite(), top, torch.zeros_like(top))).exp()
    return weight / weight.sum(dim=-1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)


def _coefficients(kept: Tensor, log_weights: Tensor | None) -> Tensor:
    """1 for a dropped token, 1 - w for a kept one, (B, N) float64."""
    weight = torch.ones_like(kept, dtype=torch.float64) if log_weights is None else log_weights.double().exp()
    return 1.0 - torch.where(kept, weight, torch.zeros_like(weight))


def _row_weight(rows: Tensor | None, units: int, count: int, device: torch.device) -> Tensor:
    """Equal weights of the real rows, (B, R) float64, that sum to one."""
    if rows is None:
        return torch.full((units, count), 1.0 / count, dtype=torch.float64, device=device)
    real = rows.to(device=device, dtype=torch.float64)
    return real / real.sum(dim=-1, keepdim=True).clamp_min(1.0)


def _ratio(part: Tensor, whole: Tensor) -> Tensor:
    return torch.where(whole > 0, part / whole.clamp_min(torch.finfo(torch.float64).tiny), torch.zeros_like(part))
