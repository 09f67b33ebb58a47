"""Many visual tokens: peak memory and wall time of every pruner's decision at 1,024, 4,096 and 16,384 tokens.

    python benchmarks/large/run.py                          # everything; the results go to benchmarks/large; what
                                                            an earlier run measured of other pruners stays
    python benchmarks/large/run.py --only iwp scope --out /tmp/large

Each measurement is a process of its own, forked from one that has imported torch and measured nothing, under a limit of
8 GiB of address space. Memory is `ru_maxrss` after the decision less `ru_maxrss` before it, with the input in place.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import multiprocessing
import platform
import re
import resource
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
TOKENS = (1024, 4096, 16384)
SHARE = 0.05
LIMIT = 8 << 30
SECONDS = 90.0
#: Frames of 256 tokens, instead of one picture.
VIDEO = ("prunevid", "dycoke", "fastvid", "holitom", "vidcom2", "evs")
#: Pruners of the run on a whole model: one per place and kind of selection.
ENGINE = ("random", "fastervlm", "divprune", "hiprune", "fastv", "iwp", "fitprune")
#: Below this much memory at the largest size the growth is that of the allocator, not of the method.
MEASURABLE = 16 << 20
#: Where memory grows faster than the tokens, and why.
REASONS = {
    "cdpruner": "the factor of the determinant, N x K",
    "coverage": "the gains of a greedy step need every pair; the matrix is held up to 1 GiB, else made again by tiles",
    "scope": "the gains of a greedy step need every pair; the matrix is held up to 1 GiB, else made again by tiles",
    "merge": "the merge map, N x K",
}


@dataclass(frozen=True)
class Case:
    """One measurement: a pruner on so many visual tokens, on given tensors (`recorded`) or in a model (`engine`)."""

    kind: str
    pruner: str
    tokens: int


@dataclass(frozen=True)
class Outcome:
    """What one measurement gave: an outcome in a word or two, and the figures where it was `done`."""

    outcome: str
    memory: int = 0
    seconds: float = 0.0
    merged: bool = False


def sides(tokens: int) -> tuple[int, int]:
    """Rows and columns of a square grid."""
    side = math.isqrt(tokens)
    return side, tokens // side


def decision(name: str, tokens: int) -> Callable[[], Any]:
    """A pruner's first decision on given tensors, everything that it reads in place."""
    from tokenprune import Budget
    from tokenprune.plugins import load_host
    from tokenprune.testing import RecordedView, random_recording
    from tokenprune.testing.recorded_view import FACTS

    pruner = load_host().pruners.get(name).build({})
    recording = random_recording(units=1, grid=sides(tokens), clusters=64, text=16)
    if name in VIDEO:
        recording = dataclasses.replace(recording, frames=tokens // 256, grid=(16, 16))
    stops = pruner.plan(FACTS, Budget(tokens=round(SHARE * tokens)), tokens)
    if not stops:
        return lambda: None
    view = RecordedView(recording, stops[0].keep(tokens), pruner.needs, site=stops[0].site, facts=FACTS)
    return lambda: pruner.decide(view, stops[0], {})


def prefill(name: str, tokens: int) -> Callable[[], Any]:
    """A small LLaVA's prefill under a pruner, on one picture of so many tokens; `none` is the stock model's."""
    import contextlib

    import torch

    from tokenprune import Budget, pruned
    from tokenprune.plugins import load_host

    model, inputs = small_llava(tokens)

    def run() -> None:
        session: Any = contextlib.nullcontext()
        if name != "none":
            session = pruned(model, load_host().pruners.get(name).build({}), Budget(tokens=round(SHARE * tokens)))
        with session, torch.no_grad():
            model(**inputs, logits_to_keep=1)

    return run


def small_llava(tokens: int) -> tuple[Any, dict[str, Any]]:
    """A random LLaVA with CLIP and Llama parts and the inputs of one prompt."""
    import torch
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    side, picture = sides(tokens)[0], 63
    torch.manual_seed(0)
    width = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4}
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**width, num_hidden_layers=3, image_size=4 * side, patch_size=4),
        text_config=LlamaConfig(
            **width,
            vocab_size=64,
            num_hidden_layers=4,
            num_key_value_heads=2,
            head_dim=8,
            max_position_embeddings=2 * tokens,
            pad_token_id=0,
        ),
        image_token_id=picture,
        vision_feature_layer=-2,
    )
    model = LlavaForConditionalGeneration(config).eval()
    words = list(range(2, 18))
    ids = torch.tensor([[1, *words, *[picture] * tokens, *words]])
    pixels = torch.randn(1, 3, 4 * side, 4 * side)
    return model, {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels}


def measured(case: Case, begun: Callable[[int], None]) -> Outcome:
    """Measure a case in this process, and say the peak (KiB) before it begins."""
    import torch

    from tokenprune.errors import TokenPruneError

    prepare = decision if case.kind == "recorded" else prefill
    try:
        prepare(case.pruner, 512 if case.kind == "recorded" else 256)()  # what is loaded on first use
        run = prepare(case.pruner, case.tokens)
        before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
        begun(before)
        with torch.no_grad():
            found = run()
        seconds, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    except TokenPruneError as error:
        return Outcome(f"refused: {error.message}")
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "allocate memory" not in str(error):
            raise
        return Outcome("over 8 GiB")
    merged = found is not None and any(unit.merge is not None for unit in found.units)
    return Outcome("done", 1024 * (after - before), seconds, merged)


def _child(case: Case, answer: Connection) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (LIMIT, LIMIT))
    import torch

    torch.set_num_threads(1)
    try:
        answer.send(measured(case, answer.send))
    except Exception as error:  # noqa: BLE001 - an error of a method is a result of the benchmark
        answer.send(Outcome(f"failed: {type(error).__name__}: {error}"[:200]))


