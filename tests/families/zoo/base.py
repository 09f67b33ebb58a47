"""What every small model of the zoo shares: the way it is built, saved, loaded and asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

LAYERS = 4
VISION_LAYERS = 3
HEADS = 4
KV_HEADS = 2
HIDDEN = 64
HEAD_DIM = HIDDEN // HEADS
FPS = 2.0
Sizes = tuple[tuple[int, int], ...]

SIZES: Sizes = ((40, 56), (64, 32), (48, 48), (30, 90))
"""Height and width of the pictures, in the order in which prompts use them."""

_WORDS = ("what", "is", "in", "the", "picture", "and", "then", "a", "red", "round", "thing", "left", "of", "one")


@dataclass(frozen=True)
class Sample:
    """One prompt of a batch: how many pictures and videos it has, and the seed of what they show."""

    images: int = 1
    videos: int = 0
    seed: int = 0
    frames: int = 4


@dataclass(frozen=True)
class Parts:
    """A model and a processor that fit together, in memory."""

    model: Any
    processor: Any


@dataclass(frozen=True)
class Family:
    """One family of the zoo.

    Args:
        name: Name, also of its file.
        model_type: `config.model_type` of its checkpoints.
        make: Builds model and processor from the config classes.
        image: Placeholder of a picture in a prompt; `None` where it takes none.
        video: Placeholder of a video; `None` where it takes none.
        text_only: Whether its processor takes a batch without any picture.
        unequal: Whether it takes prompts with and without pictures in one batch.
        nested: Whether pictures and videos are passed as a list per prompt.
        pads_images: Whether the stock model's answer is the same when other prompts of the batch have more pictures.
        mixes: Whether one batch may hold pictures and videos.
        sizes: Height and width of its pictures, in the order in which prompts use them.
        stock_fails: By release of transformers, why the stock model does not run on a picture there.
    """

    name: str
    model_type: str
    make: Callable[[], Parts]
    image: str | None = "<image>"
    video: str | None = None
    text_only: bool = True
    unequal: bool = True
    nested: bool = False
    pads_images: bool = True
    mixes: bool = True
    sizes: Sizes = SIZES
    stock_fails: Mapping[str, str] = field(default_factory=dict)

    @property
    def images(self) -> bool:
        """Whether prompts may hold pictures."""
        return self.image is not None

    @property
    def videos(self) -> bool:
        """Whether prompts may hold videos."""
        return self.video is not None

    def build(self, folder: Path, attention: str = "sdpa", dtype: torch.dtype = torch.float32) -> Built:
        """Make the model, save it with its processor to a folder, and load both as a user does.

        Args:
            folder: Where families are saved, a folder each.
            attention: Kernel of the model; `flex_attention` of its text model only.
            dtype: Precision of the weights.

        Raises:
            ValueError: The stock model does not take the kernel.
        """
        from transformers import AutoModelForImageTextToText, AutoProcessor

        path = folder / self.name
        if not path.is_dir():
            with torch.random.fork_rng():
                torch.manual_seed(0)
                parts = self.make()
            _randomise(parts.model)
            _quiet_generation(parts)
            parts.model.save_pretrained(path)
            parts.processor.save_pretrained(path)
        kernel = {"text_config": attention} if attention == "flex_attention" else attention
        model = AutoModelForImageTextToText.from_pretrained(path, dtype=dtype, attn_implementation=kernel).eval()
        processor = AutoProcessor.from_pretrained(path)
        processor.tokenizer.padding_side = "left"
        return Built(self, path, model, processor)


@dataclass(frozen=True)
class Built:
    """A small model, saved and loaded, with the processor that makes its inputs."""

    family: Family
    path: Path
    model: Any
    processor: Any

    def write_template(self) -> Path:
        """Save a chat template beside the weights, so that commands can ask the model; returns the folder."""
        mark = f"{{{{ '{self.family.image} ' if part.type == 'image' else part.text }}}}"
        template = (
            f"{{% for message in messages %}}{{% for part in message.content %}}{mark}{{% endfor %}}{{% endfor %}}"
        )
        (self.path / "chat_template.jinja").write_text(template, encoding="utf-8")
        return self.path

    def image_prompt(self, count: int = 1) -> str:
        """A prompt with a number of picture placeholders."""
        return self.prompt(Sample(images=count))

    def video_prompt(self, count: int = 1) -> str:
        """A prompt with a number of video placeholders."""
        return self.prompt(Sample(images=0, videos=count))

    def prompt(self, sample: Sample) -> str:
        """Words with a sample's placeholders between them."""
        marks = [self.family.image] * sample.images + [self.family.video] * sample.videos
        if None in marks:
            raise ValueError(f"family `{self.family.name}` does not take what {sample} asks for")
        generator = np.random.default_rng(sample.seed)
        pieces: list[str] = []
        for mark in marks:
            pieces += [str(mark), *map(str, generator.choice(_WORDS, 2))]
        pieces += map(str, generator.choice(_WORDS, 5 + sample.seed % 3))
        return " ".join(pieces)

    def inputs(self, *samples: Sample, padding: str = "left") -> Any:
        """A padded batch that the processor makes of samples; one picture each where none are given."""
        samples = samples or (Sample(),)
        self.processor.tokenizer.padding_side = padding
        sizes = self.family.sizes
        pictures = [[picture(sample.seed, index, sizes) for index in range(sample.images)] for sample in samples]
        films = [[film(sample.seed, index, sample.frames) for index in range(sample.videos)] for sample in samples]
        videos = [one for many in films for one in many]
        asked: dict[str, Any] = {"text": [self.prompt(sample) for sample in samples]}
        if any(pictures):
            asked["images"] = pictures if self.family.nested else [one for many in pictures for one in many]
        if videos:
            asked["videos"] = films if self.family.nested else videos
            # the frames are given, so none are sampled; two a second, for processors that write the time in the prompt
            times = [
                {"fps": FPS, "total_num_frames": len(one), "frames_indices": list(range(len(one)))} for one in videos
            ]
            asked["videos_kwargs"] = {"do_sample_frames": False, "video_metadata": times}
        inputs = self.processor(**asked, padding=True, return_tensors="pt")
        inputs.pop("labels", None)  # a training target that one processor adds
        return inputs.to(self.model.dtype)  # one processor makes bfloat16

    @cached_property
    def special_ids(self) -> tuple[int, ...]:
        """Ids that a random model must not say."""
        return tuple(self.processor.tokenizer.all_special_ids)


