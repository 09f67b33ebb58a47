"""Greedy runs of one prepared prompt: when their parts happened, what they count, and what they leave."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor

from tokenprune.engine.timestamps import Timestamps
from tokenprune.errors import IncompatibleError
from tokenprune.evaluation.cost.energy import energy_per_run, synchronised
from tokenprune.evaluation.cost.flops import Counted, count
from tokenprune.evaluation.cost.spread import Spread
from tokenprune.evaluation.cost.turns import paired
from tokenprune.evaluation.machine.memory import MIB, cache_bytes, peak_memory
from tokenprune.evaluation.machine.nvml import Gpu
from tokenprune.evaluation.machine.timing import Clock, no_collection
from tokenprune.families.supported import cache_in


@dataclass
class Times:
    """Milliseconds of the parts of runs, run by run.

    `encoder` is empty if its part cannot be seen. Runs of the prefill alone are in `encoder` and `prefill` only.
    """

    encoder: list[float] = field(default_factory=list)
    prefill: list[float] = field(default_factory=list)
    first_token: list[float] = field(default_factory=list)
    decode: list[float] = field(default_factory=list)
    total: list[float] = field(default_factory=list)

    def over(self, other: Times) -> Spread:
        """The prefills divided by the other's of the same turns, round by round."""
        return Spread.of(paired(self.prefill, other.prefill))


@dataclass(frozen=True, slots=True, kw_only=True)
class Durations:
    """How long the parts of a run take: medians with quartiles; what is not known is `None`, never 0.

    Args:
        encoder_ms: Vision tower and projector, with what a pruner does inside them.
        prefill_ms: From the prepared inputs to the logits of the last prompt token: encoder, projector, pruner,
            decoder.
        first_token_ms: To the first answer token: the prefill, and what `generate` does around it.
        decode_ms_per_token: Each further token.
        total_ms: The first and all further tokens.
    """

    encoder_ms: Spread | None
    prefill_ms: Spread
    first_token_ms: Spread
    decode_ms_per_token: Spread
    total_ms: Spread

    @classmethod
    def of(cls, times: Times) -> Durations:
        """Medians and quartiles of at least one run."""
        return cls(
            encoder_ms=Spread.of(times.encoder) if times.encoder else None,
            prefill_ms=Spread.of(times.prefill),
            first_token_ms=Spread.of(times.first_token),
            decode_ms_per_token=Spread.of(times.decode),
            total_ms=Spread.of(times.total),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures(Durations):
    """What one prompt costs: its times, and what can be counted.

    Args:
        peak_mem_mib: See `tokenprune.evaluation.machine.memory.peak_memory`, of a run to the first token.
        kv_mib: Bytes in the cache after the prefill, of all layers and all tokens.
        prefill_tflops: See `tokenprune.evaluation.cost.flops.count`, of a run to the first token.
        energy_j: Energy of the device in a whole run, idle power among it.
        kernels: Fused attention kernels that ran up to the first token, in the vision tower and in the decoder.
    """

    peak_mem_mib: float
    kv_mib: float
    prefill_tflops: float | None
    energy_j: Spread | None
    kernels: tuple[str, ...]


@dataclass(frozen=True)
class Subject:
    """One model, one prompt, and how long its answers are.

    Args:
        model: A stock model with `generate`.
        inputs: The processor's tensors, on the model's device.
        new_tokens: Tokens after the first.
        clock: The device's clock.
    """

    model: Any
    inputs: Mapping[str, Tensor]
    new_tokens: int
    clock: Clock

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        found: torch.device = next(self.model.parameters()).device
        return found

    def generate(self, tokens: int) -> Any:
        """Greedy generation of exactly `tokens` tokens."""
        return self.model.generate(
            **self.inputs,
            do_sample=False,
            min_new_tokens=tokens,
            max_new_tokens=tokens,
            return_dict_in_generate=True,
        )

    def whole(self) -> Any:
        """A run of full length."""
        return self.generate(1 + self.new_tokens)

    def first(self) -> Any:
        """A run to the first token."""
        return self.generate(1)

    def time(self, timestamps: Timestamps[Any], times: Times, *, whole: bool = True) -> None:
        """Time one run, part by part.

        Args:
            timestamps: Notes when the parts begin and end.
            times: Takes what was found.
            whole: Whether the run is of full length; otherwise it ends with the first token, and only the encoder and
                the prefill are timed.

        Raises:
            IncompatibleError: The model does not run once per token.
        """
        tokens = 1 + self.new_tokens if whole else 1
        timestamps.clear()
        self.clock.settle()
        with no_collection():
            begin = self.clock.mark()
            self.generate(tokens)
            end = self.clock.mark()
            self.clock.settle()
        if len(timestamps.forward) != tokens:
            raise IncompatibleError(
                f"`generate` ran the model {len(timestamps.forward)} times for {tokens} tokens, so its parts cannot be "
                "told apart",
                hint="reset the checkpoint's generation config (chunked prefill, assistants)",
            )
        between = self.clock.between
        if timestamps.encoder:
            times.encoder.append(sum(between(*stretch) for stretch in timestamps.encoder))
        times.prefill.append(between(begin, timestamps.forward[0][1]))
        if not whole:
            return
        chosen = timestamps.forward[1][0]  # the second pass begins with the first token
        times.first_token.append(between(begin, chosen))
        times.decode.append(between(chosen, end) / self.new_tokens)
        times.total.append(between(begin, end))

    def figures(self, times: Times, gpu: Gpu | None) -> dict[str, Any]:
        """The fields of `Figures`: the times so far, and what further runs show."""
        self.first()  # what a session does once, at its first run, is no part of the cost
        durations = Durations.of(times)
        counted: Counted = count(self.first)
        peak, made = peak_memory(self.device, self.first)
        return {
            **{each.name: getattr(durations, each.name) for each in fields(durations)},
            "peak_mem_mib": peak / MIB,
            "kv_mib": cache_bytes(cache_in(made)) / MIB,
            "prefill_tflops": counted.flops / 1e12,
            "energy_j": energy_per_run(gpu, synchronised(self.whole, self.device)),
            "kernels": counted.kernels,
        }
