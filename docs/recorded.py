"""The recorded sweep in short: its accuracies by budget, and the picture of them that README shows."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PICTURE = ROOT / "docs" / "img" / "accuracy-by-budget.png"
#: The pruners that README shows; docs/results.md has all.
SHOWN = ("iwp", "iwp-layer0", "dart", "divprune", "fastv", "visionzip", "random", "avgpool")
#: The pruners that choose without looking, and the lines that they are drawn with.
CONTROLS = {"random": "--", "avgpool": ":"}

_TABLE = re.compile(r"^\*\*.*?: (?P<budget>[\d.]+%) of the visual tokens kept, .*?\*\*\n\n(?P<rows>(?:\|.*\n)+)", re.M)


def rows_by_budget(text: str) -> dict[str, dict[str, Mapping[str, str]]]:
    """The rows of a leaderboard in Markdown, by budget (as it is written there) and pruner."""
    found: dict[str, dict[str, Mapping[str, str]]] = {}
    for table in _TABLE.finditer(text):
        head, _, *rows = [
            [cell.strip() for cell in line.strip("|").split("|")] for line in table["rows"].strip().splitlines()
        ]
        entries = [dict(zip(head, row, strict=True)) for row in rows]
        found[f"{table['budget'].removesuffix('%')} %"] = {entry["pruner"]: entry for entry in entries}
    return found


def drawn_from(picture: Path) -> str:
    """The digest of the record from which a picture was drawn, or nothing."""
    from PIL import Image

    if not picture.is_file():
        return ""
    with Image.open(picture) as image:
        return str(image.info.get("Source", ""))


def digest(text: str) -> str:
    """What a picture keeps of the record from which it is drawn."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def draw(text: str, picture: Path) -> None:
    """Draw accuracy against budget, a line per pruner with 95 % intervals, as PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    found = rows_by_budget(text)
    budgets = list(found)[::-1]
    figure = Figure(figsize=(8.6, 4.4), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for place, name in enumerate(SHOWN):
        means = [float(found[budget][name]["accuracy %"]) for budget in budgets]
        ends = [[float(end) for end in found[budget][name]["interval"].strip("[]").split(",")] for budget in budgets]
        errors = [
            [mean - low for mean, (low, _) in zip(means, ends, strict=True)],
            [high - mean for mean, (_, high) in zip(means, ends, strict=True)],
        ]
        shift = (place - (len(SHOWN) - 1) / 2) * 0.035  # beside each other, so that intervals can be told apart
        style = {"linestyle": CONTROLS[name], "color": "0.45"} if name in CONTROLS else {}
        axes.errorbar(
            [number + shift for number in range(len(budgets))],
            means,
            errors,
            label=name,
            marker="o",
            markersize=4,
            capsize=2,
            elinewidth=0.8,
            linewidth=2.2 if name.startswith("iwp") else 1.3,
            **style,
        )
    unpruned = float(found[budgets[0]]["none"]["accuracy %"])
    axes.axhline(unpruned, color="black", linewidth=0.8)
    axes.annotate("unpruned", (-0.35, unpruned), xytext=(0, 3), textcoords="offset points", fontsize=8)
    axes.set_xticks(range(len(budgets)), budgets)
    axes.set_xlim(-0.4, len(budgets) - 0.6)
    axes.set_ylim(30, 103)
    axes.set_xlabel("visual tokens kept")
    axes.set_ylabel("accuracy in percent (95 % intervals)")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right center", frameon=False)
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, metadata={"Source": digest(text), "Software": None})
