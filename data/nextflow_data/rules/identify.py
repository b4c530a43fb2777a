"""Which language a text is in: py3langid, whose model ships in its package, so nothing is downloaded.

Chosen over lingua for its speed (three times) at the same accuracy on technical English; what it costs is a probability that
is calibrated only roughly. Only the first part of a text is read: its language does not change with its length.
"""

from __future__ import annotations

from functools import lru_cache

from py3langid.langid import MODEL_FILE, LanguageIdentifier

MAX_CHARACTERS = 20_000
"""Characters read of a text; our choice."""


@lru_cache(maxsize=1)
def _identifier() -> LanguageIdentifier:
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def identify(text: str) -> tuple[str, float]:
    """(ISO 639-1 code, normalised probability 0…1) of the language of `text`."""
    language, probability = _identifier().classify(text[:MAX_CHARACTERS])
    return language, round(float(probability), 6)