def apart(case: Case, context: Any, limit: float) -> Outcome:
    """Measure a case in a process of its own, and end it when it takes too long."""
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(case, there))
    process.start()
    there.close()
    before, deadline = 0, time.monotonic() + limit
    try:
        while here.poll(max(0.0, deadline - time.monotonic())):
            said: int | Outcome = here.recv()
            if isinstance(said, Outcome):
                return said
            before = said
        status = Path(f"/proc/{process.pid}/status").read_text(encoding="ascii")
        peak = int(re.findall(r"VmHWM:\s+(\d+)", status)[0])
        return Outcome(f"over {limit:.0f} s", 1024 * (peak - before) if before else 0)
    except EOFError:
        return Outcome("process ended without an answer")
    finally:
        process.kill()
        process.join()
        here.close()


def exponent(small: Outcome, large: Outcome, pick: Callable[[Outcome], float]) -> float | None:
    """Exponent p in `figure ~ N^p` between the two largest sizes; `None` where one of them is missing."""
    if min(pick(small), pick(large)) <= 0:
        return None
    return math.log(pick(large) / pick(small)) / math.log(TOKENS[-1] / TOKENS[-2])


def row(kind: str, name: str, outcomes: dict[int, Outcome]) -> dict[str, Any]:
    """The figures of one pruner as plain JSON types."""
    small, large = outcomes[TOKENS[-2]], outcomes[TOKENS[-1]]
    memory = exponent(small, large, lambda outcome: outcome.memory) if large.memory >= MEASURABLE else None
    why = REASONS.get(name) or (REASONS["merge"] if any(outcome.merged for outcome in outcomes.values()) else "")
    return {
        "kind": kind,
        "pruner": name,
        "sizes": {str(tokens): dataclasses.asdict(outcome) for tokens, outcome in outcomes.items()},
        "memory_exponent": memory,
        "time_exponent": exponent(small, large, lambda outcome: outcome.seconds),
        "why": why if memory is not None and memory > 1.25 else "",
    }


def table(rows: Iterable[dict[str, Any]]) -> list[str]:
    """Markdown of the rows: MiB and seconds by size, growth."""
    heads = [f"{tokens:,}".replace(",", " ") for tokens in TOKENS]
    lines = ["| pruner | " + " | ".join(f"{head}: MiB, s" for head in heads) + " | memory ~ | time ~ | |"]
    lines.append("|" + "---|" * (len(TOKENS) + 4))
    for entry in rows:
        cells = []
        for size in entry["sizes"].values():
            said = f"{size['seconds']:.2f}" if size["outcome"] == "done" else size["outcome"]
            cells.append(f"{size['memory'] / 2**20:.1f}, {said}" if size["memory"] else said)
        growth = ["" if entry[key] is None else f"N^{entry[key]:.1f}" for key in ("memory_exponent", "time_exponent")]
        lines.append(f"| `{entry['pruner']}` | " + " | ".join([*cells, *growth, entry["why"]]) + " |")
    return lines


def write(rows: list[dict[str, Any]], folder: Path) -> None:
    """Write `results.json` and `results.md`."""
    import torch

    folder.mkdir(parents=True, exist_ok=True)
    facts = {"torch": torch.__version__, "python": platform.python_version(), "machine": platform.machine()}
    (folder / "results.json").write_text(
        json.dumps({"facts": facts, "share": SHARE, "rows": rows}, indent=1) + "\n", encoding="utf-8"
    )
    lines = [
        "# Many visual tokens: results",
        "",
        "Peak memory of one decision (`ru_maxrss` after less before, MiB), wall time on one busy core (s), and the "
        f"growth between {TOKENS[-2]} and {TOKENS[-1]} tokens; {SHARE:.0%} of the tokens stay. Growth of memory is "
        f"given from {MEASURABLE >> 20} MiB on. torch {facts['torch']}, Python {facts['python']}.",
        "",
        "## On given tensors (D = 24, one unit; videos: frames of 256 tokens)",
        "",
        *table(entry for entry in rows if entry["kind"] == "recorded"),
        "",
        "## A whole prefill of a small LLaVA (three encoder layers, four decoder layers; `none` is the stock model)",
        "",
        *table(entry for entry in rows if entry["kind"] == "engine"),
        "",
    ]
    (folder / "results.md").write_text("\n".join(lines), encoding="utf-8")


def earlier(folder: Path) -> list[dict[str, Any]]:
    """Rows of an earlier run, which measurements of the same pruners replace."""
    path = folder / "results.json"
    rows: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else []
    return rows


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=[], help="pruners to measure; all where none is named")
    parser.add_argument("--kind", choices=("recorded", "engine"), help="measure this kind only")
    parser.add_argument("--out", type=Path, default=HERE, help="folder of the results")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="longest measurement")
    options = parser.parse_args()
    from tokenprune.plugins import load_host

    installed = load_host().pruners.names()
    order = [("recorded", name) for name in installed] + [("engine", name) for name in ("none", *ENGINE)]
    plan = [
        (kind, name) for kind, name in order if name in (options.only or (name,)) and kind == (options.kind or kind)
    ]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "tokenprune.plugins", "tokenprune.testing"])
    rows = {(entry["kind"], entry["pruner"]): entry for entry in earlier(options.out)}
    for kind, name in plan:
        outcomes = {tokens: apart(Case(kind, name, tokens), context, options.seconds) for tokens in TOKENS}
        rows[kind, name] = row(kind, name, outcomes)
        print(table([rows[kind, name]])[-1], flush=True)
        write([rows[place] for place in order if place in rows], options.out)


if __name__ == "__main__":
    main()
