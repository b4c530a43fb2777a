"""What a run says while it runs: a line on the terminal, a row of metrics.jsonl, TensorBoard scalars.

metrics.jsonl is the record: one JSON object a logged step. On resuming, rows after the checkpoint's step are cut off, so a
step occurs once whatever was killed. TensorBoard is told to forget the same steps. Only one process reports: the one that
holds the loss (last pipeline stage, first of its tensor- and data-parallel groups).
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from rich.console import Console
from torch.utils.tensorboard import SummaryWriter

METRICS = "metrics.jsonl"


def read_metrics(output: Path) -> list[dict[str, Any]]:
    """The rows of a run's metrics.jsonl in order; a last line that a kill cut short is left out."""
    path = output / METRICS
    rows: list[dict[str, Any]] = []
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                rows.append(json.loads(line))
            except ValueError:
                break
    return rows


class Reporter:
    """Writes one row a logged step. `start_step`: steps already done; what was logged after it is removed."""

    def __init__(self, output: Path, start_step: int, steps: int) -> None:
        self.console = Console(highlight=False)
        self.steps = steps
        output.mkdir(parents=True, exist_ok=True)
        kept = [row for row in read_metrics(output) if row["step"] <= start_step]
        path = output / METRICS
        beside = path.with_name(f".{METRICS}.writing")
        beside.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
        os.replace(beside, path)
        self.stream = open(path, "a", encoding="utf-8")  # noqa: SIM115 - held open for the run, closed by close()
        self.writer = SummaryWriter(str(output / "tensorboard"), purge_step=start_step + 1)

    def say(self, text: str) -> None:
        """A line on the terminal."""
        self.console.print(text, soft_wrap=True)

    def step(self, row: dict[str, Any]) -> None:
        """`row`: step, loss, by_kind {name: nats}, grad_norm, lr, tokens, labels, seconds, tokens_per_second, consumed."""
        self.stream.write(json.dumps(row) + "\n")
        self.stream.flush()
        for name in ("loss", "grad_norm", "lr", "tokens_per_second"):
            self.writer.add_scalar(name, row[name], row["step"])
        for name, value in row["by_kind"].items():
            self.writer.add_scalar(f"loss/{name}", value, row["step"])
        scales = [f"{n.partition('/')[2]}:{v:.2f}" for n, v in row["by_kind"].items() if n != "text"]
        text = f"{row['by_kind']['text']:.3f}" if "text" in row["by_kind"] else "–"
        image = f"  [dim]image by scale[/dim] {' '.join(scales)}" if scales else ""
        self.console.print(
            f"[bold]{row['step']:>6}[/bold]/{self.steps}  loss {row['loss']:.4f}  [dim]text[/dim] {text}{image}  "
            f"[dim]norm[/dim] {row['grad_norm']:.2f}  {row['tokens_per_second']:,.0f} tokens/s  {row['seconds']:.2f} s/step",
            soft_wrap=True,
        )

    def close(self) -> None:
        """Flush and close what is open."""
        self.stream.close()
        self.writer.close()
