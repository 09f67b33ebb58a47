"""The model cards of the shipped models; their numbers come from the evaluation, not from a hand."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from transformers import AutoModelForImageTextToText

from tokenprune.tasks.base import Task
from tokenprune.tasks.scenes.video import VIDEO_ANSWERS, ScenesVideoTask

if TYPE_CHECKING:
    from benchmarks.scenes.evaluate import Result

TEXT: Final = """---
license: apache-2.0
pipeline_tag: image-text-to-text
library_name: transformers
---

# scenes: the small vision-language model of tokenprune

Written by `benchmarks/scenes/evaluate.py --card`. Do not edit by hand.

A stock `LlavaForConditionalGeneration` that sees: trained from nothing, on two CPU cores, on the
generated pictures of the task `{version}`, so that pruners can be compared on a machine without a
GPU and without a download. It is a test bench and no assistant: it knows {words} words and the
questions below.

## Facts

| part | size |
|---|---|
| picture | 128 x 128 pixels, patches of 8: 256 visual tokens |
| vision tower | CLIP with CLS token, 5 layers, 128 wide; layer -2 is read, CLS dropped |
| projector | 2 layers, 128 -> 192 -> 192 |
| language model | Llama, 6 layers, 192 wide, 6 heads, 3 key/value heads |
| tokenizer | word level, chat template, left padding |
| parameters | {parameters:,} |
| `clip/` | stock `CLIPModel` with the same vision tower, the text tower and both projections |

The joint space is read at the layer that the projector reads: with patch features `X` of layer -2,
`visual_projection(post_layernorm(X))` is compared with the projected text tower's output for phrases
such as "red circle", "star", "blue", "digit 7", "red digit 7" and "background".

## Accuracy

Test split of `{version}`, first {count} questions (balanced by family and answer; seeds and
handwriting never seen in training), greedy, exact match, loaded through `AutoProcessor` and
`AutoModelForImageTextToText` in fp32. "Random" keeps a random {ratio:.0%} of the visual tokens at the
input of the language model, at their own positions.

| family | n | all 256 tokens | random {ratio:.0%} |
|---|---|---|---|
{rows}
| **overall** | {count} | **{full:.1%}** | **{pruned:.1%}** |

Random pruning to {ratio:.0%} costs {loss:.1f} points.

## Recipe

1. Vision: every patch says what it shows, against the text tower's embeddings of phrases; linear heads
   (training only) for name, colour, own place, place of its object's centre, and which patch holds a
   centre; at the last layer the CLS token says which phrases are present.
2. Language: tower frozen; projector first fitted to the sum of the words of each patch, then projector
   and language model on about twelve questions per picture, first on a few favoured tokens of easy
   pictures, then more; one question in twenty is a second turn.
3. Last, and for half of all steps, all 256 tokens: what is shipped is adapted to whole pictures.

Muon for hidden matrices, AdamW for the rest, bf16 autocast. Pictures: 40,000, rendered once. Commands:
`benchmarks/scenes/README.md`; log: `benchmarks/scenes/training-log.jsonl`.

## Limits

- English questions of the seven families of `scenes` in their own wording; other words are `<unk>`.
- Trained on one picture per conversation and at most a few turns; several pictures run but mean little.
- Not trained on `scenes-video`: its frames run, its answers are not to be relied on.
- The first half of the steps used shortened pictures (objects first, then random background), the second
  half did not; some of that robustness to missing background may remain.

## Licence

Apache-2.0 for weights and code. The handwriting is the optical recognition of handwritten digits data
set (E. Alpaydin, C. Kaynak) as bundled with scikit-learn.
"""


VIDEO_TEXT: Final = """---
license: apache-2.0
pipeline_tag: image-text-to-text
library_name: transformers
---

# scenes-video: the shipped model for videos of four frames

Written by `benchmarks/scenes/evaluate.py --task scenes-video --card`. Do not edit by hand.

The model `scenes` (its card tells sizes and origin), trained on with the generated videos of the task
`{version}`: a video is given as four pictures in one message, in order. {parameters:,} parameters, of
which the vision tower and `clip/` are those of `scenes`, bit for bit; projector and language model differ.
It is a test bench and no assistant: it knows {words} words and the questions below.

## Accuracy

Test split of `{version}`, first {count} questions (balanced by family and answer; seeds and
handwriting never seen in training), greedy, exact match, loaded through `AutoProcessor` and
`AutoModelForImageTextToText` in fp32. "Chance" is a guess among the answers of the family. "Random" keeps a
random {ratio:.0%} of the visual tokens at the input of the language model, at their own positions.

| family | n | chance | all 1,024 tokens | random {ratio:.0%} |
|---|---|---|---|---|
{rows}
| **overall** | {count} | **{chance:.1%}** | **{full:.1%}** | **{pruned:.1%}** |

Random pruning to {ratio:.0%} costs {loss:.1f} points.

## Recipe

Tower frozen; projector and language model on about twelve questions per video, the videos first shortened to
the tokens of their objects and a little background, at last whole. Beside the answers, the visual tokens learn to
say, through linear heads that are not exported, which frame they belong to, where their object goes and whether it
has appeared. Muon for hidden matrices, AdamW for the rest, bf16 autocast, two shared CPU cores. Videos: those of
the train split, rendered once; checkpoints were chosen on the validation split. Commands:
`benchmarks/scenes/README.md`; log: `benchmarks/scenes/training-log-video.jsonl`.

## Limits

- English questions of the five families of `scenes-video` in their own wording; other words are `<unk>`.
- Trained on four frames of 128 x 128 pixels; other numbers of frames run but mean little.
- Single pictures are the business of `scenes`: what this model has kept of them was not measured.

## Licence

Apache-2.0 for weights and code. The handwriting is the optical recognition of handwritten digits data
set (E. Alpaydin, C. Kaynak) as bundled with scikit-learn.
"""


def write_card(folder: Path, task: Task, full: Result, pruned: Result, ratio: float) -> None:
    """Write `README.md` beside the weights."""
    model = AutoModelForImageTextToText.from_pretrained(folder)
    families = list(task.families)
    asked = {f: len(range(place, full.count, len(families))) for place, f in enumerate(families)}
    video = task.name == ScenesVideoTask.name
    chances = {family: 1 / len(VIDEO_ANSWERS[family]) for family in families} if video else {}
    rows = "\n".join(
        f"| {family} | {asked[family]} | "
        + (f"{chances[family]:.1%} | " if video else "")
        + f"{full.families[family]:.1%} | {pruned.families[family]:.1%} |"
        for family in families
    )
    text = (VIDEO_TEXT if video else TEXT).format(
        version=task.version,
        words=model.config.text_config.vocab_size,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        count=full.count,
        ratio=ratio,
        rows=rows,
        chance=sum(asked[family] * chance for family, chance in chances.items()) / full.count,
        full=full.overall,
        pruned=pruned.overall,
        loss=100 * (full.overall - pruned.overall),
    )
    (folder / "README.md").write_text(text, encoding="utf-8")
