"""Every question has one right answer: recomputed from the facts by other means."""

from __future__ import annotations

import pytest

from tests.tasks.solving import solve
from tokenprune.tasks.base import Sample, Task
from tokenprune.tasks.scenes.questions import ANSWERS, FAMILIES
from tokenprune.tasks.scenes.task import ScenesTask, describe, normalise


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_answers_follow_from_the_facts(split: str) -> None:
    task = ScenesTask(split, size=280)
    for index in range(len(task)):
        scene, question = task.question(index)
        facts = [describe(item) for item in scene.objects]
        assert solve(question.text, facts) == question.answer
        assert question.answer in ANSWERS[question.family]
        assert len(question.text.split()) <= 8


def test_samples_show_what_the_question_is_about() -> None:
    task = ScenesTask(size=21)
    for index in range(len(task)):
        sample, (_, question) = task[index], task.question(index)
        assert (sample.question, sample.answer) == (question.text, question.answer)
        assert sample.family == FAMILIES[index % 7]
        assert solve(sample.question, sample.facts["objects"]) == sample.answer
        assert sample.facts["boxes"] == tuple(o.box for o in question.referents)
        assert all(r in sample.facts["objects"] for r in sample.facts["referents"])
        assert [(i.size, i.mode) for i in sample.images] == [((128, 128), "RGB")]


def test_families_and_answers_are_balanced() -> None:
    task = ScenesTask(size=420)
    asked = [task.question(index)[1] for index in range(len(task))]
    for family in FAMILIES:
        answers = [q.answer for q in asked if q.family == family]
        assert len(answers) == 60
        counts = [answers.count(answer) for answer in ANSWERS[family]]
        assert max(counts) - min(counts) <= 1


def test_hard_negatives_are_the_rule() -> None:
    """Most absent pairs have their colour and their shape in the picture, apart from each other."""
    task = ScenesTask(size=400, families=("existence",))
    hard = total = 0
    for index in range(len(task)):
        scene, question = task.question(index)
        if question.answer == "no":
            *_, colour, kind, _mark = question.text.split()
            total += 1
            hard += any(o.colour == colour for o in scene.objects) and any(o.kind == kind for o in scene.objects)
    assert hard / total > 0.6


def test_samples_do_not_depend_on_the_size() -> None:
    small, large = ScenesTask(size=14), ScenesTask(size=4200)
    assert [small[i].question for i in range(14)] == [large[i].question for i in range(14)]
    assert [small[i].id for i in range(14)] == [large[i].id for i in range(14)]


def test_task_contract() -> None:
    task = ScenesTask()
    assert isinstance(task, Task)
    assert len(task) == 4200
    assert task.families == FAMILIES
    assert task.version == "scenes-1.0"
    with pytest.raises(IndexError):
        task[4200]
    with pytest.raises(IndexError):
        task[-1]
    with pytest.raises(ValueError, match="unknown split"):
        ScenesTask("dev")
    with pytest.raises(ValueError, match="unknown families"):
        ScenesTask(families=("sound",))


def test_score_is_exact_match_after_normalisation() -> None:
    task = ScenesTask()
    sample = Sample(id="", images=(), question="", answer="top left", family="position")
    assert task.score(" Top  Left.", sample) == 1.0
    assert task.score("the top left", sample) == 1.0
    assert task.score("left", sample) == 0.0
    assert task.score("", sample) == 0.0
    assert normalise("A  circle !") == "circle"


def test_digest_tells_splits_apart() -> None:
    digests = {ScenesTask(split).digest() for split in ("train", "validation", "test")}
    assert len(digests) == 3
    assert ScenesTask().digest() == ScenesTask().digest()
