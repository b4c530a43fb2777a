"""Scorers by name and by file; what is wrong with one is told before any work."""

from __future__ import annotations

from pathlib import Path

import pytest
from nextflow_data.scorers.config import ScorerConfig
from nextflow_data.scorers.loading import ScorerUnusable, find, scorers
from nextflow_data.scorers.scoring import open_way
from pydantic import ValidationError

_WITH_SETTINGS = """
from nextflow_data.common.section import Section, operational
class Scorer:
    class Config(Section):
        level: int = 3
        batch: int = operational(8)
    def __init__(self, config): self.config = config
    def score(self, **asked): return {"score": self.config.level}
"""


def test_names_and_identities(tmp_path: Path) -> None:
    assert {"sharpness", "changed_share"} <= set(scorers.names())
    usual, other = find("changed_share", {}).description, find("changed_share", {"threshold": 9}).description
    assert usual["settings"] == {"threshold": 24, "max_side": 512} and other["settings"]["threshold"] == 9
    assert usual["identity"] != other["identity"] and usual["version"] == other["version"] == "1"
    file = tmp_path / "mine.py"
    file.write_text(_WITH_SETTINGS)
    first = find(str(file), {})
    assert first.make()()["score"] == 3 and first.description["scorer"] == "mine.py"
    assert find(str(file), {"level": 3, "batch": 2}).description == first.description, "how fast is not what"
    file.write_text(_WITH_SETTINGS + "\n")
    assert find(str(file), {}).description["identity"] != first.description["identity"], "an edited file is another version"
    file.write_text(_WITH_SETTINGS + '\nVERSION = "2"\nDEVICES = "gpu"\n')
    assert {"version": "2", "devices": "gpu"}.items() <= find(str(file), {}).description.items()


@pytest.mark.parametrize(
    ("scorer", "settings", "why"),
    [
        ("sharpnes", {}, "did you mean 'sharpness'"),
        ("sharpness", {"level": 1}, "has no settings; given: level"),
        ("changed_share", {"treshold": 1}, "treshold"),
        ("changed_share", {"threshold": -1}, "threshold"),
        ("nowhere.py", {}, "there is no file nowhere.py"),
        ("x = ", {}, "cannot be loaded: SyntaxError"),
        ("x = 1", {}, "neither a function `score` nor a class `Scorer`"),
        ("def score(image, text): ...", {}, "cannot be made: TypeError"),
        ("class Scorer:\n    def __init__(self): raise OSError('no weights')", {}, "cannot be made: OSError: no weights"),
        ("score = 3", {}, "cannot be made"),
    ],
)
def test_what_cannot_be_used(scorer: str, settings: dict[str, int], why: str, tmp_path: Path) -> None:
    if " " in scorer:
        file = tmp_path / "mine.py"
        file.write_text(scorer)
        scorer = str(file)
    with pytest.raises(ScorerUnusable, match=why):
        open_way(ScorerConfig(scorer=scorer, settings=settings))


def test_what_cannot_be_used_in_a_pool(tmp_path: Path) -> None:
    """Said by its process, in the same words; and one that dies while it is made."""
    with pytest.raises(ScorerUnusable, match="did you mean 'sharpness'"):
        open_way(ScorerConfig(scorer="sharpnes", way="pool", workers=1))
    file = tmp_path / "mine.py"
    file.write_text("import os\nos._exit(9)\n")
    with pytest.raises(ScorerUnusable, match=r"mine\.py could not be made: its process ended with status 9"):
        open_way(ScorerConfig(scorer=str(file), way="pool", workers=1))
    with pytest.raises(ScorerUnusable, match="its version is 1, not 2"):
        open_way(ScorerConfig(scorer="sharpness", version="2"))


def test_sections() -> None:
    for wrong in (
        {"way": "server"},
        {"servers": ["http://x"]},
        {"way": "server", "servers": ["localhost:80"]},
        {"weight": float("nan")},
    ):
        with pytest.raises(ValidationError):
            ScorerConfig.model_validate({"scorer": "sharpness", **wrong})
    served = ScorerConfig(scorer="sharpness", way="server", servers=("http://x",), timeout_s=1)
    assert served.deciding() == ScorerConfig(scorer="sharpness").deciding()
