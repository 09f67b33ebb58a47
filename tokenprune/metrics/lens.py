"""The same lens for every pruner: what its kept subset does to each layer's implicit weight and attention output.

Both errors are measured against an unpruned prefill: queries, keys and values are those of the unpruned model, and
only the set of tokens changes. So a layer's figure is the error made *there*, not the error carried there from below.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tokenprune.dual.error import dual_error, output_error
from tokenprune.engine import CapturedLayer
from tokenprune.pruner import PruneRecord


@dataclass(frozen=True, slots=True)
class Cut:
    """What one stop left of one image: original indices, log weights (empty where there are none), reasons."""

    image: int
    site: str
    decoder_layer: int
    before: int
    indices: tuple[int, ...]
    log_weights: tuple[float, ...] = ()
    labels: tuple[str, ...] = ()
    merged: bool = False

    @property
    def attention_layer(self) -> int:
        """The first decoder layer whose attention runs under the cut; one in the middle of a layer comes after its."""
        return self.decoder_layer + self.site.endswith(".mid")


@dataclass(frozen=True, slots=True)
class KeptTokens:
    """All cuts of one sample, in running order."""

    cuts: tuple[Cut, ...]

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> KeptTokens:
        """What `dataclasses.asdict` gave, after a way through JSON.

        Raises:
            TypeError: It is something else.
        """
        sequences = ("indices", "log_weights", "labels")
        return cls(tuple(Cut(**{**cut, **{name: tuple(cut[name]) for name in sequences}}) for cut in data["cuts"]))

    def inexact(self) -> str:
        """Why the kept rows are not a subset of the original updates, or nothing where they are."""
        if any(cut.merged for cut in self.cuts):
            return "merged tokens are not a subset of the original ones"
        first: dict[int, int] = {}
        for cut in self.cuts:
            if cut.before > first.setdefault(cut.image, cut.before):
                return "frames were cut one by one before the decoder and as one video inside it"
            if cut.site == "pixels" or cut.site.startswith("tower"):
                return f"tokens cut at `{cut.site}` are re-encoded: no subset of the original ones"
            if cut.site.startswith("decode"):
                return "cuts at decoding steps leave the prefill, which the lens looks at, whole"
        return ""

    def exact(self) -> bool:
        """True where rows were only dropped: merged or re-encoded rows are not a subset of the original updates."""
        return not self.inexact()

    def at_layer(self, layer: int) -> dict[int, Cut]:
        """Per image, the last cut that the attention of a decoder layer runs under; images without one are whole."""
        return {cut.image: cut for cut in self.cuts if cut.attention_layer <= layer}

    def final(self) -> dict[int, Cut]:
        """Per image, the last cut of all."""
        return {cut.image: cut for cut in self.cuts}


def kept_tokens(record: PruneRecord, sample: int) -> KeptTokens:
    """The cuts of one sample of a record."""
    return KeptTokens(
        tuple(
            Cut(
                image=unit.image,
                site=unit.site,
                decoder_layer=unit.decoder_layer,
                before=unit.before,
                indices=tuple(unit.indices),
                log_weights=tuple(unit.log_weights),
                labels=tuple(unit.labels),
                merged=unit.merged,
            )
            for unit in record.units
            if unit.sample == sample
        )
    )


def lens_errors(layers: Sequence[CapturedLayer], kept: Sequence[KeptTokens | None]) -> dict[str, Any]:
    """Dual-form and output error of each decoder layer, as relative norms.

    Args:
        layers: The unpruned capture of the first samples, every decoder layer.
        kept: Per captured sample, its cuts; `None` where the sample failed.

    Returns:
        `dual_error` and `output_error`, means over the layers (a layer before the cut counts 0, as in the
        layer-averaged tokens), `dual_error_per_layer` and `output_error_per_layer`, `samples`, and `reason`, which
        says why there is nothing to measure (all figures are `None` then). The dual-form error is
        ||W - W_S|| / ||W|| of the visual tokens' updates, keys without RoPE, mean over heads of the squares; the
        output error is ||o - o_S|| / ||o|| of the attention output of the text rows after the image, with RoPE,
        over all heads; both are root mean squares over the samples.
    """
    usable = [(sample, cuts) for sample, cuts in enumerate(kept) if cuts is not None]
    reason = ""
    if not usable:
        reason = "no sample of the lens ran"
    else:
        reason = next((cuts.inexact() for _, cuts in usable if not cuts.exact()), "")
    if reason:
        return _answer([], [], 0, reason)
    dual, output = [], []
    for captured in layers:
        pairs = [_errors_of(captured, sample, cuts) for sample, cuts in usable]
        dual.append((sum(pair[0] for pair in pairs) / len(pairs)) ** 0.5)
        output.append((sum(pair[1] for pair in pairs) / len(pairs)) ** 0.5)
    return _answer(dual, output, len(usable), "")


def _answer(dual: list[float], output: list[float], samples: int, reason: str) -> dict[str, Any]:
    return {
        "dual_error": sum(dual) / len(dual) if dual else None,
        "output_error": sum(output) / len(output) if output else None,
        "dual_error_per_layer": dual,
        "output_error_per_layer": output,
        "samples": samples,
        "reason": reason,
    }


def _errors_of(captured: CapturedLayer, sample: int, cuts: KeptTokens) -> tuple[float, float]:
    """Squared relative errors (dual form, output) of one sample at one layer."""
    visual = captured.visual[sample]
    kept, log_weights = kept_mask(cuts, cuts.at_layer(captured.layer), len(visual), visual.device)
    if bool(kept.all()) and not bool(log_weights.any()):
        return 0.0, 0.0
    one = slice(sample, sample + 1)
    dual = dual_error(
        captured.keys_nope[one][:, :, visual], captured.values[one][:, :, visual], kept[None], log_weights[None]
    )
    rows = captured.text_after[sample]
    length = captured.keys.shape[2]
    places = torch.arange(length, device=visual.device)
    stays = captured.valid[sample].clone()
    stays[visual] = kept
    weights = torch.zeros(length, device=visual.device)
    weights[visual] = log_weights
    output = output_error(
        captured.queries[one][:, :, rows],
        captured.keys[one],
        captured.values[one],
        stays[None],
        allowed=((places <= rows[:, None]) & captured.valid[sample])[None],
        log_weights=weights[None],
    )
    return float(dual.per_head().mean()), float(output.relative())


def kept_mask(cuts: KeptTokens, current: Mapping[int, Cut], tokens: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Which of a sample's visual tokens are there under each image's current cut, (N,) bool, and log weights, (N,).

    Images follow each other in the capture; an image's size is what its first cut found.
    """
    kept = torch.ones(tokens, dtype=torch.bool, device=device)
    log_weights = torch.zeros(tokens, device=device)
    sizes: dict[int, int] = {}
    for cut in cuts.cuts:
        sizes.setdefault(cut.image, cut.before)
    for image, cut in current.items():
        start = sum(size for other, size in sizes.items() if other < image)
        kept[start : start + sizes[image]] = False
        places = torch.tensor(cut.indices, dtype=torch.long, device=device) + start
        kept[places] = True
        if cut.log_weights:
            log_weights[places] = torch.tensor(cut.log_weights, device=device)
    return kept, log_weights
