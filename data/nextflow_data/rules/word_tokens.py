"""One spaCy tokenisation of a text, shared by every filter that asks for its words or its sentences.

datatrove's filters split the same text again and again (words for three of them, the sentences of every line for C4), and
that is most of their time. Its tokenizer never joins words over a line break, so the text is tokenised once and remembered
line by line: words of a text are those of its lines, also of a text made of some of those lines. The answers are those of
datatrove's own SpaCyTokenizer, which a test holds on real pages and on random text.
"""

from __future__ import annotations

from datatrove.utils.word_tokenizers import SpaCyTokenizer, strip_strings
from spacy.tokens import Doc

BREAKS_SPACY = "IS_ALPHA"
"""spaCy fails on this word, but only from the second text on. datatrove takes it out when spaCy fails, so that its answer
depends on what came before; here it is always taken out, so that the answer depends on the text alone."""
MAX_LINES = 20_000
"""Lines remembered before the memory is emptied, from one document to the next; our choice, some tens of megabytes."""


class SharedTokenizer(SpaCyTokenizer):
    """A datatrove word tokenizer that remembers the lines of the texts it saw. Give it to filters as their `language`."""

    def __init__(self, language: str = "en") -> None:
        super().__init__(language)
        self._words: dict[str, list[str]] = {}
        self._spans: dict[str, list[tuple[int, int]]] = {}

    def word_tokenize(self, text: str) -> list[str]:
        """The words of `text`."""
        lines = _lines(text)
        self._learn(lines)
        return [word for line in lines for word in self._words[line]]

    def span_tokenize(self, text: str) -> list[tuple[int, int]]:
        """(start, end) of each sentence of `text`; remembered where `text` is one line without white space around it."""
        if text not in self._spans:
            return super().span_tokenize(text)
        return self._spans[text]

    def _learn(self, lines: list[str]) -> None:
        unknown = list(dict.fromkeys(line for line in lines if line not in self._words))
        if not unknown:
            return
        if len(self._words) + len(unknown) > MAX_LINES:
            self._words.clear()
            self._spans.clear()
            unknown = list(dict.fromkeys(lines))
        text = "\n".join(unknown)
        if BREAKS_SPACY in text:
            for line in unknown:
                plain = line.replace(BREAKS_SPACY, "")
                self._words[line] = super().word_tokenize(plain)
                self._spans[line] = super().span_tokenize(plain)
            return
        with self.tokenizer.memory_zone():
            self.tokenizer.max_length = len(text) + 10
            (tokens,) = self._do_tokenize(text)
            sentencizer = self.tokenizer.get_pipe("sentencizer")
            pieces = iter([(token.idx, token.text, bool(token.whitespace_)) for token in tokens])
            piece = next(pieces, None)
            position = 0
            for line in unknown:
                words: list[str] = []
                spaces: list[bool] = []
                end = position + len(line)
                while piece is not None and piece[0] < end:
                    if piece[0] >= position:
                        words.append(piece[1])
                        spaces.append(piece[2])
                    piece = next(pieces, None)
                self._words[line] = strip_strings(words)
                alone = sentencizer(Doc(self.tokenizer.vocab, words=words, spaces=spaces))
                self._spans[line] = [(s.start_char, s.end_char) for s in alone.sents]
                position = end + 1


def _lines(text: str) -> list[str]:
    return [line for line in (line.strip() for line in text.splitlines()) if line]
