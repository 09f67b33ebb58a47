"""Write the trained parts as a stock checkpoint: `python -m benchmarks.scenes.export WORK OUT`."""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import torch
from transformers import (
    CLIPImageProcessorPil,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

from benchmarks.scenes.configs import PATCH
from benchmarks.scenes.features import load_stage
from benchmarks.scenes.language import LanguageStage, build_llava
from benchmarks.scenes.vision import MEAN, STD, VisionStage
from benchmarks.scenes.words import CHAT_TEMPLATE, build_tokenizer
from tokenprune.tasks.scenes.generator import SIZE


def image_processor() -> CLIPImageProcessorPil:
    """Pillow's image processor; with torchvision, transformers loads its own, which gives the same pixels."""
    return CLIPImageProcessorPil(
        size={"shortest_edge": SIZE},
        crop_size={"height": SIZE, "width": SIZE},
        image_mean=list(MEAN),
        image_std=list(STD),
    )


def assemble(stage: VisionStage, language: Path) -> LlavaForConditionalGeneration:
    """Put the tower of stage 1 and the language parts of stage 2 together."""
    model = build_llava()
    LanguageStage(model).load_state_dict(torch.load(language)["model"])
    model.model.vision_tower.load_state_dict(stage.clip.vision_model.state_dict())
    model.generation_config.bos_token_id = model.config.bos_token_id
    model.generation_config.eos_token_id = model.config.eos_token_id
    model.generation_config.pad_token_id = model.config.pad_token_id
    return model.eval()


def export(work: Path, language: str, target: Path) -> None:
    """Assemble a checkpoint in a folder beside `target` and put its files there."""
    staging = target.with_name(target.name + ".staging")
    shutil.rmtree(staging, ignore_errors=True)
    stage = load_stage(work / "vision.pt")
    model = assemble(stage, work / f"{language}.pt")
    model.save_pretrained(staging)
    processor = LlavaProcessor(
        image_processor=image_processor(),
        tokenizer=build_tokenizer(),
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )
    processor.save_pretrained(staging)
    clip = staging / "clip"
    stage.clip.save_pretrained(clip)
    build_tokenizer(for_text_tower=True).save_pretrained(clip)
    image_processor().save_pretrained(clip)
    _swap(staging, target)


def export_again(source: Path, language: Path, target: Path) -> None:
    """Write a checkpoint that differs from an exported one in its language parts only.

    Args:
        source: The exported checkpoint; all but its model card is taken over.
        language: Checkpoint of stage 2 or 3 with the language parts.
        target: Where the new checkpoint goes.
    """
    staging = target.with_name(target.name + ".staging")
    shutil.rmtree(staging, ignore_errors=True)
    shutil.copytree(source, staging, ignore=shutil.ignore_patterns("README.md"))
    model = LlavaForConditionalGeneration.from_pretrained(source)
    stage = LanguageStage(model)
    saved = torch.load(language)["model"]
    # Later stages have heads beside these parts, for training only.
    stage.load_state_dict({name: saved[name] for name in stage.state_dict()})
    model.save_pretrained(staging)
    # What was loaded writes its types into the configuration of every part: the source's own says the same.
    shutil.copyfile(source / "config.json", staging / "config.json")
    _swap(staging, target)


def _swap(staging: Path, target: Path) -> None:
    """Put the files of `staging` into `target` one by one, and remove it."""
    for path in sorted(staging.rglob("*")):
        if path.is_file():
            place = target / path.relative_to(staging)
            place.parent.mkdir(parents=True, exist_ok=True)
            path.chmod(0o644)
            path.replace(place)
    shutil.rmtree(staging)


def main() -> None:
    """Export a checkpoint of the work folder."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("work", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--language", default="language", help="name of the language checkpoint")
    args = parser.parse_args()
    export(args.work, args.language, args.target)
    size = sum(path.stat().st_size for path in args.target.rglob("*") if path.is_file())
    print(json.dumps({"target": str(args.target), "megabytes": round(size / 1e6, 1)}))


if __name__ == "__main__":
    main()
