"""Laws on a real model: under `pruned`, with `generate`, on real questions."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tokenprune.budget import Budget
from tokenprune.checkpoints import LoadedModel, load_model
from tokenprune.engine import pruned
from tokenprune.errors import BudgetError
from tokenprune.families.lookup import parts_of
from tokenprune.pruner import Decision, Pruner, PruneRecord, State, Stop, UnitRecord, View
from tokenprune.testing.conformance.check import Check
from tokenprune.testing.conformance.masking import gone_by_layer, masked
from tokenprune.testing.conformance.result import ConformanceError, NotApplicable
from tokenprune.testing.conformance.under_test import PrunerUnderTest, described

_SAMPLES = 3
_NEW_TOKENS = 4
_CLOSE = 2e-5
"""Largest difference of logits, as a share of the largest logit."""
_BEFORE_THE_DECODER = ("pixels", "tower")

Inputs = Mapping[str, Tensor]


class _Stopped(Exception):
    """Raised in the middle of a prefill, to see that the model is restored."""


@dataclass(frozen=True)
class _Interrupted(Pruner):
    """A pruner that fails at its first decision."""

    inner: Pruner

    def __post_init__(self) -> None:
        object.__setattr__(self, "spec", self.inner.spec)
        object.__setattr__(self, "positions", self.inner.positions)

    @property
    def needs(self) -> tuple[str, ...]:
        """Those of the inner pruner."""
        return self.inner.needs

    def plan(self, facts: Any, budget: Budget, tokens: int) -> Any:
        """That of the inner pruner."""
        return self.inner.plan(facts, budget, tokens)

    def decide(self, view: View, stop: Stop, state: State) -> Decision:
        """Fail after the inner pruner has answered."""
        self.inner.decide(view, stop, state)
        raise _Stopped


def generates(tested: PrunerUnderTest) -> tuple[str, ...]:
    """It runs with `generate`, and the record is what happened."""
    loaded = _model(tested)
    inputs = _questions(loaded, _SAMPLES)
    for name, budget in _admitted(tested, loaded, inputs):
        with torch.no_grad(), _pruned(tested, loaded, budget) as session:
            made = _generated(loaded, inputs)
        new = made.sequences.shape[1] - inputs["input_ids"].shape[1]
        if new != _NEW_TOKENS or not all(torch.isfinite(step).all() for step in made.logits):
            raise ConformanceError(f"generate, {name}", expected=f"{_NEW_TOKENS} tokens, finite logits", found=new)
        _check_record(tested, loaded, inputs, session.last, name)
    return ()


def _check_record(tested: PrunerUnderTest, loaded: LoadedModel, inputs: Inputs, record: PruneRecord, name: str) -> None:
    original = dict(enumerate(record.original_visual_tokens))
    left: dict[tuple[int, int], set[int]] = {}
    last: dict[tuple[int, int], UnitRecord] = {}
    for unit in record.units:
        where = f"record of sample {unit.sample} at `{unit.site}`, {name}"
        indices, key = set(unit.indices), (unit.sample, unit.image)
        if len(indices) != len(unit.indices) or len(unit.indices) != unit.kept:
            raise ConformanceError(where, expected=f"{unit.kept} distinct indices", found=unit.indices)
        if not indices <= left.get(key, set(range(original[unit.sample]))):
            raise ConformanceError(where, expected="indices of tokens that were there", found=unit.indices)
        asked = min(unit.before, unit.asked) + unit.held
        if not unit.auto and unit.kept != asked:
            raise ConformanceError(where, expected=f"{asked} tokens", found=unit.kept)
        left[key], last[key] = indices, unit
    for sample, final in enumerate(record.final()):
        units = [unit for (owner, _), unit in last.items() if owner == sample]
        kept = sum(unit.kept for unit in units) if units else original[sample]
        if final != kept:
            raise ConformanceError(f"tokens after the last cut of sample {sample}, {name}", expected=kept, found=final)
    if tested.cuts and not record.units and any(stop for stop in _stops(tested, loaded, inputs, Budget(ratio=0.5))):
        return  # a budget that lets everything stay
    text = [int(row) for row in (inputs["attention_mask"].sum(dim=1) - torch.tensor(record.original_visual_tokens))]
    for sample, (visual, every) in enumerate(zip(record.visual_tokens, record.sequence_lengths, strict=True)):
        if [length - count for length, count in zip(every, visual, strict=True)] != [text[sample]] * len(every):
            raise ConformanceError(
                f"text tokens of sample {sample} in every layer, {name}", expected=text[sample], found=every
            )


def bit_identical(tested: PrunerUnderTest) -> tuple[str, ...]:
    """Where everything may stay, the logits are those of the stock model."""
    loaded = _model(tested)
    inputs = _questions(loaded, _SAMPLES)
    with torch.no_grad():
        expected = loaded.model(**inputs).logits
        with _pruned(tested, loaded, Budget(ratio=1.0)):
            found = loaded.model(**inputs).logits
    _check_close(found[:, -1], expected[:, -1], "logits at keep ratio 1")
    return ()


def batched(tested: PrunerUnderTest) -> tuple[str, ...]:
    """A batch gives what its samples give alone."""
    loaded = _model(tested)
    inputs = _questions(loaded, _SAMPLES)
    for name, budget in _admitted(tested, loaded, inputs):
        with torch.no_grad(), _pruned(tested, loaded, budget) as session:
            together = _generated(loaded, inputs)
            alone = [_generated(loaded, _questions(loaded, 1, row)) for row in range(_SAMPLES)]
        batch, *singles = session.records
        for row, (single, made) in enumerate(zip(singles, alone, strict=True)):
            kept = [unit.indices for unit in batch.units if unit.sample == row]
            if kept != [unit.indices for unit in single.units]:
                raise ConformanceError(f"tokens kept of sample {row}, {name}", expected="the same", found="others")
            for step in range(_NEW_TOKENS):
                _check_close(together.logits[step][row], made.logits[step][0], f"sample {row}, step {step}, {name}")
    return ()


def equals_masked(tested: PrunerUnderTest) -> tuple[str, ...]:
    """Without merging, what is left gives the logits of the stock model that masks what is gone."""
    loaded = _model(tested)
    inputs = _questions(loaded, _SAMPLES)
    parts = parts_of(loaded.model, tested.host)
    for name, budget in _admitted(tested, loaded, inputs):
        stops = _stops(tested, loaded, inputs, budget)
        if any(stop.site.kind in (*_BEFORE_THE_DECODER, "decode") or stop.kv_from is not None for stop in stops):
            raise NotApplicable("cuts before or beside the decoder are no masks of its keys")
        with torch.no_grad():
            with _pruned(tested, loaded, budget, positions="keep") as session:
                found = _generated(loaded, inputs)
            if any(unit.merged or unit.log_weights for unit in session.last.units):
                raise NotApplicable("it merges or weighs rows, which masks cannot")
            with masked(parts, gone_by_layer(parts, inputs, session.last)):
                expected = _generated(loaded, inputs)
        for step in range(_NEW_TOKENS):
            _check_close(found.logits[step], expected.logits[step], f"logits of step {step}, {name}")
    return ()


def restored(tested: PrunerUnderTest) -> tuple[str, ...]:
    """The model is left as it was, also after an exception."""
    loaded = _model(tested)
    inputs = _questions(loaded, 1)
    with torch.no_grad():
        expected = loaded.model(**inputs).logits
        before = _fingerprint(loaded.model)
        for name, budget in _admitted(tested, loaded, inputs):
            with _pruned(tested, loaded, budget):
                loaded.model(**inputs)
            _check_restored(before, loaded, f"after a session, {name}")
            broken = dataclasses.replace(tested, pruner=_Interrupted(tested.pruner))
            try:
                with _pruned(broken, loaded, budget):
                    loaded.model(**inputs)
            except _Stopped:
                _check_restored(before, loaded, f"after an exception, {name}")
        if not torch.equal(loaded.model(**inputs).logits, expected):
            raise ConformanceError("logits of the stock model afterwards", expected="the same bits", found="others")
    return ()


def half(tested: PrunerUnderTest) -> tuple[str, ...]:
    """A model in bfloat16 runs, with finite logits and the same counts."""
    loaded = _model(tested, "bfloat16")
    inputs = _questions(loaded, _SAMPLES)
    for name, budget in _admitted(tested, loaded, inputs):
        with torch.no_grad(), _pruned(tested, loaded, budget) as session:
            made = _generated(loaded, inputs)
        if not all(torch.isfinite(step).all() for step in made.logits):
            raise ConformanceError(f"logits in bfloat16, {name}", expected="finite", found="NaN or infinity")
        _check_record(tested, loaded, inputs, session.last, name)
    return ()


# --- what they share ----------------------------------------------------------------------------------------------


def _model(tested: PrunerUnderTest, dtype: str = "float32") -> LoadedModel:
    return _loaded(tested.model, dtype)


@functools.lru_cache(maxsize=2)
def _loaded(model: str, dtype: str) -> LoadedModel:
    return load_model(model, dtype=dtype)


@functools.lru_cache(maxsize=1)
def _tasks_samples() -> tuple[tuple[Any, str], ...]:
    """Pictures with questions of unequal lengths."""
    from tokenprune.tasks.scenes.task import ScenesTask

    task = ScenesTask()
    return tuple((task[index].images[0], task[index].question) for index in range(_SAMPLES))


def _questions(loaded: LoadedModel, count: int, first: int = 0) -> dict[str, Tensor]:
    """The processor's tensors for some questions, left padded."""
    samples = _tasks_samples()[first : first + count]
    texts = [_prompt(loaded.processor, question) for _, question in samples]
    pictures = [[picture] for picture, _ in samples]
    made = loaded.processor(images=pictures, text=texts, padding=True, return_tensors="pt")
    dtype = loaded.model.dtype
    return {name: value.to(dtype) if value.is_floating_point() else value for name, value in made.items()}


