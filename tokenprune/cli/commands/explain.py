"""`tokenprune explain`: which tokens several pruners keep of one picture, side by side, and what is answered then."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tokenprune.budget import Budget
from tokenprune.cli.options import AsJson, ModelName
from tokenprune.cli.output import Invocation, invocation_of, table
from tokenprune.errors import BudgetError, ConfigError, IncompatibleError

if TYPE_CHECKING:
    from PIL import Image

    from tokenprune.checkpoints import LoadedModel

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
    from tokenprune.evaluation.model_cache import Bench
    from tokenprune.families.lookup import parts_of
    from tokenprune.tasks.base import Sample

    loaded = load_model(model, device=device, host=invocation.host)
    bench = Bench(invocation.host, device)
    inputs = bench.encode(loaded, [Sample("explain", (picture,), question, answer="", family="")])
    parts = parts_of(loaded.model, invocation.host)
    grids = [visual.grid or (1, visual.tokens) for visual in parts.visuals(inputs) if visual.tokens]
    return grids, [_ask_one(invocation, loaded, inputs, name, budget, grids) for name in names]


def _ask_one(
    invocation: Invocation,
    loaded: LoadedModel,
    inputs: dict[str, Any],
    name: str,
    budget: Budget,
    grids: Sequence[Grid],
) -> Kept:
    from tokenprune.engine import pruned
    from tokenprune.metrics.lens import kept_tokens

    try:
        chosen = invocation.host.pruners.get(name).build()
        with pruned(loaded.model, chosen, budget, joint=loaded.joint) as run:
            made = loaded.model.generate(**inputs, do_sample=False, max_new_tokens=_ANSWER_TOKENS)
    except (BudgetError, IncompatibleError) as error:
        return Kept(name, refused=error.message)
    answer = loaded.processor.batch_decode(made[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)[0]
    cuts = kept_tokens(run.last, 0).final()
    indices: list[int] = []
    labels: list[str] = []
    for unit, start in enumerate(_starts(grids)):
        cut = cuts.get(unit)
        indices += [start + place for place in (range(_tokens(grids[unit])) if cut is None else cut.indices)]
        labels += () if cut is None else cut.labels
    return Kept(
        name,
        answer=str(answer).strip(),
        site=next((cut.site for cut in cuts.values()), ""),
        tokens=run.last.final()[0],
        layer_average=run.last.layer_average()[0],
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
