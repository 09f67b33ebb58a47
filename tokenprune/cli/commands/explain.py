"""`tokenprune explain`: which tokens several pruners keep of one picture, side by side, and what is answered then."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tokenprune.budget import Budget
from tokenprune.cli.options import AsJson, ModelName
from tokenprune.cli.output import Invocation, invocation_of, table
from tokenprune.errors import BudgetError, ConfigError, IncompatibleError

if TYPE_CHECKING:
    from PIL import Image

    from tokenprune.evaluation.predictions import Prediction

_PRUNERS = "none,random,divprune,fastv,iwp,iwp-exact"
_COLUMNS = 3
_ANSWER_TOKENS = 32
_CELL = 16
"""Pixels of a token in a tile, whose position in the picture the model does not give."""
_TILE = (205, 205, 205)

Grid = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Kept:
    """What one pruner left of the picture, and the answer then; or why it could not.

    `indices` count over all units (the picture, or its tiles) in the order of the prompt.
    """

    pruner: str
    answer: str = ""
    site: str = ""
    tokens: int = 0
    layer_average: float = 0.0
    indices: tuple[int, ...] = ()
    labels: tuple[str, ...] = ()
    refused: str = ""

    def caption(self) -> str:
        """Name, tokens and answer, for the picture."""
        if self.refused:
            return f"{self.pruner}: {self.refused}"
        return f"{self.pruner}, {self.tokens} tokens\n{self.answer}"


def explain(
    context: typer.Context,
    image: Annotated[Path, typer.Option(help="Picture file.")],
    question: Annotated[str, typer.Option(help="What to ask about it.")],
    pruners: Annotated[str, typer.Option(help="Pruners, a comma list.")] = _PRUNERS,
    budget: Annotated[str, typer.Option(help="`11.1%`, `0.111` or `64`.")] = "11.1%",
    model: ModelName = "scenes",
    device: Annotated[str, typer.Option(help="`cpu`, `cuda`, ...")] = "cpu",
    out: Annotated[Path, typer.Option(help="PNG file to write.")] = Path("explain.png"),
    as_json: AsJson = False,
) -> None:
    """Draw the tokens that several pruners keep of one picture side by side, each with the answer it leads to.

    If the model cuts the picture into tiles, the tokens of each tile are drawn beside it, in the order of the prompt.

    Example: tokenprune explain --image cat.png --question "what color is the circle ?" --pruners random,iwp
    """
    invocation = invocation_of(context)
    names = [name.strip() for name in pruners.split(",") if name.strip()]
    if not names:
        raise ConfigError("--pruners is empty", hint="for example `--pruners random,iwp`")
    for name in names:
        invocation.host.pruners.get(name)
    wanted = Budget.parse(budget)
    from tokenprune.tasks.pictures import read_picture

    picture = read_picture(image, invocation.output.warning)
    grids, found = _ask(invocation, picture, question, names, wanted, model, device)
    _draw(picture, grids, found, out)
    if as_json:
        answers = [{key: value for key, value in asdict(kept).items() if key != "labels"} for kept in found]
        asked = {"question": question, "budget": wanted.label(), "picture": str(out), "grids": grids}
        invocation.output.json({**asked, "pruners": answers})
        return
    rows = [
        [kept.pruner, kept.site, str(kept.tokens), f"{kept.layer_average:.1f}", kept.refused or kept.answer]
        for kept in found
    ]
    columns = ["pruner", "site", "tokens", "layer average", "answer"]
    invocation.output.show(table(columns, rows, numbers=["tokens", "layer average"]))
    invocation.output.say(f"picture: {out}")


def _ask(
    invocation: Invocation,
    picture: Image.Image,
    question: str,
    names: Sequence[str],
    budget: Budget,
    model: str,
    device: str,
) -> tuple[list[Grid], list[Kept]]:
    from tokenprune.checkpoints import load_model
    from tokenprune.evaluation.batches import Batches, token_grids
    from tokenprune.evaluation.evaluate import Evaluation, OwnSamples, batch_by_batch
    from tokenprune.evaluation.generation import Pruning
    from tokenprune.tasks.base import Sample

    host = invocation.host
    loaded = load_model(model, device=device, host=host)
    asked = OwnSamples([Sample("explain", (picture,), question, answer="", family="")])
    batches = Batches(loaded, asked, count=1, size=1)
    (grids,) = token_grids(loaded, batches.batch(0))
    evaluations = [
        Evaluation(
            Pruning(loaded, host.pruners.get(name).build(), budget, host=host),
            batches,
            max_new_tokens=_ANSWER_TOKENS,
            label=name,
            keep=1,
            strict=True,
        )
        for name in names
    ]
    found = []
    for evaluation, run in batch_by_batch(evaluations):
        try:
            (prediction,) = run()
        except (BudgetError, IncompatibleError) as error:
            found.append(Kept(evaluation.label, refused=error.message))
        else:
            found.append(_kept(evaluation.label, prediction, grids))
    return grids, found


def _kept(name: str, prediction: Prediction, grids: Sequence[Grid]) -> Kept:
    assert prediction.kept is not None  # noqa: S101 - the evaluation remembers one sample
    cuts = prediction.kept.final()
    indices: list[int] = []
    labels: list[str] = []
    for unit, start in enumerate(_starts(grids)):
        cut = cuts.get(unit)
        indices += [start + place for place in (range(_tokens(grids[unit])) if cut is None else cut.indices)]
        labels += () if cut is None else cut.labels
    return Kept(
        name,
        answer=prediction.row["prediction"],
        site=next((cut.site for cut in cuts.values()), ""),
        tokens=prediction.row["final_tokens"],
        layer_average=prediction.row["layer_average_tokens"],
        indices=tuple(indices),
        labels=tuple(labels) if len(labels) == len(indices) else (),
    )


def _tokens(grid: Grid) -> int:
    return grid[0] * grid[1]


def _starts(grids: Sequence[Grid]) -> list[int]:
    """Number of the first token of each unit."""
    return list(itertools.accumulate(map(_tokens, grids[:-1]), initial=0))


def _draw(picture: Image.Image, grids: Sequence[Grid], found: Sequence[Kept], path: Path) -> None:
    from tokenprune.report import side_by_side

    panels = [(_panel(picture, grids, kept), kept.caption()) for kept in found]
    sheet = side_by_side(panels, columns=min(_COLUMNS, len(panels)))
    try:
        sheet.save(path, format="PNG")
    except OSError as error:
        raise ConfigError(f"cannot write `{path}`: {error.strerror}", hint="give --out a folder that exists") from error


def _panel(picture: Image.Image, grids: Sequence[Grid], kept: Kept) -> Image.Image:
    """The kept tokens over the picture; of a picture in tiles, the picture and the tiles as bare grids."""
    from PIL import Image

    from tokenprune.report import draw_kept, side_by_side

    if len(grids) == 1:
        return draw_kept(picture, grids[0], kept.indices, kept.labels)
    tiles = [(draw_kept(picture, (1, 1), (0,)), "the picture")]
    for number, ((rows, columns), start) in enumerate(zip(grids, _starts(grids), strict=True), start=1):
        inside = [place for place, index in enumerate(kept.indices) if start <= index < start + rows * columns]
        labels = [kept.labels[place] for place in inside] if kept.labels else []
        bare = Image.new("RGB", (columns * _CELL, rows * _CELL), _TILE)
        drawn = draw_kept(bare, (rows, columns), [kept.indices[place] - start for place in inside], labels)
        tiles.append((drawn, f"tile {number}: {len(inside)} tokens"))
    return side_by_side(tiles, columns=_COLUMNS)
