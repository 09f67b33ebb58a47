"""Encode questions about pictures as the input tensors of a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from tokenprune.errors import ConfigError, IncompatibleError
from tokenprune.families.family import Parts
from tokenprune.tasks.base import Sample
from tokenprune.tasks.pictures import as_rgb

#: Names of special tokens that are no placeholders.
_TEXT_TOKENS = frozenset(f"{name}_token" for name in ("bos", "eos", "unk", "pad", "sep", "cls", "mask"))


def encode(processor: Any, parts: Parts, samples: Sequence[Sample], path: str) -> dict[str, Tensor]:
    """The processor's tensors for samples, on the model's device and in its floating-point type.

    Args:
        processor: The model's processor.
        parts: The model.
        samples: Questions; their pictures may have any mode (`as_rgb`).
        path: Directory or hub name of the processor, for messages.

    Raises:
        ConfigError: A question holds a placeholder of this model, or a picture cannot be read.
        IncompatibleError: The processor has no chat template, or does not accept the samples.
    """
    pictures = [[as_rgb(image, f"a picture of sample `{sample.id}`") for image in sample.images] for sample in samples]
    found = placeholders(processor, parts)
    for sample in samples:
        _refuse_placeholders(sample, found)
    named = f"the processor of `{path}` (`{type(processor).__name__}`)"
    if getattr(processor, "chat_template", None) is not None:
        write = _by_template
    elif parts.family.plain_prompts:
        write = _without_template
    else:
        raise IncompatibleError(
            f"{named} has no chat template, so the model cannot be asked a question",
            hint="save the template of the original checkpoint beside the weights, as `chat_template.jinja`",
        )
    try:
        texts = [write(processor, sample) for sample in samples]
        inputs = processor(images=pictures, text=texts, padding=True, return_tensors="pt")
    except Exception as error:  # templates and processors of others may raise anything
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        ids = ", ".join(f"`{sample.id}`" for sample in samples)
        raise IncompatibleError(
            f"{named} does not accept the pictures and the question of {ids}: {reason}",
            hint="try another picture; `tokenprune doctor --model ...` shows what the model's directory holds",
        ) from error
    if any(pictures) and not bool(parts.is_placeholder(inputs["input_ids"]).any()):
        raise IncompatibleError(
            f"the prompts that {named} makes have no placeholder for a picture",
            hint="use the chat template of the original checkpoint (`chat_template.jinja`)",
        )
    model: Any = parts.model
    return {
        name: tensor.to(model.device, model.dtype if tensor.is_floating_point() else None)
        for name, tensor in inputs.items()
    }


def placeholders(processor: Any, parts: Parts) -> tuple[str, ...]:
    """The texts of a model's special tokens for pictures, videos and their borders, the longest first."""
    model: Any = parts.model
    tokenizer = getattr(processor, "tokenizer", processor)
    named = {**dict(getattr(tokenizer, "special_tokens_map", {})), **vars(processor)}
    found = {
        str(value) for name, value in named.items() if _is_placeholder_name(name) and not isinstance(value, int | list)
    }
    ids = [getattr(model.config, name, None) for name in parts.family.placeholders]
    found |= {str(tokenizer.convert_ids_to_tokens(number)) for number in ids if number is not None}
    return tuple(sorted(found - {"None", ""}, key=lambda placeholder: (-len(placeholder), placeholder)))


def _is_placeholder_name(name: str) -> bool:
    return name.endswith("_token") and name not in _TEXT_TOKENS


def _refuse_placeholders(sample: Sample, texts: Sequence[str]) -> None:
    for placeholder in texts:
        if placeholder in sample.question:
            raise ConfigError(
                f"the question {sample.question!r} holds `{placeholder}`, which stands for a picture in this model's "
                "prompts",
                hint="remove it from the question: the pictures are put before the question",
            )


def _by_template(processor: Any, sample: Sample) -> str:
    pictures: list[dict[str, str]] = [{"type": "image"} for _ in sample.images]
    turn = {"role": "user", "content": [*pictures, {"type": "text", "text": sample.question}]}
    return str(processor.apply_chat_template([turn], add_generation_prompt=True, tokenize=False))


def _without_template(processor: Any, sample: Sample) -> str:
    return f"{processor.image_token}" * len(sample.images) + sample.question
