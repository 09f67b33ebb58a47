"""Muon for the hidden matrices, AdamW for the rest, one warm-up/stable/decay schedule for both."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True)
class Schedule:
    """Learning-rate factor: linear warm-up, flat, then a linear decay to `floor`."""

    steps: int
    warmup: int
    decay: int
    floor: float = 0.02

    def __call__(self, step: int) -> float:
        """The factor at `step`."""
        up = (step + 1) / self.warmup
        down = (self.steps - step) / max(1, self.decay)
        return max(self.floor, min(1.0, up, down))


class Optimiser:
    """Both optimisers as one, with its state in one dictionary."""

    def __init__(self, modules: Iterable[nn.Module], muon_lr: float, adam_lr: float) -> None:
        hidden: list[nn.Parameter] = []
        rest: list[nn.Parameter] = []
        for module in modules:
            for name, parameter in module.named_parameters():
                if not parameter.requires_grad:
                    continue
                # Embeddings and heads are look-ups, not maps between hidden states.
                inner = "layers." in name and parameter.ndim == 2
                (hidden if inner else rest).append(parameter)
        self.parameters = [*hidden, *rest]
        self._parts = (
            torch.optim.Muon(hidden, lr=muon_lr, weight_decay=0.02, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(rest, lr=adam_lr, betas=(0.9, 0.98), weight_decay=0.01),
        )
        self._rates = (muon_lr, adam_lr)

    def step(self, factor: float, clip: float = 1.0) -> float:
        """Clip, update, clear; returns the norm of the gradient before clipping."""
        norm = float(nn.utils.clip_grad_norm_(self.parameters, clip))
        if math.isfinite(norm):
            for part, rate in zip(self._parts, self._rates, strict=True):
                for group in part.param_groups:
                    group["lr"] = rate * factor
                part.step()
        for parameter in self.parameters:
            parameter.grad = None
        return norm

    def state_dict(self) -> dict[str, Any]:
        """State of both."""
        return {"parts": [part.state_dict() for part in self._parts]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore both."""
        for part, saved in zip(self._parts, state["parts"], strict=True):
            part.load_state_dict(saved)
