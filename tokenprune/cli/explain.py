"""`tokenprune explain`: which tokens several pruners keep of one picture, side by side, and what is answered then."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tokenprune.budget import Budget
from tokenprune.cli.output import Session, session_of, table
from tokenprune.errors import BudgetError, ConfigError, IncompatibleError

if TYPE_CHECKING:
    from PIL import Image

    from tokenprune.models import LoadedModel

_PRUNERS = "none,random,divprune,fastv,iwp,iwp-exact"
_COLUMNS = 3
_ANSWER_TOKENS = 32


@dataclass(frozen=True, slots=True)
class Kept:
    """What one pruner left of the picture, and the answer then; or why it could not."""

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
    model: Annotated[str, typer.Option(help="Model: short name, directory or hub name.")] = "scenes",
    device: Annotated[str, typer.Option(help="`cpu`, `cuda`, ...")] = "cpu",
    out: Annotated[Path, typer.Option(help="PNG file to write.")] = Path("explain.png"),
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Draw the tokens that several pruners keep of one picture side by side, each with the answer it leads to.

    Example: tokenprune explain --image cat.png --question "what color is the circle ?" --pruners random,iwp
    """
    session = session_of(context)
    names = [name.strip() for name in pruners.split(",") if name.strip()]
    if not names:
        raise ConfigError("--pruners is empty", hint="for example `--pruners random,iwp`")
    for name in names:
        session.host.pruners.get(name)
    wanted = Budget.parse(budget)
    picture = _open(image)
    grid, found = _ask(session, picture, question, names, wanted, model, device)
    _draw(picture, grid, found, out)
    if as_json:
        answers = [{key: value for key, value in asdict(kept).items() if key != "labels"} for kept in found]
        session.output.json({"question": question, "budget": wanted.label(), "picture": str(out), "pruners": answers})
        return
    rows = [
        [kept.pruner, kept.site, str(kept.tokens), f"{kept.layer_average:.1f}", kept.refused or kept.answer]
        for kept in found
    ]
    columns = ["pruner", "site", "tokens", "layer average", "answer"]
    session.output.show(table(columns, rows, numbers=["tokens", "layer average"]))
    session.output.say(f"picture: {out}")


def _open(path: Path) -> Image.Image:
    from PIL import Image, UnidentifiedImageError

    try:
        return Image.open(path).convert("RGB")
    except FileNotFoundError:
        raise ConfigError(f"no file `{path}`", hint="give the path of a picture with --image") from None
    except (OSError, UnidentifiedImageError) as error:
        raise ConfigError(f"cannot read `{path}` as a picture: {error}", hint="give a PNG or JPEG file") from error


def _ask(
    session: Session, picture: Image.Image, question: str, names: Sequence[str], budget: Budget, model: str, device: str
) -> tuple[tuple[int, int], list[Kept]]:
    from tokenprune.models import load_model
    from tokenprune.models.loading import parts_of
    from tokenprune.sweep.bench import Bench
    from tokenprune.tasks.base import Sample

    loaded = load_model(model, device=device, host=session.host)
    bench = Bench(session.host, device)
    inputs = bench.encode(loaded, [Sample("explain", (picture,), question, answer="", family="")])
    parts = parts_of(loaded.model, session.host)
    (visual,) = parts.visuals(inputs)
    grid = visual.grid or (1, visual.tokens)
    found = [_ask_one(session, loaded, inputs, name, budget, grid[0] * grid[1]) for name in names]
    return grid, found


def _ask_one(
    session: Session, loaded: LoadedModel, inputs: dict[str, Any], name: str, budget: Budget, tokens: int
) -> Kept:
    from tokenprune.engine import pruned
    from tokenprune.metrics.lens import kept_tokens

    try:
        chosen = session.host.pruners.get(name).build()
        with pruned(loaded.model, chosen, budget, joint=loaded.joint) as run:
            made = loaded.model.generate(**inputs, do_sample=False, max_new_tokens=_ANSWER_TOKENS)
    except (BudgetError, IncompatibleError) as error:
        return Kept(name, refused=error.message)
    answer = loaded.processor.batch_decode(made[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)[0]
    cut = kept_tokens(run.last, 0).final().get(0)
    return Kept(
        name,
        answer=str(answer).strip(),
        site="" if cut is None else cut.site,
        tokens=run.last.final()[0],
        layer_average=run.last.layer_average()[0],
        indices=tuple(range(tokens)) if cut is None else cut.indices,
        labels=() if cut is None else cut.labels,
    )


def _draw(picture: Image.Image, grid: tuple[int, int], found: Sequence[Kept], path: Path) -> None:
    from tokenprune.report import draw_kept, side_by_side

    panels = [(draw_kept(picture, grid, kept.indices, kept.labels), kept.caption()) for kept in found]
    sheet = side_by_side(panels, columns=min(_COLUMNS, len(panels)))
    try:
        sheet.save(path, format="PNG")
    except OSError as error:
        raise ConfigError(f"cannot write `{path}`: {error.strerror}", hint="give --out a folder that exists") from error
