"""Several questions about one picture in one sequence, each blind to the others.

Every question starts at the position right behind the picture and attends to the picture and to
itself only, so one pass over the visual tokens serves all of them and each is answered exactly as
it would be alone. Some questions are follow-ups: they continue behind the answer to another one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.scenes.configs import PATCHES
from benchmarks.scenes.words import vocabulary
from tokenprune.tasks.scenes.questions import Question

VOCABULARY: Final[Mapping[str, int]] = vocabulary()
PREFIX: Final = 2
"""Tokens in front of the picture: begin and `<user>`."""
IGNORE: Final = -100
RARITY: Final[Mapping[str, npt.NDArray[np.float64]]] = {
    "counting": np.array([0.7, 1.0, 2.0, 4.0, 8.0]),
    "moment-counting": np.array([0.7, 1.0, 2.0, 4.0]),
}
"""How much an answer is preferred where the picture allows it: few pictures have four of a kind."""
Asker = Callable[[str, str, np.random.Generator], Question | None]
"""Asks for a family and an answer about one picture or video; None where that is not possible."""


@dataclass(frozen=True)
class Pack:
    """Questions about a batch of pictures; T text tokens behind K kept visual ones.

    Attributes:
        ids: Text tokens; (B, T).
        positions: Position of every text token; (B, T).
        labels: The next token where it is to be learnt, otherwise IGNORE; (B, T).
        chain: Number of the chain of questions a token belongs to, -1 for padding; (B, T).
        families: Family of every question; per picture.
        spans: Where the labels of every question are: start and stop; per picture.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    labels: torch.Tensor
    chain: torch.Tensor
    families: list[list[str]]
    spans: list[list[tuple[int, int]]]

    def mask(self, kept: int) -> torch.Tensor:
        """What may attend to what, True where allowed; (B, 1, 2 + K + T, 2 + K + T)."""
        batch, text = self.ids.shape
        head = PREFIX + kept
        total = head + text
        allowed = torch.ones(total, total, dtype=torch.bool).tril().expand(batch, -1, -1).clone()
        same = self.chain[:, :, None] == self.chain[:, None, :]
        allowed[:, head:, head:] &= same
        return allowed[:, None]


def draw_questions(
    ask: Asker,
    known: Mapping[str, tuple[str, ...]],
    weights: npt.NDArray[np.float64],
    count: int,
    rng: np.random.Generator,
) -> list[Question]:
    """At most `count` different questions; families by `weights`, answers as even as can be.

    Args:
        ask: Asks about the picture or video.
        known: Every answer of every family, in the order of `weights`.
        weights: How often each family is asked.
        count: How many questions to draw.
        rng: Source of every choice.
    """
    families = list(known)
    seen: set[str] = set()
    questions: list[Question] = []
    for number in rng.choice(len(families), size=2 * count, p=weights):
        family = families[number]
        answers = known[family]
        # A random order; where some answers are rarely possible, those tend to come first.
        order = np.argsort(rng.exponential(size=len(answers)) / RARITY.get(family, 1.0))
        for choice in order:
            question = ask(family, answers[choice], rng)
            if question is None:
                continue
            if question.text not in seen:
                seen.add(question.text)
                questions.append(question)
            break
        if len(questions) == count:
            break
    return questions


def pack_questions(
    batch: Sequence[Sequence[Question]], rng: np.random.Generator, follow_up: float = 0.1, visual: int = PATCHES
) -> Pack:
    """Lay out the questions of every picture or video of `visual` tokens; a share of them as second turns."""
    rows: list[list[tuple[int, int, int, int]]] = []
    families: list[list[str]] = []
    spans: list[list[tuple[int, int]]] = []
    end, user = VOCABULARY["<eos>"], VOCABULARY["<user>"]
    for questions in batch:
        row: list[tuple[int, int, int, int]] = []
        position, chain = 0, -1
        places = []
        for number, question in enumerate(questions):
            words = [VOCABULARY[word] for word in question.text.split()]
            reply = [*(VOCABULARY[word] for word in question.answer.split()), end]
            if number % 2 and rng.random() < follow_up:
                words = [user, *words]
            else:
                position, chain = PREFIX + visual, chain + 1
            tokens = [*words, VOCABULARY["<assistant>"], *reply]
            targets = [IGNORE] * len(words) + [*reply, IGNORE]
            start = len(row) + len(words)
            places.append((start, start + len(reply)))
            for token, target in zip(tokens, targets, strict=True):
                row.append((token, position, target, chain))
                position += 1
        rows.append(row)
        families.append([question.family for question in questions])
        spans.append(places)
    longest = max(len(row) for row in rows)
    filler = (VOCABULARY["<pad>"], PREFIX + visual, IGNORE, -1)
    table = torch.tensor([row + [filler] * (longest - len(row)) for row in rows])
    return Pack(*table.unbind(-1), families, spans)


def choose_tokens(inside: torch.Tensor, kept: int, generator: torch.Generator) -> torch.Tensor:
    """Visual tokens of a shortened picture, in order: those on objects first; (B, K).

    Args:
        inside: 2 on patches with the centre of an object, 1 on its others, 0 elsewhere; (B, N).
        kept: How many tokens K to choose.
        generator: Source of the choice among equals.
    """
    if kept >= inside.shape[1]:
        return torch.arange(inside.shape[1]).expand(len(inside), -1)
    # A little noise across the classes: at times a part of an object is missing.
    score = torch.rand(inside.shape, generator=generator) * 1.15 + inside
    return score.topk(kept, dim=1).indices.sort(dim=1).values
