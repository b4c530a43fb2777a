"""Text ids: a byte-level BPE trained on the run's own text, or any tokenizer.json.

Byte-level, because every string must come back exactly, whatever script or control character a page holds. The words to be
trained on are counted in a fixed order and ties between merges are settled by the library in order of ids, so the file is a
function of the texts. The cost of training one: its merges fit this run and no pretrained model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

from nextflow_data.common.errors import RequestError
from nextflow_data.common.whole_files import replace_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from nextflow_tokenize.config.tokenize import TextTokenizerConfig


def train_bpe(texts: Iterable[str], config: TextTokenizerConfig, path: Path | str) -> str:
    """Train a byte-level BPE on `texts` and write it to `path`; returns the file's hex sha256.

    The file appears whole or not at all. Raises OSError where it cannot be written.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocab_size,
        min_frequency=config.min_frequency,
        special_tokens=[config.end_of_text],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    content = tokenizer.to_str(pretty=True).encode("utf-8")
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    replace_file(Path(path), content)
    return hashlib.sha256(content).hexdigest()


class TextTokenizer:
    """A tokenizer.json: `vocab_size`, `eod_id` (the end-of-text token) and `hash` (hex sha256 of the file)."""

    def __init__(self, tokenizer: Tokenizer, eod_id: int, digest: str) -> None:
        self._tokenizer = tokenizer
        self.eod_id = eod_id
        self.hash = digest
        self.vocab_size: int = max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1

    @classmethod
    def load(cls, path: Path | str, end_of_text: str = "<|endoftext|>") -> TextTokenizer:
        """Read a tokenizer.json. Raises FileNotFoundError, or ValueError where it is none or lacks `end_of_text`."""
        content = Path(path).read_bytes()
        try:
            tokenizer = Tokenizer.from_str(content.decode("utf-8"))
        except Exception as error:  # the library raises bare Exception
            raise RequestError(f"{path} is not a tokenizer.json: {error}") from error
        # The file may ask to pad or cut; a document must do neither.
        tokenizer.no_padding()
        tokenizer.no_truncation()
        eod = tokenizer.token_to_id(end_of_text)
        if eod is None:
            raise RequestError(f"{path} has no token {end_of_text!r}: name its end-of-text token in `end_of_text`")
        return cls(tokenizer, eod, hashlib.sha256(content).hexdigest())

    def encode(self, text: str) -> list[int]:
        """Ids of `text`, no special tokens added, and none read out of it: text that spells one stays text."""
        tokenizer = self._tokenizer
        tokenizer.encode_special_tokens = True
        ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`; for a trained tokenizer `decode(encode(t)) == t`. The end-of-text token is left out."""
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=True)
        return text
