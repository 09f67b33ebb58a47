"""The word-level tokenizer of the shipped model: its words, specials and chat template."""

from __future__ import annotations

from typing import Final

from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

SPECIALS: Final = ("<pad>", "<bos>", "<eot>", "<unk>", "<image>", "<user>", "<assistant>")
"""Token 2 is not the end token: CLIP's text tower treats an end token of 2 as a legacy case."""
WORDS: Final = tuple(
    """
    ? , . : yes no zero one two three four five six seven eight nine ten 0 1 2 3 4 5 6 7 8
    9 red green blue yellow purple cyan circle square triangle star cross digit circles
    squares triangles stars crosses digits top bottom left right up down middle center is
    are there a an the what which where how many more fewer less than color shape number
    and or not none in on of it does do did was were has have object objects thing things
    picture image background frame frames first second third fourth last video moment now
    then before after start end move moved moving go went way stay stayed still appear
    appeared vanish vanished change changed above below near far same different as big
    small bigger smaller answer question please describe show find count read tell me you
    see can this that these those with without to from at by for all any some other
    """.split()  # noqa: SIM905
)
"""Their order is part of the trained model: add new words at the end."""
CHAT_TEMPLATE: Final = (
    "<bos>"
    "{% for message in messages %}"
    "{{ '<' + message['role'] + '>' }}"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}"
    "{% endif %}{% endfor %}{% endif %}"
    "{% if message['role'] == 'assistant' %}<eos>{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def vocabulary() -> dict[str, int]:
    """Every token and its number."""
    tokens = list(dict.fromkeys((*SPECIALS, "<eos>", *WORDS)))
    return {token: number for number, token in enumerate(tokens)}


def build_tokenizer(for_text_tower: bool = False) -> PreTrainedTokenizerFast:
    """Build the tokenizer.

    Args:
        for_text_tower: Wrap every text in begin and end tokens, as CLIP's text tower expects;
            otherwise the chat template writes all special tokens.
    """
    words = vocabulary()
    core = Tokenizer(WordLevel(words, unk_token="<unk>"))
    core.normalizer = normalizers.Lowercase()
    # Punctuation is split off so that "circle?" and "circle ?" are the same question.
    core.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()])
    core.decoder = decoders.WordPiece(prefix="##", cleanup=False)
    if for_text_tower:
        core.post_processor = processors.TemplateProcessing(
            single="<bos> $A <eos>",
            special_tokens=[("<bos>", words["<bos>"]), ("<eos>", words["<eos>"])],
        )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        additional_special_tokens=["<image>", "<user>", "<assistant>"],
        padding_side="right" if for_text_tower else "left",
        model_max_length=16 if for_text_tower else 2048,
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )
    if not for_text_tower:
        tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer
