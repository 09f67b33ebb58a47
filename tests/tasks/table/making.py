"""Small tables of every format, and pictures for them."""

from __future__ import annotations

import base64
import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

Rows = Sequence[Mapping[str, Any]]


def picture(seed: int = 0, size: tuple[int, int] = (17, 11)) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def png(image: Image.Image | int = 0) -> bytes:
    stream = io.BytesIO()
    (picture(image) if isinstance(image, int) else image).save(stream, "PNG")
    return stream.getvalue()


def in_base64(image: Image.Image | int = 0) -> str:
    return base64.b64encode(png(image)).decode()


def pixels(image: Image.Image | int) -> Any:
    if isinstance(image, int):
        image = picture(image)
    assert image.mode == "RGB"
    return np.asarray(image).tolist()


def write_parquet(path: Path, rows: Rows, group: int = 1000) -> Path:
    pq.write_table(pa.Table.from_pylist([dict(row) for row in rows]), path, row_group_size=group)
    return path


def write_saved(folder: Path, rows: Rows, shards: int = 2) -> Path:
    """As `datasets` saves: arrow streams and a list of them."""
    folder.mkdir()
    table = pa.Table.from_pylist([dict(row) for row in rows])
    names = [f"data-{number:05}-of-{shards:05}.arrow" for number in range(shards)]
    size = -(-len(rows) // shards)
    for number, name in enumerate(names):
        with pa.ipc.new_stream(str(folder / name), table.schema) as stream:
            stream.write_table(table.slice(number * size, size), max_chunksize=2)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names]}))
    (folder / "dataset_info.json").write_text("{}")
    return folder


def write_jsonl(path: Path, rows: Rows) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_csv(path: Path, rows: Rows) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if path.suffix == ".tsv" else ",")
        writer.writeheader()
        writer.writerows(rows)
    return path