def picture(seed: int, index: int, sizes: Sizes = SIZES) -> Image.Image:
    """A picture of noise on a gradient; its size follows seed and index."""
    height, width = sizes[(seed + index) % len(sizes)]
    return Image.fromarray(_pixels(seed * 31 + index, height, width))


def film(seed: int, index: int, frames: int) -> np.ndarray:
    """Frames (T, height, width, 3) of noise on a gradient."""
    return np.stack([_pixels(1000 + seed * 31 + index * 7 + frame, 40, 56) for frame in range(frames)])


def _pixels(seed: int, height: int, width: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    ramp = np.linspace(0, 120, height)[:, None, None] + np.linspace(0, 60, width)[None, :, None]
    return (ramp + generator.integers(0, 76, (height, width, 3))).astype(np.uint8)


def tokenizer(*special: str, named: dict[str, str] | None = None, plain: Sequence[str] = ()) -> Any:
    """A word-level tokenizer with a family's special tokens.

    Args:
        special: Special tokens without a name.
        named: Special tokens that the tokenizer has as attributes, such as `image_token`.
        plain: Ordinary tokens that are never split.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    base = ["<pad>", "<bos>", "<eos>", "<unk>"]
    vocabulary = {word: index for index, word in enumerate([*base, *_WORDS, *map(chr, range(33, 127))])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    made = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        padding_side="left",
        extra_special_tokens=named or {},
    )
    made.add_special_tokens({"additional_special_tokens": list(special)}, replace_extra_special_tokens=False)
    made.add_tokens(list(plain))
    return made


def decoder(words: Any, **changes: Any) -> dict[str, Any]:
    """Options of a small text config for a tokenizer."""
    return {
        "vocab_size": len(words),
        "hidden_size": HIDDEN,
        "intermediate_size": 2 * HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "max_position_embeddings": 4096,
        "pad_token_id": words.pad_token_id,
        "bos_token_id": words.bos_token_id,
        "eos_token_id": words.eos_token_id,
        **changes,
    }


def encoder(image_size: int, patch_size: int, **changes: Any) -> dict[str, Any]:
    """Options of a small vision config."""
    return {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": VISION_LAYERS,
        "num_attention_heads": HEADS,
        "image_size": image_size,
        "patch_size": patch_size,
        **changes,
    }


def identity(words: Any, token: str) -> int:
    """Id of a token that must be in the vocabulary."""
    found = words.convert_tokens_to_ids(token)
    if found is None or found == words.unk_token_id:
        raise ValueError(f"the tokenizer does not know `{token}`")
    return int(found)


def _randomise(model: Any) -> None:
    """Weights so large that every token matters, and gates open."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                fan_in = parameter.shape[-1] if parameter.ndim == 3 else parameter[0].numel()
                values = torch.empty(parameter.shape).normal_(0, 1.4 * fan_in**-0.5, generator=generator)
                parameter.copy_(values)
            elif name.endswith("gate"):
                parameter.fill_(0.7)


def _quiet_generation(parts: Parts) -> None:
    """Greedy generation that never ends early and never says a placeholder."""
    settings = parts.model.generation_config
    words = parts.processor.tokenizer
    settings.eos_token_id = None
    settings.pad_token_id = words.pad_token_id
    settings.do_sample = False
    settings.suppress_tokens = sorted(set(words.all_special_ids))
