"""A loaded model with its processor, which prepares inputs and answers questions about images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, overload

from PIL import Image
from torch import Tensor

from tokenprune.checkpoints.joint import JointSpace
from tokenprune.checkpoints.prompts import encode
from tokenprune.errors import ConfigError
from tokenprune.families.family import Parts
from tokenprune.pruner import ModelFacts
from tokenprune.tasks.base import Sample
from tokenprune.tasks.pictures import read_picture

Picture = Image.Image | str | Path
"""A picture, or the path of its file."""


@dataclass(frozen=True)
class LoadedModel:
    """A stock model with its processor and what the engine knows about it; `load_model` makes one.

    Args:
        model: The transformers model.
        processor: Its processor.
        joint: The joint image-text space, `None` if the checkpoint has none.
        path: The directory or hub name from which it was loaded.
        parts: The modules of the model, as the engine uses them.
    """

    model: Any = field(repr=False)
    processor: Any = field(repr=False)
    joint: JointSpace | None = field(repr=False)
    path: str
    parts: Parts = field(repr=False)

    @property
    def family(self) -> str:
        """Name of the model's family."""
        return self.parts.family.name

    @property
    def facts(self) -> ModelFacts:
        """Facts about the model's shape."""
        return self.parts.facts

    def prepare(self, images: Any, question: str | Sequence[str]) -> dict[str, Tensor]:
        """The input tensors of a question about images, made with the chat template, on the model's device.

        Args:
            images: A picture (a PIL image or a path), or a list of the pictures of the question.
            question: The question. A list of questions makes a batch; `images` is then one picture for all questions,
                or a list with the picture, or the list of pictures, of each question.

        Returns:
            `input_ids` (B, S), `attention_mask` (B, S), both padded on the left, and the pixels.

        Raises:
            ConfigError: The numbers of pictures and questions differ, a picture cannot be read, or a question holds a
                placeholder of this model.
            IncompatibleError: The processor has no chat template, or does not accept the pictures.

        Example:
            >>> from tokenprune import load_model
            >>> loaded = load_model("scenes")
            >>> inputs = loaded.prepare("docs/examples/circle.png", "what color is the circle ?")
            >>> tuple(inputs["pixel_values"].shape)
            (1, 3, 128, 128)
        """
        return self.encode(_samples(images, question))

    @overload
    def answer(self, images: Any, question: str, *, max_new_tokens: int = ...) -> str: ...

    @overload
    def answer(self, images: Any, question: list[str] | tuple[str, ...], *, max_new_tokens: int = ...) -> list[str]: ...

    def answer(self, images: Any, question: str | Sequence[str], *, max_new_tokens: int = 64) -> str | list[str]:
        """The model's answer, greedy; inside `pruned` it is the answer of the pruned model.

        Args:
            images: As in `prepare`.
            question: One question, or a list of questions that are answered as one batch.
            max_new_tokens: Longest answer, in tokens.

        Returns:
            The text of the answer; a list of texts for a list of questions.

        Raises:
            ConfigError: As `prepare` does.
            IncompatibleError: As `prepare` does.

        Example:
            >>> from tokenprune import load_model, pruned
            >>> loaded = load_model("scenes")
            >>> loaded.answer("docs/examples/circle.png", "what color is the circle ?")
            'green'
            >>> questions = ["what color is the circle ?", "is there a green circle ?"]
            >>> with pruned(loaded, "iwp", "25%"):
            ...     loaded.answer("docs/examples/circle.png", questions)
            ['green', 'yes']
        """
        inputs = self.prepare(images, question)
        generated = self.model.generate(**inputs, do_sample=False, max_new_tokens=max_new_tokens)
        new = generated[:, inputs["input_ids"].shape[1] :]
        texts = self.decode(new)
        return texts[0] if isinstance(question, str) else texts

    def decode(self, tokens: Tensor) -> list[str]:
        """The texts of answers (B, S) in token ids, without special tokens and white space at their ends."""
        return [str(text).strip() for text in self.processor.batch_decode(tokens, skip_special_tokens=True)]

    def encode(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """The input tensors of a task's samples; see `tokenprune.checkpoints.prompts.encode`."""
        return encode(self.processor, self.parts, samples, self.path)


def _samples(images: Any, question: str | Sequence[str]) -> list[Sample]:
    """One sample per question.

    Raises:
        ConfigError: The numbers of pictures and questions differ, or a file is not a picture.
    """
    if isinstance(question, str):
        images, question = [images], [question]
    elif not _is_list(images):
        images = [images] * len(question)
    if len(images) != len(question):
        raise ConfigError(
            f"{len(images)} pictures for {len(question)} questions",
            hint="give one picture for all questions, or a list with the picture, or the pictures, of each question",
        )
    return [
        Sample(f"question {number}", tuple(map(_read, of if _is_list(of) else [of])), asked, answer="", family="")
        for number, (of, asked) in enumerate(zip(images, question, strict=True), start=1)
    ]


def _is_list(value: Any) -> bool:
    return isinstance(value, (list, tuple))


def _read(picture: Picture) -> Image.Image:
    return read_picture(picture) if isinstance(picture, (str, Path)) else picture
