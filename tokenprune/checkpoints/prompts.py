"""Prompts: questions about pictures as the tensors that a model reads."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from tokenprune.checkpoints.loading import LoadedModel, parts_of
from tokenprune.errors import ConfigError, IncompatibleError
from tokenprune.families.family import Family
from tokenprune.plugins import Host
from tokenprune.tasks.base import Sample
from tokenprune.tasks.pictures import as_rgb

#: Special tokens with a name that stand for text.
_OF_TEXT = frozenset(f"{name}_token" for name in ("bos", "eos", "unk", "pad", "sep", "cls", "mask"))


def encode(loaded: LoadedModel, samples: Sequence[Sample], device: str, host: Host | None = None) -> dict[str, Tensor]:
    """The processor's tensors for some samples, on a device and in the model's floating type.

    Args:
        loaded: The model and its processor.
        samples: Questions; their pictures may have any mode (`as_rgb`).
        device: Torch device.
        host: Plugins; the installed ones are loaded where it is not given.

    Raises:
        ConfigError: A question holds a placeholder of this model, or a picture cannot be read.
        IncompatibleError: The processor has no chat template, or takes these samples in no other way.
    """
    pictures = [[as_rgb(image, f"a picture of sample `{sample.id}`") for image in sample.images] for sample in samples]
    parts = parts_of(loaded.model, host)
    family = parts.family
    marks = placeholders(loaded, family)
    for sample in samples:
        _refuse_placeholders(sample, marks)
    named = f"the processor of `{loaded.path}` (`{type(loaded.processor).__name__}`)"
    if getattr(loaded.processor, "chat_template", None) is not None:
        write = _by_template
    elif family.plain_prompts:
        write = _plainly
    else:
        raise IncompatibleError(
            f"{named} has no chat template, so a question cannot be put to the model",
            hint="save the template of the original checkpoint beside the weights, as `chat_template.jinja`",
        )
    try:
        texts = [write(loaded, sample) for sample in samples]
        made = loaded.processor(images=pictures, text=texts, padding=True, return_tensors="pt")
    except Exception as error:  # templates and processors are not ours and fail in their own ways
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        ids = ", ".join(f"`{sample.id}`" for sample in samples)
        raise IncompatibleError(
            f"{named} does not take the pictures and the question of {ids}: {reason}",
            hint="try another picture; `tokenprune doctor --model ...` shows what the model's directory holds",
        ) from error
    if any(pictures) and not bool(parts.is_placeholder(made["input_ids"]).any()):
        raise IncompatibleError(
            f"the prompts that {named} makes have no place for a picture",
            hint="use the chat template of the original checkpoint (`chat_template.jinja`)",
        )
    dtype = loaded.model.dtype
    return {name: tensor.to(device, dtype if tensor.is_floating_point() else None) for name, tensor in made.items()}


def placeholders(loaded: LoadedModel, family: Family) -> tuple[str, ...]:
    """What stands for a picture, a video or their borders in the prompts of a model, the longest first."""
    processor, config = loaded.processor, loaded.model.config
    tokenizer = getattr(processor, "tokenizer", processor)
    named = {**dict(getattr(tokenizer, "special_tokens_map", {})), **vars(processor)}
    found = {str(value) for name, value in named.items() if _marks(name) and not isinstance(value, int | list)}
    ids = [getattr(config, name, None) for name in family.placeholders]
    found |= {str(tokenizer.convert_ids_to_tokens(number)) for number in ids if number is not None}
    return tuple(sorted(found - {"None", ""}, key=lambda mark: (-len(mark), mark)))


def _marks(name: str) -> bool:
    return name.endswith("_token") and name not in _OF_TEXT


def _refuse_placeholders(sample: Sample, marks: Sequence[str]) -> None:
    for mark in marks:
        if mark in sample.question:
            raise ConfigError(
                f"the question {sample.question!r} holds `{mark}`, which stands for a picture in this model's prompts",
                hint="take it out of the question: the pictures are put before it",
            )


def _by_template(loaded: LoadedModel, sample: Sample) -> str:
    parts: list[dict[str, str]] = [{"type": "image"} for _ in sample.images]
    turn = {"role": "user", "content": [*parts, {"type": "text", "text": sample.question}]}
    return str(loaded.processor.apply_chat_template([turn], add_generation_prompt=True, tokenize=False))


def _plainly(loaded: LoadedModel, sample: Sample) -> str:
    return f"{loaded.processor.image_token}" * len(sample.images) + sample.question
