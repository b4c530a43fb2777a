"""`python -m megatron_nextflow.generate CHECKPOINT PROMPT…`: images or text, in a process of its own; prints JSON."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from nextflow_data.common.errors import exit_status

from megatron_nextflow.config.generate import GenerateConfig
from megatron_nextflow.generation.generator import answer


def main(arguments: Sequence[str] | None = None) -> None:
    """Ends the process with one line where it cannot answer: with 2 where what is asked for is refused, else with 1."""
    parser = argparse.ArgumentParser(prog="megatron_nextflow.generate", description="Images or text from a checkpoint.")
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("prompts", nargs="+", metavar="prompt")
    parser.add_argument("--image", dest="images", type=Path, action="append", default=[], help="for the next <image>")
    parser.add_argument("--out", type=Path, help="PNG or folder to write; without it, prompts are continued in text")
    parser.add_argument("--interleaved", action="store_true", help="text with images, into the folder --out")
    parser.add_argument("--settings", type=GenerateConfig.model_validate_json, default=GenerateConfig(), help="as JSON")
    parser.add_argument("--n", type=int, default=1, help="results a prompt")
    parser.add_argument("--batch", type=int, default=4, help="results beside each other")
    parser.add_argument("--preview", type=Path, help="folder or PNG for images after each scale")
    parser.add_argument("--text-tokenizer", type=Path)
    parser.add_argument("--vision-tokenizer", type=Path)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--threads", type=int, default=1)
    given = vars(parser.parse_args(arguments))
    try:
        print(answer(given.pop("prompts"), given.pop("images"), **given))
    except (ValueError, OSError) as error:
        parser.exit(exit_status(error), f"{error}\n")


if __name__ == "__main__":
    main()
