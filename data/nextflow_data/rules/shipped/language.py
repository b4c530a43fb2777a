"""language: which language a text is in, and whether it is one that is wanted."""

from __future__ import annotations

from pydantic import Field

from nextflow_data.common.section import Section
from nextflow_data.document import Document
from nextflow_data.rules.rule import TextRule, Verdict, rule


class LanguageRules(Section):
    """Language identification with py3langid, whose model ships in its package."""

    allowed: tuple[str, ...] = ("en",)
    """ISO 639-1 codes that are kept; empty keeps all."""
    min_probability: float = Field(default=0.3, ge=0, le=1)
    """Smallest normalised probability of the best of some 97 languages; ours: lists of names in English lie at 0.3–0.5."""


@rule
class Language(TextRule[LanguageRules]):
    """The document's language is told to the rules after this one."""

    name = "language"
    Config = LanguageRules
    words = {
        "allowed": "the text is not in a language that is kept",
        "min_probability": "the text's language is too uncertain",
    }

    def judge(self, text: str, document: Document) -> Verdict:
        from nextflow_data.rules.identify import identify

        language, probability = identify(text)
        allowed = self.config.allowed
        if allowed and language not in allowed:
            return Verdict(self.found("allowed", probability, f"{language}, allowed: {', '.join(allowed)}"))
        if probability < self.config.min_probability:
            return Verdict(self.found("min_probability", probability, language))
        return Verdict(language=language)
