"""Prompts that end in a picture, made of a family's own inputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from tests.families.zoo import Built, Sample
from tokenprune.families.lookup import parts_of

#: Tensors of a processor with a column for each token of the prompt.
COLUMNS = frozenset({"input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids"})


def ending_in_pictures(built: Built, many: Sequence[Sample], padding: str = "left") -> Any:
    """A batch whose prompts are cut off after their last placeholders; prompts without pictures stay whole."""
    inputs = built.inputs(*many)
    places = torch.arange(inputs["input_ids"].shape[1])
    placeholder = parts_of(built.model).is_placeholder(inputs["input_ids"])
    ends = torch.where(placeholder.any(dim=1), (places * placeholder).amax(dim=1), places[-1])
    stays = inputs["attention_mask"].bool() & (places <= ends[:, None])
    for name in COLUMNS & set(inputs):
        rows = [row[kept] for row, kept in zip(inputs[name], stays, strict=True)]
        inputs[name] = pad_sequence(rows, batch_first=True, padding_side=padding)
    return inputs
