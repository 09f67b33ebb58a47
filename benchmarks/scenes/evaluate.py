"""Test the exported checkpoint the way a user would load it, and write its model card.

`python -m benchmarks.scenes.evaluate MODEL --count 2100 --card`
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from tokenprune.tasks.base import Sample, Task
from tokenprune.tasks.scenes.task import ScenesTask
from tokenprune.tasks.scenes.video import ScenesVideoTask

TASKS: Final[Mapping[str, Callable[..., Task]]] = {task.name: task for task in (ScenesTask, ScenesVideoTask)}


@dataclass(frozen=True)
class Result:
    """Accuracy by family, over all, and how many questions were asked."""

    families: dict[str, float]
    overall: float
    count: int


def conversation(question: str, images: int = 1) -> list[dict[str, Any]]:
    """The chat messages of one question about one picture, or about the frames of one video."""
    pictures: list[dict[str, str]] = [{"type": "image"} for _ in range(images)]
    return [{"role": "user", "content": [*pictures, {"type": "text", "text": question}]}]


def batches(task: Task, size: int) -> Iterator[list[Sample]]:
    """The samples of a task in groups of at most `size`."""
    for start in range(0, len(task), size):
        yield [task[index] for index in range(start, min(start + size, len(task)))]


def shorten(
    model: Any, inputs: Any, ratio: float, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Drop random visual tokens at the input of the language model.

    Positions stay what they were, and the attention mask is handed on: without one, transformers
    takes a gap in the positions for the border of a packed sequence.

    Returns:
        Embeddings (B, L', D), attention mask (B, L') and positions (B, L').
    """
    visual = inputs.input_ids == model.config.image_token_id
    embeds = model.get_input_embeddings()(inputs.input_ids)
    features = torch.cat(model.model.get_image_features(inputs.pixel_values).pooler_output)
    embeds = embeds.masked_scatter(visual[..., None], features.to(embeds.dtype))
    positions = (inputs.attention_mask.cumsum(-1) - 1).clamp(min=0)
    kept = max(1, round(ratio * int(visual[0].sum())))
    score = torch.rand(visual.shape, generator=generator).masked_fill(~visual, 2.0)
    # The same number goes from every sample, so the batch stays rectangular.
    length = visual.shape[1] - int(visual[0].sum()) + kept
    index = score.topk(length, dim=1).indices.sort(dim=1).values
    rows = torch.arange(len(index))[:, None]
    return embeds[rows, index], inputs.attention_mask[rows, index], positions[rows, index]


@torch.no_grad()
def answer(model: Any, processor: Any, samples: list[Sample], ratio: float, generator: torch.Generator) -> list[str]:
    """Greedy answers, with all visual tokens (ratio 1) or a random share of them."""
    prompts = [
        processor.apply_chat_template(conversation(s.question, len(s.images)), add_generation_prompt=True)
        for s in samples
    ]
    images = [list(s.images) for s in samples]
    inputs = processor(images=images, text=prompts, padding=True, return_tensors="pt")
    limit = ScenesTask.max_new_tokens
    if ratio >= 1:
        ids = model.generate(**inputs, max_new_tokens=limit, do_sample=False)
        fresh = ids[:, inputs.input_ids.shape[1] :]
        return list(processor.batch_decode(fresh, skip_special_tokens=True))
    embeds, mask, positions = shorten(model, inputs, ratio, generator)
    end = model.generation_config.eos_token_id
    out = model.model.language_model(inputs_embeds=embeds, attention_mask=mask, position_ids=positions, use_cache=True)
    steps = []
    for _ in range(limit):
        token = model.lm_head(out.last_hidden_state[:, -1]).argmax(-1, keepdim=True)
        steps.append(token)
        mask = torch.cat([mask, torch.ones_like(token)], dim=1)
        positions = positions[:, -1:] + 1
        out = model.model.language_model(
            input_ids=token,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=out.past_key_values,
            use_cache=True,
        )
    rows = torch.cat(steps, dim=1).tolist()
    cut = [row[: row.index(end)] if end in row else row for row in rows]
    return list(processor.batch_decode(cut, skip_special_tokens=True))


def evaluate(model: Any, processor: Any, task: Task, ratio: float = 1.0, batch: int = 50) -> Result:
    """Accuracy of a model on a task."""
    right: dict[str, float] = defaultdict(float)
    asked: dict[str, int] = defaultdict(int)
    generator = torch.Generator().manual_seed(0)
    for samples in batches(task, batch):
        replies = answer(model, processor, samples, ratio, generator)
        for sample, reply in zip(samples, replies, strict=True):
            right[sample.family] += task.score(reply, sample)
            asked[sample.family] += 1
    families = {family: round(right[family] / asked[family], 4) for family in task.families}
    total = sum(asked.values())
    return Result(families, round(sum(right.values()) / total, 4), total)


def main() -> None:
    """Measure, print as JSON, and write the card on request."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--task", choices=TASKS, default=ScenesTask.name)
    parser.add_argument("--count", type=int, default=700)
    parser.add_argument("--batch", type=int, default=50)
    parser.add_argument("--split", default="test")
    parser.add_argument("--pruned", type=float, default=0.06)
    parser.add_argument("--card", action="store_true", help="write MODEL/README.md")
    args = parser.parse_args()
    model = AutoModelForImageTextToText.from_pretrained(args.model).eval()
    processor = AutoProcessor.from_pretrained(args.model)
    task = TASKS[args.task](args.split, size=args.count)
    full = evaluate(model, processor, task, batch=args.batch)
    print(json.dumps({"all tokens": full.families, "overall": full.overall, "n": full.count}))
    pruned = evaluate(model, processor, task, args.pruned, args.batch)
    line = {f"random {args.pruned:.0%}": pruned.families, "overall": pruned.overall}
    print(json.dumps(line | {"n": pruned.count}))
    if args.card:
        from benchmarks.scenes.card import write_card

        write_card(args.model, task, full, pruned, args.pruned)


if __name__ == "__main__":
    main()