def _prompt(processor: Any, question: str) -> str:
    if getattr(processor, "chat_template", None) is None:
        return f"{getattr(processor, 'image_token', '<image>')} {question}"
    content = [{"type": "image"}, {"type": "text", "text": question}]
    return str(processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True))


def _pruned(tested: PrunerUnderTest, loaded: LoadedModel, budget: Budget, **options: Any) -> Any:
    return pruned(loaded.model, tested.pruner, budget, joint=loaded.joint, **options)


def _generated(loaded: LoadedModel, inputs: Inputs) -> Any:
    config = loaded.model.config
    image = [getattr(config, name) for name in ("image_token_id", "video_token_id") if hasattr(config, name)]
    return loaded.model.generate(
        **inputs,
        max_new_tokens=_NEW_TOKENS,
        min_new_tokens=_NEW_TOKENS,
        suppress_tokens=image,
        do_sample=False,
        return_dict_in_generate=True,
        output_logits=True,
    )


def _stops(tested: PrunerUnderTest, loaded: LoadedModel, inputs: Inputs, budget: Budget) -> tuple[Stop, ...]:
    """The plan for the first image.

    Raises:
        BudgetError: The budget is refused.
    """
    visual = parts_of(loaded.model, tested.host).visuals(inputs)[0]
    return tuple(tested.pruner.plan(loaded.facts, budget, visual.tokens))


