"""The README's picture, from a finished quickstart: `python docs/make_picture.py runs/quickstart docs/quickstart.jpg`.

Above, a held-out photograph and its reconstructions after 1, 2, 4, … scales; below, the head of the report in a browser.
Needs chromium.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

WIDTH = 1200
ROW = 2
"""Of the sheet, from 0: the one with the most to see."""
HEAD = 440
"""Pixels of the report that are shown."""


def main(run: Path, out: Path) -> None:
    """Writes `out` from the run's folder."""
    (sheet_file,) = run.glob("vision_tokenizer-*/tokenizer/held_out.png")
    with Image.open(sheet_file) as sheet:
        top, bottom = _rows(sheet.convert("L"))[ROW]
        row = sheet.convert("RGB").crop((0, max(0, top - 4), sheet.width, bottom))
    row = row.resize((WIDTH, round(row.height * WIDTH / row.width)), Image.Resampling.LANCZOS)
    with tempfile.TemporaryDirectory() as folder:
        shot = Path(folder) / "report.png"
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--disable-background-networking"]
        command = ["chromium", *flags, f"--window-size={WIDTH},{HEAD}", f"--screenshot={shot}"]
        subprocess.run([*command, (run / "report.html").resolve().as_uri()], check=True, capture_output=True)
        with Image.open(shot) as page:
            head = page.convert("RGB")
    picture = Image.new("RGB", (WIDTH, row.height + head.height), "white")
    picture.paste(row, (0, 0))
    picture.paste(head, (0, row.height))
    picture.save(out, quality=82, optimize=True)


def _rows(sheet: Image.Image) -> list[tuple[int, int]]:
    """First and last line of each row, its words included; rows and their words stand between lines of plain background."""
    width, height = sheet.size
    plain = [low == high for low, high in (sheet.crop((0, y, width, y + 1)).getextrema() for y in range(height))] + [True]
    edges = [y for y in range(1, height + 1) if plain[y] != plain[y - 1]]
    if not plain[0]:
        edges.insert(0, 0)
    return list(zip(edges[::4], edges[3::4], strict=False))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
