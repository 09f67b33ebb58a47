"""A sweep directory of somebody else's shows and writes nothing that lies outside it."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.sweep.fixtures import FinishedSweep
from tokenprune.report.render.kept_tokens import data_url, kept_tokens, stored_overlay
from tokenprune.report.render.page import html_page
from tokenprune.sweep import SweepStore
from tokenprune.sweep.store.atomic_io import OutsideError, StorageError, append_line, inside, open_log
from tokenprune.sweep.store.sweep_data import read_sweep

SECRET = (12, 34, 56)


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """A picture of the reader's, outside the sweep directory."""
    path = tmp_path / "private" / "secret.png"
    path.parent.mkdir()
    Image.new("RGB", (16, 16), SECRET).save(path)
    return path


def outside_name(pictures: Path, secret: Path) -> str:
    return str(secret)


def upwards(pictures: Path, secret: Path) -> str:
    return f"../../private/{secret.name}"


def linked(pictures: Path, secret: Path) -> str:
    (pictures / "linked.png").symlink_to(secret)
    return "linked.png"


def linked_folder(pictures: Path, secret: Path) -> str:
    pictures.rename(pictures.with_name("moved"))
    pictures.symlink_to(secret.parent)
    return secret.name


@pytest.mark.parametrize("plant", [outside_name, upwards, linked, linked_folder])
def test_a_report_embeds_no_picture_from_elsewhere(
    finished: FinishedSweep, tmp_path: Path, secret: Path, plant: Callable[[Path, Path], str]
) -> None:
    copy = finished.copy(tmp_path / "demo")
    name = plant(copy / "pictures", secret)
    store = SweepStore(copy)
    for cell in store.plan():
        path = store.cell_directory(cell.id) / "overlays.json"
        if path.is_file():
            stored = json.loads(path.read_text(encoding="utf-8"))
            stored["samples"][0]["images"][0]["picture"] = name
            path.write_text(json.dumps(stored), encoding="utf-8")
    data = read_sweep(copy)
    kept = kept_tokens(data)
    assert name in kept["lost"]
    assert name not in kept["pictures"]
    embedded = data_url(secret)
    assert base64.b64decode(embedded.partition(",")[2])  # this is what must not be in the page
    assert embedded not in html_page(copy)
    entry = next(filter(None, (data.store.overlays(entry.cell.id) for entry in data.cells)))[0]
    with pytest.raises(OutsideError):
        stored_overlay(copy, entry)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/etc/passwd", "a\\b", "C:x", "a\0b", None, 3])
def test_only_plain_names_are_joined(tmp_path: Path, name: Any) -> None:
    with pytest.raises(OutsideError, match="is not the name of a file"):
        inside(tmp_path, "pictures", name)


def test_links_are_followed_as_long_as_they_stay_inside(tmp_path: Path) -> None:
    (tmp_path / "run" / "store").mkdir(parents=True)
    (tmp_path / "run" / "pictures").symlink_to("store")
    assert inside(tmp_path / "run", "pictures", "a.png") == tmp_path / "run" / "pictures" / "a.png"
    (tmp_path / "linked").symlink_to(tmp_path / "run")
    assert inside(tmp_path / "linked", "pictures", "a.png")  # the directory itself may be linked
    (tmp_path / "run" / "loop").symlink_to("loop")
    assert inside(tmp_path / "run", "loop") == tmp_path / "run" / "loop"


def test_the_id_of_a_cell_leads_nowhere_else(finished: FinishedSweep) -> None:
    store = SweepStore(finished.directory)
    for look in (store.result, store.samples, store.overlays, store.first_token):
        with pytest.raises(OutsideError):
            look("../../elsewhere")


@pytest.mark.parametrize("write", [lambda path: append_line(path, "{}"), lambda path: open_log(path).write(b"x")])
def test_nothing_is_appended_to_a_file_behind_a_link(tmp_path: Path, write: Callable[[Path], object]) -> None:
    target = tmp_path / "profile"
    target.write_text("mine\n", encoding="utf-8")
    (tmp_path / "events.jsonl").symlink_to(target)
    with pytest.raises((OSError, StorageError), match="link"):
        write(tmp_path / "events.jsonl")
    assert target.read_text(encoding="utf-8") == "mine\n"
