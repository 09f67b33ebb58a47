"""Problems on which selection rules are compared: synthetic clusters, and real projections of a trained model."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from tokenprune import dual
from tokenprune.testing import Recording


@dataclass(frozen=True)
class Layer:
    """Where the error of a subset is measured: one decoder layer of one unit.

    Args:
        queries: (1, H, R, d), rows that no rule has seen (synthetic) or the text rows (real).
        keys: Whole context, (1, G, S, d).
        values: (1, G, S, d).
        allowed: (1, R, S) bool.
        visual: Rows of the N visual tokens in the context, (N,).
    """

    queries: Tensor
    keys: Tensor
    values: Tensor
    allowed: Tensor
    visual: Tensor

    def error(self, anchors: Tensor, log_weights: Tensor | None) -> float:
        """Relative squared output error E||o - o_S||^2 / E||o||^2 of the kept tokens `anchors` (K,)."""
        length = self.keys.shape[2]
        kept = torch.ones(1, length, dtype=torch.bool)
        kept[0, self.visual] = False
        kept[0, self.visual[anchors]] = True
        bias = torch.zeros(1, length)
        if log_weights is not None:
            bias[0, self.visual[anchors]] = log_weights
        found = dual.output_error(self.queries, self.keys, self.values, kept, allowed=self.allowed, log_weights=bias)
        return float(found.relative())


@dataclass(frozen=True)
class Problem:
    """One unit to prune: what a rule may see, where its error is measured, and the clusters where they are known."""

    recording: Recording
    layers: tuple[Layer, ...]
    clusters: Tensor | None = None


def synthetic(
    seeds: int, *, tokens: int = 1024, clusters: int = 64, heads: int = 4, width: int = 32
) -> Iterator[Problem]:
    """Clusters of very different size (a few large backgrounds, many small objects), spread of norms, 8 rows of text.

    Rules see 16 queries; the error is measured on 256 others from the same distribution. There is no text context.
    """
    for seed in range(seeds):
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int, generator: torch.Generator = generator) -> Tensor:
            return torch.randn(*shape, generator=generator)

        share = torch.softmax(1.2 * normal(clusters), dim=0)
        label = torch.multinomial(share, tokens, replacement=True, generator=generator)
        common = normal(1, heads, 1, width)
        key_centres, value_centres = normal(1, heads, clusters, width), normal(1, heads, clusters, width)
        loudness = (0.3 * normal(1, 1, clusters, 1)).exp()
        keys = key_centres[:, :, label] + 0.25 * normal(1, heads, tokens, width) + 2.0 * common
        values = (value_centres * loudness)[:, :, label] + 0.25 * normal(1, heads, tokens, width) + 0.5 * common
        target = torch.randint(clusters, (272,), generator=generator)
        queries = 2.0 * key_centres[:, :, target] + 1.0 * normal(1, heads, 272, width)
        seen, unseen = queries[:, :, :16], queries[:, :, 16:]
        recording = Recording(
            tokens=tokens,
            hidden=values.transpose(1, 2).flatten(2),
            projected=values.transpose(1, 2).flatten(2),
            keys=keys,
            keys_nope=keys,
            values=values,
            queries={"text": seen, "last": seen[:, :, -1:], "visual": keys},
            queries_nope={"text": seen, "last": seen[:, :, -1:], "visual": keys},
        )
        everything = torch.ones(1, 256, tokens, dtype=torch.bool)
        layer = Layer(unseen, keys, values, everything, torch.arange(tokens))
        yield Problem(recording, (layer,), label)


def captured(samples: int, *, cut: int = 2, seed_index: int = 0) -> Iterator[Problem]:
    """Real projections of the shipped model on the first test samples; errors at every layer from the cut on."""
    from tokenprune.checkpoints import load_model
    from tokenprune.engine import capture_prefill
    from tokenprune.plugins import load_host

    host = load_host()
    loaded = load_model("scenes", host=host)
    task = host.tasks.get("scenes").build()
    for index in range(seed_index, seed_index + samples):
        sample = task[index]
        content = [{"type": "image"} for _ in sample.images] + [{"type": "text", "text": sample.question}]
        text = loaded.processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        inputs = loaded.processor(images=[list(sample.images)], text=[text], return_tensors="pt", padding=True)
        layers = capture_prefill(loaded.model, inputs, range(cut, loaded.facts.num_layers))
        entered = layers[0]
        visual, rows = entered.visual[0], entered.text_after[0]
        length = entered.keys.shape[2]
        allowed = (torch.arange(length) <= rows[:, None])[None]
        others = torch.ones(length, dtype=torch.bool)
        others[visual] = False
        probabilities, outputs = _attention(entered.queries[:, :, rows], entered.keys, entered.values, allowed)
        recording = Recording(
            tokens=len(visual),
            hidden=entered.values[:, :, visual].transpose(1, 2).flatten(2),
            keys=entered.keys[:, :, visual],
            keys_nope=entered.keys_nope[:, :, visual],
            values=entered.values[:, :, visual],
            queries={"text": entered.queries[:, :, rows], "visual": entered.queries[:, :, visual]},
            queries_nope={"text": entered.queries_nope[:, :, rows], "visual": entered.queries_nope[:, :, visual]},
            attention={"text": probabilities[..., visual], "last": probabilities[:, :, -1:][..., visual]},
            attention_output={"text": outputs},
        )
        yield Problem(
            recording,
            tuple(Layer(item.queries[:, :, rows], item.keys, item.values, allowed, visual) for item in layers),
        )


def _attention(queries: Tensor, keys: Tensor, values: Tensor, allowed: Tensor) -> tuple[Tensor, Tensor]:
    keys, values = (dual.expand_groups(x, queries.shape[1]) for x in (keys, values))
    logits = queries @ keys.transpose(-1, -2) / math.sqrt(keys.shape[-1])
    probabilities = logits.masked_fill(~allowed[:, None], -torch.inf).softmax(dim=-1)
    return probabilities, probabilities @ values
