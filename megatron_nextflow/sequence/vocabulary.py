"""The joint vocabulary: text ids, ⟨boi⟩, ⟨eoi⟩, then the image codes, under one output head.

NextFlow has one shared head over text and vision and plain cross-entropy on indices (§3.2). The head's rows are padded to a
multiple that does not depend on the tensor-parallel size, so a checkpoint has the same shapes on every layout; padding
rows exist in memory and are masked out of the softmax. The cost: the tensor-parallel size must divide the padded size, so a
power of two up to the multiple.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Vocabulary:
    """Where each kind of id lies: text [0, text), ⟨boi⟩ = text, ⟨eoi⟩ = text + 1, codes [text + 2, text + 2 + codes).

    `multiple`: the head's rows are padded to a multiple of this (our choice: 128, Megatron's own default).
    """

    text: int
    codes: int
    multiple: int = 128

    def __post_init__(self) -> None:
        if self.text < 1 or self.codes < 1 or self.multiple < 1:
            raise ValueError(f"a vocabulary needs at least one text id, one code and a multiple of 1, not {self}")

    @property
    def boi(self) -> int:
        """⟨boi⟩, which predicts the code of scale 1."""
        return self.text

    @property
    def eoi(self) -> int:
        """⟨eoi⟩, which is given and predicts the text after the image."""
        return self.text + 1

    @property
    def code_offset(self) -> int:
        """Joint id of code 0."""
        return self.text + 2

    @property
    def size(self) -> int:
        """Ids that may carry probability."""
        return self.text + 2 + self.codes

    @property
    def padded(self) -> int:
        """Rows of the output head."""
        return -(-self.size // self.multiple) * self.multiple

    @property
    def words(self) -> int:
        """Ids that have a row in the input embedding: text, ⟨boi⟩, ⟨eoi⟩. Codes enter through the connector."""
        return self.text + 2

    @property
    def padded_words(self) -> int:
        """Rows of the input embedding."""
        return -(-self.words // self.multiple) * self.multiple

    @property
    def tables(self) -> dict[str, int]:
        """Rows of what tensor-parallel processes split, by name."""
        return {"output head": self.padded, "input embedding": self.padded_words}
