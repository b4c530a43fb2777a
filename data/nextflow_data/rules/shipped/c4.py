"""c4: C4's rules on lines and sentences, by datatrove's filter, asked line by line so that each line that goes can be named.

Sentences are counted over the document, by the same tokenizer, outside of it.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from nextflow_data.common.section import Section
from nextflow_data.decisions import Finding
from nextflow_data.document import Document
from nextflow_data.rules.datatrove_rule import DatatroveRule
from nextflow_data.rules.rule import LineEdit, Verdict, rule


class C4Rules(Section):
    """datatrove's C4QualityFilter (Raffel et al. 2020, §2.2), without the list of bad words, which needs a download."""

    remove_citations: bool = False
    """Ours; published: True, take out [12] and [edit]. It also takes the index out of `speed[0]` and the brackets out of
    `rgba[]`: code must not be edited."""
    no_terminal_punctuation: bool = False
    """Ours; published: True, drop every line without a final mark. Headings, list items and table rows have none."""
    min_sentences: int = 2
    """Ours; published: 5. -1 turns it off."""
    min_words_per_line: int = -1
    """Ours; published: 3, which removes headings. -1 turns it off."""
    max_word_length: int = 1000
    """Published (in C4's code). -1 turns it off."""
    lorem_ipsum: bool = True
    """Published: drop a document that has the phrase."""
    javascript: bool = False
    """Ours; published: True, drop lines with the word. Technical pages are about it."""
    curly_bracket: bool = False
    """Ours; published: True, drop any document with a {. That is every page with code."""
    policy: bool = True
    """Published: drop lines about cookies, privacy policy and terms of use."""


@rule
class C4(DatatroveRule[C4Rules]):
    """Takes lines out as well as dropping documents; the text keeps its node."""

    name = "c4"
    Config = C4Rules
    words = {
        "remove_citations": "marks of citation, like [12], were taken out of a line",
        "min_sentences": "too few sentences",
        "min_words_per_line": "a line with too few words was taken out",
        "max_word_length": "a line with an endless word was taken out",
        "no_terminal_punctuation": "a line without a final mark was taken out",
        "policy": "a line about cookies, privacy or terms of use was taken out",
        "javascript": "a line about JavaScript was taken out",
        "lorem_ipsum": "the text is a placeholder (lorem ipsum)",
        "curly_bracket": "the text has a curly bracket",
    }

    def made(self, tokenizer: Any) -> Any:
        from datatrove.pipeline.filters.c4_filters import C4QualityFilter

        return C4QualityFilter(
            remove_citations=self.config.remove_citations,
            filter_no_terminal_punct=self.config.no_terminal_punctuation,
            min_num_sentences=-1,
            min_words_per_line=self.config.min_words_per_line,
            max_word_length=self.config.max_word_length,
            filter_lorem_ipsum=self.config.lorem_ipsum,
            filter_javascript=self.config.javascript,
            filter_curly_bracket=self.config.curly_bracket,
            filter_policy=self.config.policy,
            language=tokenizer,
        )

    def judge(self, text: str, document: Document) -> Verdict:
        from datatrove.pipeline.filters.c4_filters import CITATION_REGEX

        edits: list[LineEdit] = []
        sentences = 0
        for line in self.datatrove.lines_of(text):
            asked = self.datatrove.document(line)
            before = self._counts()
            reason = self.datatrove.reason(self.filter.filter(asked))
            if reason is not None:
                return Verdict(self.measured(reason, line))
            fired = [name for name, number in self._counts().items() if number > before[name]]
            dropped = next((name for name in fired if name.startswith("line-filter-")), None)
            if dropped is not None:
                edits.append(LineEdit(self._of_line(dropped, line), line, None))
                continue
            if asked.text != line:
                found = float(len(CITATION_REGEX.findall(line)))
                edits.append(LineEdit(Finding("c4.remove_citations", found, 0.0, line[:200]), line, asked.text))
            if asked.text and self.config.min_sentences != -1:
                sentences += len(self.datatrove.tokenizer().span_tokenize(asked.text))
        if sentences < self.config.min_sentences:
            return Verdict(self.found("min_sentences", float(sentences)))
        return Verdict(edits=tuple(edits))

    def measured(self, reason: str, text: str) -> Finding:
        return self.found("lorem_ipsum" if reason == "lorem_ipsum" else "curly_bracket", detail=text[:200])

    def _counts(self) -> Counter[str]:
        stats = self.filter.stats.stats.items()
        return Counter({name: stat.total for name, stat in stats if name.startswith("line-filter-")})

    def _of_line(self, name: str, line: str) -> Finding:
        words, detail = line.split(), line[:200]
        match name.removeprefix("line-filter-"):
            case "too_long_word":
                return self.found("max_word_length", float(max(map(len, words))), detail)
            case "too_few_words":
                return self.found("min_words_per_line", float(len(words)), detail)
            case "no_terminal_punc":
                return self.found("no_terminal_punctuation", detail=detail)
            case other:
                return self.found(other, detail=detail)
