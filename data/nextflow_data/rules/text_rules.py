"""datatrove's quality filters, asked for the measured value as well as the verdict.

The verdict is always datatrove's own, from its own classes: GopherQuality, GopherRepetition, C4Quality and FineWeb, in the
order FineWeb runs them. They give back only a name, so the value that failed is measured again, with datatrove's own helpers
where it has them; this is done for failing documents only. C4 edits lines as well: it is asked line by line, so that each
line that goes can be named, and the text keeps its node.

Rules are named as the recipe names their thresholds ("quality.min_doc_words"), so that a reader of a decision knows what to
change.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from datatrove.data import Document as DatatroveDocument
from datatrove.pipeline.filters.c4_filters import CITATION_REGEX, C4QualityFilter
from datatrove.pipeline.filters.fineweb_quality_filter import FineWebQualityFilter
from datatrove.pipeline.filters.gopher_quality_filter import GopherQualityFilter
from datatrove.pipeline.filters.gopher_repetition_filter import (
    GopherRepetitionFilter,
    find_all_duplicate,
    find_duplicates,
    find_top_duplicate,
    get_n_grams,
)
from datatrove.utils.text import PUNCTUATION_SET
from datatrove.utils.word_tokenizers import WordTokenizer

from nextflow_data.config import C4Rules, FilterConfig, FineWebRules, GopherQualityRules, GopherRepetitionRules
from nextflow_data.decisions import Finding
from nextflow_data.rules.word_tokens import SharedTokenizer


@dataclass(frozen=True, slots=True)
class LineEdit:
    """A line that C4's rules took out (`after` None) or changed."""

    failure: Finding
    before: str
    after: str | None


class TextRules:
    """The filters of a FilterConfig, ready to judge texts. `tokenizer` is shared by all of them."""

    def __init__(self, config: FilterConfig, tokenizer: WordTokenizer | None = None) -> None:
        self.config = config
        self.tokenizer = tokenizer or SharedTokenizer("en")
        quality, repetition, c4, fineweb = config.quality, config.repetition, config.c4, config.fineweb
        self.repetition = repetition and GopherRepetitionFilter(**repetition.model_dump(), language=self.tokenizer)
        self.quality = quality and GopherQualityFilter(
            **quality.model_dump(exclude={"min_alpha_words_ratio"}),
            max_non_alpha_words_ratio=quality.min_alpha_words_ratio,
            language=self.tokenizer,
        )
        self.lines: C4QualityFilter | None = None if c4 is None else _c4_filter(c4, self.tokenizer)
        self.fineweb = fineweb and FineWebQualityFilter(**fineweb.model_dump(), language=self.tokenizer)

    def judge(self, text: str) -> tuple[Finding | None, list[LineEdit]]:
        """The first rule that `text` fails, or None and the lines that C4 would edit.

        Blocks of `text` are parted by an empty line. FineWeb's rules see what C4 leaves, one line a line, as in FineWeb.
        """
        if isinstance(self.tokenizer, SharedTokenizer):
            self.tokenizer.forget()
        if self.repetition and self.config.repetition:
            reason = _reason(self.repetition.filter(_document(text)))
            if reason is not None:
                return _repetition_failure(reason, text, self.config.repetition, self._words), []
        if self.quality and self.config.quality:
            reason = _reason(self.quality.filter(_document(text)))
            if reason is not None:
                return _quality_failure(reason, text, self.config.quality, self._words), []
        edits: list[LineEdit] = []
        kept = [line for line in (line.strip() for line in text.splitlines()) if line]
        if self.lines and self.config.c4:
            failure, kept, edits = self._judge_lines(kept, self.lines, self.config.c4)
            if failure is not None:
                return failure, []
        if self.fineweb and self.config.fineweb:
            rest = "\n".join(kept)
            reason = _reason(self.fineweb.filter(_document(rest)))
            if reason is not None:
                return _fineweb_failure(reason, rest, self.config.fineweb, self._words), []
        return None, edits

    def _words(self, text: str) -> list[str]:
        return self.tokenizer.word_tokenize(text)

    def _judge_lines(
        self, lines: list[str], block: C4QualityFilter, rules: C4Rules
    ) -> tuple[Finding | None, list[str], list[LineEdit]]:
        kept: list[str] = []
        edits: list[LineEdit] = []
        sentences = 0
        for line in lines:
            document = _document(line)
            before = _counts(block)
            reason = _reason(block.filter(document))
            if reason is not None:
                rule = "c4.lorem_ipsum" if reason == "lorem_ipsum" else "c4.curly_bracket"
                return Finding(rule, None, None, line[:200]), [], []
            fired = [name for name, number in _counts(block).items() if number > before[name]]
            dropped = next((name for name in fired if name.startswith("line-filter-")), None)
            if dropped is not None:
                edits.append(LineEdit(_line_failure(dropped, line, rules), line, None))
                continue
            if document.text != line:
                found = float(len(CITATION_REGEX.findall(line)))
                edits.append(LineEdit(Finding("c4.remove_citations", found, 0.0, line[:200]), line, document.text))
            if document.text:
                kept.append(document.text)
                sentences += len(self.tokenizer.span_tokenize(document.text)) if rules.min_sentences != -1 else 0
        if rules.min_sentences != -1 and sentences < rules.min_sentences:
            return Finding("c4.min_sentences", float(sentences), float(rules.min_sentences)), [], []
        return None, kept, edits


