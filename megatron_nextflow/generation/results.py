"""What was generated, and how it is kept: PNG files that say where they came from, text, or a folder with both in order.

Every file repeats the request: the checkpoint by the hash of its manifest, the tokenizers by theirs, the prompt, the images
in it by hash, settings and seed, precision and device, so a picture says what is needed to make it again. The cost: it also
tells its prompt to whoever it is given to.
"""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from nextflow_data.common.whole_files import replace_file
from nextflow_tokenize.schedule import Grid
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

PAGE, RECORD = "index.html", "result.json"


@dataclass(frozen=True)
class Result:
    """One result of a prompt: an `image` with its `codes` int64 [Σhw] over `grids`; or `text`, the continuation without the
    prompt; or `pieces`, text and images in order, `text` then being all of it with `<image>` for each.

    `path`: the PNG, or the folder of text with images. `ended`: why a text with images ends. `metadata`: the files' own.
    """

    metadata: dict[str, str]
    path: Path | None = None
    image: Image.Image | None = None
    codes: NDArray[np.int64] | None = None
    grids: tuple[Grid, ...] = ()
    text: str | None = None
    pieces: tuple[str | Image.Image, ...] = ()
    ended: str | None = None

    def record(self) -> dict[str, Any]:
        """As JSON has it."""
        width, height = self.image.size if self.image else (0, 0)
        return {
            "path": None if self.path is None else str(self.path), "text": self.text, "width": width, "height": height,
            "images": sum(isinstance(piece, Image.Image) for piece in self.pieces) + (self.image is not None),
            "ended": self.ended, "metadata": self.metadata,
        }  # fmt: skip


@dataclass(frozen=True)
class Generation:
    """All results of a request, prompt by prompt; `passes` and wall `seconds` are what they took, `flops` how much
    arithmetic the passes were (`cost`), `previews` the files of `--preview`."""

    results: tuple[Result, ...]
    passes: int
    flops: float
    seconds: float
    previews: tuple[Path, ...] = ()

    def record(self) -> dict[str, Any]:
        """As one JSON object: the first result's fields, `results` with those of all, and what they took."""
        every = [result.record() for result in self.results]
        took = {"passes": self.passes, "flops": self.flops, "seconds": self.seconds}
        return every[0] | took | {"results": every, "previews": [str(path) for path in self.previews]}


def is_png(path: Path) -> bool:
    """Whether `path` is called a PNG."""
    return path.suffix.lower() == ".png"


def numbered(path: Path, number: int, count: int) -> Path:
    """Where result `number`, counted from 1, of `count` goes: `path` itself where it is the only one, else cat-1.png, …"""
    return path if count == 1 else path.with_name(f"{path.stem}-{number:0{len(str(count))}d}{path.suffix}")


def write_png(image: Image.Image, path: Path, metadata: Mapping[str, str]) -> None:
    """The image with its metadata as PNG text."""
    info = PngInfo()
    for key, value in metadata.items():
        info.add_itxt(key, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, format="PNG", pnginfo=info)


def write_folder(
    folder: Path,
    prompt: Sequence[str | Image.Image],
    pieces: Sequence[str | Image.Image],
    metadata: Mapping[str, str],
    ended: str,
) -> None:
    """Text with images as index.html to read, the images as PNG, and result.json with all of it in order."""
    folder.mkdir(parents=True, exist_ok=True)
    listed: dict[str, list[dict[str, str]]] = {}
    shown = []
    for name, content in (("prompt", prompt), ("result", pieces)):
        listed[name] = []
        for piece in content:
            if isinstance(piece, str):
                listed[name].append({"text": piece})
                shown.append(f'<span class="{name}">{html.escape(piece)}</span>')
                continue
            file = f"{name}-{1 + sum('image' in entry for entry in listed[name])}.png"
            write_png(piece, folder / file, metadata if name == "result" else {})
            listed[name].append({"image": file})
            shown.append(f'<img src="{file}" alt="image of the {name}">')
    record = {**listed, "ended": ended, "metadata": dict(metadata)}
    replace_file(folder / RECORD, json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    style = (
        "body{max-width:46rem;margin:2rem auto;padding:0 1rem;font:1rem/1.5 serif;white-space:pre-wrap}"
        "img{display:block;max-width:100%;margin:1rem 0}.prompt{font-weight:bold}"
    )
    head = f'<meta charset="utf-8"><title>Text with images</title><style>{style}</style>'
    page = f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>{"".join(shown)}</body></html>\n'
    replace_file(folder / PAGE, page)
