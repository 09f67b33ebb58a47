"""Stage 2: projector and language model learn to answer from frozen vision features."""

from __future__ import annotations

from collections import defaultdict
from typing import Final

import torch
from torch import nn
from torch.nn import functional as F
from transformers import LlavaForConditionalGeneration

from benchmarks.scenes.configs import GRID, PATCHES, llava_config
from benchmarks.scenes.packing import IGNORE, PREFIX, VOCABULARY, Pack
from benchmarks.scenes.vision import NAMES, PatchTargets
from tokenprune.tasks.scenes.generator import COLOURS
from tokenprune.tasks.scenes.questions import PLURALS

EMBEDDING_NORM: Final = 2.0


def build_llava() -> LlavaForConditionalGeneration:
    """The model with a start that makes looking things up easy.

    Words start orthogonal to each other, the output layer starts as their transpose, plurals next
    to their singulars, and keys start as queries: a token attends to tokens of like content.
    """
    model = LlavaForConditionalGeneration(llava_config())
    language = model.model.language_model
    with torch.no_grad():
        words = torch.empty(len(VOCABULARY), language.config.hidden_size)
        nn.init.orthogonal_(words, gain=EMBEDDING_NORM)
        for one, many in PLURALS.items():
            words[VOCABULARY[many]] = 0.8 * words[VOCABULARY[one]] + 0.6 * words[VOCABULARY[many]]
        language.embed_tokens.weight.copy_(words)
        model.lm_head.weight.copy_(0.3 * words)
        for layer in language.layers:
            attention = layer.self_attn
            width = attention.head_dim
            for key in attention.k_proj.weight.split(width):
                nn.init.orthogonal_(key)
            keys = attention.k_proj.weight.split(width)
            for head, query in enumerate(attention.q_proj.weight.split(width)):
                query.copy_(keys[head // attention.num_key_value_groups])
                query.add_(0.02 * torch.randn_like(query))
            for module in (attention.v_proj, layer.mlp.gate_proj, layer.mlp.up_proj):
                nn.init.normal_(module.weight, std=module.in_features**-0.5)
            for module in (attention.o_proj, layer.mlp.down_proj):
                nn.init.normal_(module.weight, std=0.3 * module.in_features**-0.5)
        for module in (model.model.multi_modal_projector.linear_1, model.model.multi_modal_projector.linear_2):
            nn.init.normal_(module.weight, std=module.in_features**-0.5)
    return model


def word_targets(targets: PatchTargets, words: torch.Tensor) -> torch.Tensor:
    """The sum of the words that describe each patch; (B, N, D).

    Args:
        targets: What every patch shows; fields (B, N).
        words: Embeddings of the vocabulary; (V, D).
    """

    def vector(text: str) -> torch.Tensor:
        return words[[VOCABULARY[word] for word in text.split()]].sum(0)

    names = torch.stack([*(vector(name) for name in NAMES), vector("background")])
    colours = torch.stack([*(vector(colour) for colour in COLOURS), torch.zeros(words.shape[1])])
    inside = targets.name >= 0
    total = names[targets.name.where(inside, torch.tensor(len(NAMES)))]
    total = total + colours[targets.colour.where(inside, torch.tensor(len(COLOURS)))]
    sides = ((targets.column, "left", "right"), (targets.row, "top", "bottom"))
    for place, low, high in sides:
        side = (place >= GRID // 2).long()
        total = total + torch.stack([vector(low), vector(high)])[side] * inside[..., None]
    return total + targets.anchor[..., None] * vector("object")


class LanguageStage(nn.Module):
    """Projector, decoder and head, without the vision tower."""

    def __init__(self, model: LlavaForConditionalGeneration) -> None:
        super().__init__()
        self.projector = model.model.multi_modal_projector
        self.decoder = model.model.language_model
        self.head = model.lm_head

    def align(self, features: torch.Tensor, targets: PatchTargets) -> torch.Tensor:
        """Loss of the projector against the words of every patch, objects counted more."""
        goal = word_targets(targets, self.decoder.embed_tokens.weight.detach())
        error = (self.projector(features).float() - goal).square().mean(-1)
        weight = torch.where(targets.name >= 0, 1.0, 0.05) + 2 * targets.anchor
        return (error * weight).sum() / weight.sum()

    def logits(self, features: torch.Tensor, kept: torch.Tensor, pack: Pack) -> torch.Tensor:
        """Predictions at the labelled text tokens; (number of labels, V).

        Args:
            features: Features of all patches; (B, N, D).
            kept: The visual tokens to use; (B, K).
            pack: The questions.
        """
        batch, count = kept.shape
        rows = torch.arange(batch)[:, None]
        visual = self.projector(features[rows, kept])
        start = torch.tensor([VOCABULARY["<bos>"], VOCABULARY["<user>"]]).expand(batch, -1)
        texts = self.decoder.embed_tokens(torch.cat([start, pack.ids], dim=1))
        embeds = torch.cat([texts[:, :PREFIX], visual, texts[:, PREFIX:]], dim=1)
        positions = torch.cat([torch.arange(PREFIX).expand(batch, -1), PREFIX + kept, pack.positions], dim=1)
        hidden = self.decoder(
            inputs_embeds=embeds,
            attention_mask=pack.mask(count),
            position_ids=positions,
            use_cache=False,
        ).last_hidden_state[:, PREFIX + count :]
        return self.head(hidden[pack.labels != IGNORE])

    def loss(
        self, features: torch.Tensor, objects: torch.Tensor, kept: torch.Tensor, pack: Pack
    ) -> tuple[torch.Tensor, dict[str, tuple[float, int]]]:
        """Mean cross-entropy of the answers; and (right, asked) by family.

        Args:
            features: Features of all patches; (B, N, D).
            objects: The object tables, for stages that learn from them too.
            kept: The visual tokens to use; (B, K).
            pack: The questions.
        """
        logits = self.logits(features, kept, pack).float()
        labels = pack.labels[pack.labels != IGNORE]
        loss = F.cross_entropy(logits, labels)
        right = torch.zeros_like(pack.labels, dtype=torch.bool)
        right[pack.labels != IGNORE] = logits.detach().argmax(-1) == labels
        tally: dict[str, tuple[float, int]] = defaultdict(lambda: (0.0, 0))
        for row, families, spans in zip(right.tolist(), pack.families, pack.spans, strict=True):
            for family, (start, stop) in zip(families, spans, strict=True):
                good, asked = tally[family]
                tally[family] = (good + all(row[start:stop]), asked + 1)
        return loss, dict(tally)


def merge_tallies(
    tallies: list[dict[str, tuple[float, int]]],
) -> dict[str, float]:
    """Accuracy by family over several batches."""
    good: dict[str, float] = defaultdict(float)
    asked: dict[str, int] = defaultdict(int)
    for tally in tallies:
        for family, (right, count) in tally.items():
            good[family] += right
            asked[family] += count
    return {family: round(good[family] / asked[family], 4) for family in sorted(asked)}


__all__ = ["PATCHES", "LanguageStage", "build_llava", "merge_tallies", "word_targets"]