def _admitted(tested: PrunerUnderTest, loaded: LoadedModel, inputs: Inputs) -> Iterator[tuple[str, Budget]]:
    """Budgets that the pruner admits on this model.

    Raises:
        NotApplicable: There is none.
    """
    admitted = False
    for budget in tested.budgets_on_a_model:
        try:
            _stops(tested, loaded, inputs, budget)
        except BudgetError:
            continue
        admitted = True
        yield described(budget), budget
    if not admitted:
        raise NotApplicable("every budget that was tried is below the floor on this model")


def _check_close(found: Tensor, expected: Tensor, where: str) -> None:
    room = _CLOSE * max(1.0, float(expected.abs().max()))
    difference = float((found - expected).abs().max())
    if not difference <= room:
        raise ConformanceError(where, expected=f"a difference of at most {room:.1e}", found=f"{difference:.1e}")


def _check_restored(before: object, loaded: LoadedModel, where: str) -> None:
    if _fingerprint(loaded.model) != before:
        raise ConformanceError(f"model {where}", expected="as it was", found="other tensors, hooks or attributes")


def _fingerprint(model: nn.Module) -> object:
    """What must be the same after a session: tensors, hooks, attributes, config."""
    state = model.state_dict(keep_vars=True)
    tensors = tuple((name, tensor.data_ptr(), tensor._version) for name, tensor in state.items())
    modules = tuple(
        (name, tuple(sorted(vars(module))), len(module._forward_hooks), len(module._forward_pre_hooks))
        for name, module in model.named_modules()
    )
    return tensors, modules, str(model.config)


CHECKS = (
    Check("generate", "model", "it runs with `generate`, and the record is what happened", generates),
    Check("whole", "model", "where everything may stay, logits are those of the stock model", bit_identical),
    Check("singles", "model", "a batch gives what its samples give alone", batched),
    Check("masked", "model", "pruned equals masked, where nothing is merged", equals_masked),
    Check("restored", "model", "the model is left as it was, also after an exception", restored),
    Check("bfloat16", "model", "a model in bfloat16 runs", half),
)
