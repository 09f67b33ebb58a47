from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from tokenprune.errors import ConfigError
from tokenprune.metrics.accounts import token_accounts
from tokenprune.metrics.distribution import FirstToken, kl_divergence, log_probs_at, top_classes
from tokenprune.metrics.quality import compare, summarise


def row(index: int, family: str, score: float, prediction: str = "red", error: str | None = None) -> dict[str, object]:
    return {"id": f"q{index}", "family": family, "score": score, "prediction": prediction, "error": error}


ROWS = [row(0, "colour", 1.0), row(1, "colour", 0.0, "blue"), row(2, "count", 1.0, "two"), row(3, "colour", 1.0)]


def test_accuracy_and_macro() -> None:
    found = summarise(ROWS)
    assert (found["questions"], found["accuracy"]) == (4, 0.75)
    assert found["families"]["colour"] == {"accuracy": 2 / 3, "questions": 3}
    assert found["accuracy_macro"] == pytest.approx((2 / 3 + 1) / 2)


def test_failed_samples_stay_in_the_denominator() -> None:
    rows = [*ROWS[:3], row(3, "colour", 0.0, "", "ValueError: no")]
    found = summarise(rows)
    assert (found["questions"], found["errors"], found["accuracy"]) == (4, 1, 0.5)


def test_no_questions_is_an_error() -> None:
    with pytest.raises(ConfigError, match="without questions"):
        summarise([])


def test_comparison_with_the_unpruned_model() -> None:
    pruned = [row(0, "colour", 1.0), row(1, "colour", 1.0, "red"), row(2, "count", 0.0, "one"), row(3, "colour", 0.0)]
    found = compare(pruned, ROWS)
    assert found["retention"] == pytest.approx(0.5 / 0.75)
    assert found["retention_macro"] == pytest.approx((1.0 + 0.0) / 2)
    assert found["agreement"] == 0.5  # samples 0 and 3; that 1 became right is still another answer


def test_a_failed_sample_agrees_with_nothing() -> None:
    both = [row(0, "colour", 0.0, "", "ValueError: no")]
    assert compare(both, both)["agreement"] == 0.0


def test_retention_of_a_hopeless_model_is_undefined() -> None:
    hopeless = [row(0, "colour", 0.0)]
    assert compare([row(0, "colour", 1.0)], hopeless) == {
        "retention": None,
        "retention_macro": None,
        "agreement": 1.0,
    }


def test_different_questions_cannot_be_compared() -> None:
    with pytest.raises(ConfigError, match="different questions"):
        compare(ROWS, ROWS[::-1])


def test_token_accounts() -> None:
    names = ("original_tokens", "entering_tokens", "layer_average_tokens", "kv_tokens", "final_tokens")
    rows = [
        dict(zip(names, (16, 16, 10.0, 10.0, 4), strict=True)),
        dict(zip(names, (16, 16, 8.0, 8.0, 0), strict=True)),
        {"error": "ValueError: no"},
    ]
    assert token_accounts(rows) == {
        "original": 16,
        "entering": 16,
        "layer_average": 9,
        "layer_average_ratio": 9 / 16,
        "kv": 9,
        "final": 2,
    }
    assert set(token_accounts([{"error": "x"}]).values()) == {None}


def full_kl(p: torch.Tensor, q: torch.Tensor) -> float:
    p, q = p.double().log_softmax(-1), q.double().log_softmax(-1)
    return float((p.exp() * (p - q)).sum())


@pytest.mark.parametrize("vocabulary", [40, 256])
def test_kl_is_exact_where_all_classes_are_kept(vocabulary: int) -> None:
    generator = torch.Generator().manual_seed(0)
    p, q = torch.randn(2, 5, vocabulary, generator=generator) * 3
    ids = top_classes(p)
    found = kl_divergence(log_probs_at(p, ids).numpy(), log_probs_at(q, ids).numpy())
    assert ids.shape == (5, vocabulary)
    assert found == pytest.approx([full_kl(a, b) for a, b in zip(p, q, strict=True)], abs=1e-5)


def test_kl_of_the_top_classes_is_a_close_lower_bound() -> None:
    generator = torch.Generator().manual_seed(1)
    p, q = torch.randn(2, 8, 5000, generator=generator) * 4
    ids = top_classes(p)
    found = kl_divergence(log_probs_at(p, ids).numpy(), log_probs_at(q, ids).numpy())
    whole = np.array([full_kl(a, b) for a, b in zip(p, q, strict=True)])
    assert ids.shape == (8, 256)
    assert (found <= whole + 1e-6).all()
    assert (found > 0.8 * whole).all()


def test_kl_of_equal_distributions_is_zero_and_of_failed_samples_unknown() -> None:
    logits = torch.randn(3, 300, generator=torch.Generator().manual_seed(2))
    known = log_probs_at(logits, top_classes(logits)).numpy()
    assert kl_divergence(known, known) == pytest.approx(np.zeros(3), abs=1e-6)
    broken = known.copy()
    broken[1] = np.nan
    assert [math.isnan(value) for value in kl_divergence(known, broken)] == [False, True, False]


def test_first_token_file() -> None:
    stored = FirstToken(np.arange(6, dtype=np.int32).reshape(2, 3), np.full((2, 3), -1.5, dtype=np.float32))
    loaded = FirstToken.from_bytes(stored.to_bytes())
    assert (loaded.ids == stored.ids).all()
    assert (loaded.log_probs == stored.log_probs).all()


def test_a_damaged_first_token_file_is_said_so() -> None:
    whole = FirstToken(np.zeros((2, 3), np.int32), np.zeros((2, 3), np.float32)).to_bytes()
    for length in range(len(whole)):
        with pytest.raises(ValueError, match="no distributions of first tokens"):
            FirstToken.from_bytes(whole[:length])
    with pytest.raises(ValueError, match="no distributions of first tokens"):
        FirstToken.from_bytes(whole.replace(b"ids.npy", b"idx.npy"))
