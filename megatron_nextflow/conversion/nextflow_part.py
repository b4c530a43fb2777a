"""What a NextFlow model has besides Qwen2.5-VL's language model, and the file that keeps it beside exported weights.

`nextflow.safetensors` lies in an exported folder next to the weights that other programs read, which do not open it: the
codebook, connector and scale embeddings whole, and of word table and head the rows after the text's (⟨boi⟩, ⟨eoi⟩, codes and
padding). Its metadata is the checkpoint's state, so an export and import back loses nothing but the optimizer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError
from safetensors.torch import save_file
from torch import Tensor

from megatron_nextflow.checkpoint.format import CheckpointState
from megatron_nextflow.config.model import ModelConfig
from megatron_nextflow.conversion.hf_folder import Entry, read_header
from megatron_nextflow.conversion.tensor_names import HEAD, WORDS, ConvertError, Shape
from megatron_nextflow.sequence.vocabulary import Vocabulary

FILE = "nextflow.safetensors"
CODEBOOK = "embedding.codebook"


def new_tensors(model: ModelConfig, vocabulary: Vocabulary, code_dim: int) -> dict[str, tuple[Shape, int]]:
    """Name to whole shape and first row of what Qwen2.5-VL has not; `code_dim` channels of a code."""
    width = model.hidden_size
    return {
        WORDS: ((vocabulary.padded_words, width), vocabulary.text),
        HEAD: ((vocabulary.padded, width), vocabulary.text),
        CODEBOOK: ((vocabulary.codes, code_dim), 0),
        "embedding.connector.fc1.weight": ((width, code_dim), 0),
        "embedding.connector.fc1.bias": ((width,), 0),
        "embedding.connector.fc2.weight": ((width, width), 0),
        "embedding.connector.fc2.bias": ((width,), 0),
        "embedding.scale_embeddings": ((model.max_scales, width), 0),
        "embedding.scale_count_gain": ((1,), 0),
    }


@dataclass(frozen=True)
class Kept:
    """A `nextflow.safetensors`: its tensors, and the state of the checkpoint that it was exported from."""

    file: Path
    entries: Mapping[str, Entry]
    state: CheckpointState

    def require(self, name: str, shape: Shape) -> Entry:
        """The tensor `name`. Raises ConvertError where it is not there or not of this shape."""
        entry = self.entries.get(name)
        if entry is None or entry.shape != shape:
            found = "missing" if entry is None else f"of shape {list(entry.shape)}"
            raise ConvertError(f"{self.file}: {name} is {found}, the model's is {list(shape)}; export the checkpoint again")
        return entry


def write_kept(folder: Path, tensors: dict[str, Tensor], state: CheckpointState) -> None:
    """Write `tensors`, those of `new_tensors` from their first row on, into `folder`."""
    save_file(tensors, folder / FILE, metadata={"format": "pt", "state": state.model_dump_json()})


def read_kept(folder: Path, text_tokenizer: str, vision_tokenizer: str) -> Kept | None:
    """The kept tensors in `folder`, None where it was not exported from here.

    Raises ConvertError where they are damaged, or belong to other tokenizers than those of these hashes.
    """
    file = folder / FILE
    if not file.is_file():
        return None
    entries, metadata = read_header(file)
    try:
        state = CheckpointState.model_validate_json(metadata["state"])
    except (KeyError, ValidationError) as error:
        raise ConvertError(f"{file} does not say what it was exported from ({error}); export it again") from error
    for name, given, own in (
        ("text", text_tokenizer, state.text_tokenizer),
        ("vision", vision_tokenizer, state.vision_tokenizer),
    ):
        if given != own:
            raise ConvertError(
                f"{file} belongs to the {name} tokenizer {own[:12]}…, given is {given[:12]}…: give its own, or remove the "
                "file to begin anew with another"
            )
    return Kept(file, entries, state)