def _c4_filter(rules: C4Rules, tokenizer: WordTokenizer) -> C4QualityFilter:
    """C4's filter for single lines; sentences are counted over the document, by the same tokenizer, outside of it."""
    return C4QualityFilter(
        remove_citations=rules.remove_citations,
        filter_no_terminal_punct=rules.no_terminal_punctuation,
        min_num_sentences=-1,
        min_words_per_line=rules.min_words_per_line,
        max_word_length=rules.max_word_length,
        filter_lorem_ipsum=rules.lorem_ipsum,
        filter_javascript=rules.javascript,
        filter_curly_bracket=rules.curly_bracket,
        filter_policy=rules.policy,
        language=tokenizer,
    )


def _document(text: str) -> DatatroveDocument:
    return DatatroveDocument(text=text, id="")


def _reason(result: bool | tuple[bool, str]) -> str | None:
    """The name of the rule that failed, None where none did."""
    if isinstance(result, tuple):
        return None if result[0] else result[1]
    return None if result else "unnamed"


def _counts(block: C4QualityFilter) -> Counter[str]:
    return Counter({name: stat.total for name, stat in block.stats.stats.items() if name.startswith("line-filter-")})


def _line_failure(name: str, line: str, rules: C4Rules) -> Finding:
    words = line.split()
    detail = line[:200]
    match name.removeprefix("line-filter-"):
        case "too_long_word":
            return Finding("c4.max_word_length", float(max(map(len, words))), float(rules.max_word_length), detail)
        case "too_few_words":
            return Finding("c4.min_words_per_line", float(len(words)), float(rules.min_words_per_line), detail)
        case "no_terminal_punc":
            return Finding("c4.no_terminal_punctuation", None, None, detail)
        case other:
            return Finding(f"c4.{other}", None, None, detail)


Words = Callable[[str], list[str]]


def _quality_failure(reason: str, text: str, rules: GopherQualityRules, words_of: Words) -> Finding:
    words = words_of(text)
    lines = text.splitlines()
    plain = [w for w in words if any(ch not in PUNCTUATION_SET for ch in w)]
    match reason:
        case "gopher_short_doc":
            field, value = "min_doc_words", float(len(plain))
        case "gopher_long_doc":
            field, value = "max_doc_words", float(len(plain))
        case "gopher_below_avg_threshold":
            field, value = "min_avg_word_length", float(np.mean([len(w) for w in plain]))
        case "gopher_above_avg_threshold":
            field, value = "max_avg_word_length", float(np.mean([len(w) for w in plain]))
        case "gopher_too_many_hashes":
            field, value = "max_symbol_word_ratio", text.count("#") / len(words)
        case "gopher_too_many_ellipsis":
            field, value = "max_symbol_word_ratio", (text.count("...") + text.count("…")) / len(words)
        case "gopher_too_many_bullets":
            bullets = sum(line.lstrip().startswith(("•", "-")) for line in lines)
            field, value = "max_bullet_lines_ratio", bullets / len(lines)
        case "gopher_too_many_end_ellipsis":
            field, value = "max_ellipsis_lines_ratio", sum(s.rstrip().endswith(("...", "…")) for s in lines) / len(lines)
        case "gopher_below_alpha_threshold":
            field, value = "min_alpha_words_ratio", sum(any(c.isalpha() for c in w) for w in words) / len(words)
        case "gopher_enough_stop_words":
            stop_words = GopherQualityFilter().stop_words
            field, value = "min_stop_words", float(len(stop_words & set(words)))
        case _:
            return Finding(f"quality.{reason}", None, None)
    threshold = getattr(rules, field)
    return Finding(f"quality.{field}", value, float(threshold), reason)


def _repetition_failure(reason: str, text: str, rules: GopherRepetitionRules, words_of: Words) -> Finding:
    block = GopherRepetitionFilter()
    paragraphs = block.paragraph_exp.split(text.strip())
    lines = block._line_splitter.split(text)
    match reason:
        case "dup_para_frac":
            value = find_duplicates(paragraphs)[0] / len(paragraphs)
        case "dup_para_char_frac":
            value = find_duplicates(paragraphs)[1] / len(text)
        case "dup_line_frac":
            value = find_duplicates(lines)[0] / len(lines)
        case "dup_line_char_frac":
            value = find_duplicates(lines)[1] / len(text)
        case _ if reason.startswith("top_"):
            n = int(reason.split("_")[1])
            value = find_top_duplicate(get_n_grams(words_of(text), n)) / len(text)
            return Finding(f"repetition.top_n_grams.{n}", value, dict(rules.top_n_grams)[n])
        case _ if reason.startswith("duplicated_"):
            n = int(reason.split("_")[1])
            value = find_all_duplicate(words_of(text), n) / len(text)
            return Finding(f"repetition.dup_n_grams.{n}", value, dict(rules.dup_n_grams)[n])
        case _:
            return Finding(f"repetition.{reason}", None, None)
    return Finding(f"repetition.{reason}", value, getattr(rules, reason))


def _fineweb_failure(reason: str, text: str, rules: FineWebRules, words_of: Words) -> Finding:
    lines = [line for line in text.split("\n") if line.strip()]
    match reason:
        case "line_punct_ratio":
            stops = FineWebQualityFilter().stop_chars
            field, value = "line_punct_thr", sum(line.endswith(stops) for line in lines) / len(lines)
        case "short_line_ratio":
            short = sum(len(line) <= rules.short_line_length for line in lines)
            field, value = "short_line_thr", short / len(lines)
        case "char_dup_ratio":
            field, value = "char_duplicates_ratio", find_duplicates(lines)[1] / len(text.replace("\n", ""))
        case "list_ratio":
            field, value = "new_line_ratio", text.count("\n") / len(words_of(text))
        case _:
            return Finding("fineweb.empty", 0.0, None)
    return Finding(f"fineweb.{field}", value, getattr(rules, field))
