"""Whether a trained tokenizer can be used, found out before any work and without torch.

Read are its settings, the codebook and the index of the weights file; weights that lack a tensor of the networks show only
when the tokenizer is loaded. In exchange a recipe is checked in a moment, on a machine that has no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nextflow_data.common.errors import RequestError
from pydantic import ValidationError

from nextflow_tokenize.config.vision import VisionTokenizerConfig
from nextflow_tokenize.vision.identity import CONFIG_FILE, load_codebook, read_config


def read_tokenizer_config(directory: Path | str) -> VisionTokenizerConfig:
    """The settings of the tokenizer in `directory`, checked against its codebook.

    Raises FileNotFoundError for a folder or a file that is missing and ValueError for one that does not fit, each in one
    line that names the folder.
    """
    if not Path(directory).is_dir():
        raise FileNotFoundError(f"{directory} is not a folder: give the folder of a trained vision tokenizer")
    try:
        config = VisionTokenizerConfig.model_validate(read_config(directory))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "model"
        raise RequestError(f"{Path(directory) / CONFIG_FILE} is no tokenizer's settings: {where}: {first['msg']}") from None
    shape = load_codebook(directory).shape
    wanted = (config.codebook_size, config.semantic_dim + config.pixel_dim)
    if shape != wanted:
        raise RequestError(
            f"{directory} holds a codebook of {shape}, its {CONFIG_FILE} says {wanted}: they are of two tokenizers"
        )
    return config


def check_levels(config: VisionTokenizerConfig, levels: Sequence[int]) -> None:
    """Raises ValueError where images cannot be encoded at all of `levels`: a level was not trained, or the tokenizer has one
    fixed square schedule, for which there is no choosing a grid by an image's ratio."""
    if config.sides is not None:
        raise RequestError(
            f"the vision tokenizer has one square schedule of sides {list(config.sides)}: documents need one that was "
            "trained on levels, which keeps each image's ratio"
        )
    untrained = [level for level in levels if level not in config.levels]
    if untrained:
        raise RequestError(
            f"levels {untrained} were not trained: the vision tokenizer has {list(config.levels)}; set tokenize.level and "
            "tokenize.lower_levels to some of these"
        )
