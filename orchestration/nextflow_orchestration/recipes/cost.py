"""`pack.cost` follows `train.model`: packs are of equal cost only for the model that they were counted for.

The two sections name one thing in two ways, because shards may be packed for a model that another recipe trains. Where a
recipe has both parts, what `pack.cost` leaves out is taken from `train`, and what it says must be the same. `passes` is left
alone: it multiplies every pack's cost alike. The head's rows are counted without the padding to a multiple of 128 that the
model adds (`megatron_nextflow.sequence.vocabulary`), which computes nothing that is learnt; a number with it is accepted.
"""

from __future__ import annotations

import json
from pathlib import Path

from nextflow_tokenize.config.pack import CostModel
from nextflow_tokenize.config.tokenize import TextTokenizerConfig
from nextflow_tokenize.config.vision import VisionTokenizerConfig
from nextflow_tokenize.vision.identity import vision_info

from megatron_nextflow.config.model import ModelConfig
from megatron_nextflow.sequence.vocabulary import Vocabulary

NAMES = {
    "hidden_size": "hidden_size",
    "ffn_hidden_size": "ffn_size",
    "layers": "layers",
    "heads": "heads",
    "query_groups": "query_groups",
}
"""Fields of `pack.cost`, and what `train.model` calls them."""


def vocabulary(model: ModelConfig, text: TextTokenizerConfig, vision: VisionTokenizerConfig) -> Vocabulary:
    """The joint vocabulary that a recipe's model will have, as far as the recipe and the tokenizers that it names tell.

    A tokenizer that cannot be read counts as one of the recipe's own sizes: it stops the run elsewhere, and says why.
    """
    words, codes = text.vocab_size, vision.codebook_size
    try:
        words = words if text.path is None else _ids(Path(text.path))
        codes = codes if vision.path is None else vision_info(vision.path)["codebook_size"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    return Vocabulary(text=model.text_vocabulary or words, codes=codes)


def _ids(file: Path) -> int:
    """Ids of a tokenizer.json, by its text, so that the `tokenizers` package need not be there."""
    content = json.loads(file.read_bytes())
    words = content["model"]["vocab"]
    highest = max(words.values()) if isinstance(words, dict) else len(words) - 1
    return 1 + max([highest, *(token["id"] for token in content.get("added_tokens", []))])


def of_model(model: ModelConfig, joint: Vocabulary, cost: CostModel) -> CostModel:
    """`cost` with all that it does not say taken from the model."""
    sizes = {name: getattr(model, other) for name, other in NAMES.items()} | {"vocabulary": joint.size}
    return cost.model_copy(update={name: size for name, size in sizes.items() if name not in cost.model_fields_set})


def disagreements(model: ModelConfig, joint: Vocabulary, cost: CostModel) -> list[str]:
    """What `cost` says that is not so of the model, both values named."""
    said = cost.model_fields_set
    wrong = [
        f"{name} {getattr(cost, name)} is train.model.{other} {getattr(model, other)}"
        for name, other in NAMES.items()
        if name in said and getattr(cost, name) != getattr(model, other)
    ]
    if "vocabulary" in said and cost.vocabulary not in (joint.size, joint.padded):
        ids = f"{joint.text} text ids + 2 + {joint.codes} codes"
        wrong.append(f"vocabulary {cost.vocabulary} is {joint.size} in training ({ids})")
    if "head_size" in said and cost.head_size not in (None, model.head_dim):
        wrong.append(f"head_size {cost.head_size} is {model.head_dim} in training (train.model.hidden_size / heads)")
    if not cost.gated:
        wrong.append("gated false is true in training (SwiGLU)")
    return wrong
