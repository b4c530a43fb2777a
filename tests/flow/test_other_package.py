"""A package of somebody else adds a rule and a captioner: installed beside ours, a recipe that names them runs them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from nextflow_pipelines.contract.stage import find_committed
from nextflow_pipelines.contract.tables import read_table

CODE = '''
from nextflow_data.captioners.captioner import Caption, Captioner, captioner
from nextflow_data.rules.rule import TextRule, Verdict, rule
from nextflow_data.common.section import Section
from pydantic import Field


class TopicRules(Section):
    """Which topics are wanted."""

    unwanted: str = Field(default="Topic 0", min_length=1)
    """A text that begins so is dropped."""


@rule
class Topic(TextRule[TopicRules]):
    name = "topic"
    Config = TopicRules
    words = {"unwanted": "it is about a topic that nobody wants"}

    def judge(self, text, document):
        return Verdict(self.found("unwanted", detail=text[:20])) if text.startswith(self.config.unwanted) else Verdict()


class SizeConfig(Section):
    """How a size is said."""

    unit: str = "bytes"
    """What they are called."""


@captioner
class Size(Captioner[SizeConfig]):
    name = "size"
    version = "7"
    Config = SizeConfig

    def caption(self, batch):
        return [Caption(f"{len(self.load(request.image))} {self.config.unit}", "counted") for request in batch]
'''
ENTRY_POINTS = "[nextflow.rules]\ntopic = tiny_topics:Topic\n\n[nextflow.captioners]\nsize = tiny_topics:Size\n"
META = {
    "METADATA": "Metadata-Version: 2.1\nName: tiny-topics\nVersion: 1.0\n",
    "WHEEL": "Wheel-Version: 1.0\nGenerator: by-hand\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    "entry_points.txt": ENTRY_POINTS,
}


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where pip has put the package, from a wheel; nothing of this environment is touched."""
    folder = tmp_path_factory.mktemp("package")
    wheel, place = folder / "tiny_topics-1.0-py3-none-any.whl", folder / "site"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("tiny_topics.py", CODE)
        for name, text in META.items():
            archive.writestr(f"tiny_topics-1.0.dist-info/{name}", text)
        names = ["tiny_topics.py", *(f"tiny_topics-1.0.dist-info/{name}" for name in (*META, "RECORD"))]
        archive.writestr("tiny_topics-1.0.dist-info/RECORD", "".join(f"{name},,\n" for name in names))
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-compile"]
    subprocess.run([*pip, "--disable-pip-version-check", "--target", str(place), str(wheel)], check=True)
    return place


def mnf(home: Path, installed: Path | None, *arguments: str) -> subprocess.CompletedProcess[str]:
    paths = [str(installed)] if installed else []
    paths += [os.environ["PYTHONPATH"]] if "PYTHONPATH" in os.environ else []
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "PREFECT_HOME": str(home)}
    command = [sys.executable, "-c", "from nextflow_orchestration.cli import main; main()", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400)


@pytest.mark.slow
def test_a_recipe_with_its_rule_and_its_captioner_runs(
    prefect_home: Path, installed: Path, small_warc: Path, tmp_path: Path
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"name: topics\nroot: {tmp_path / 'run'}\ninput: {small_warc}\nspark: {{files: 2}}\n"
        "filter:\n  rules: [topic, document]\n  topic: {unwanted: Topic 3}\n"
        "caption: {captioner: size, unit: octets, batch_images: 4}\n"
    )
    shown = mnf(prefect_home, installed, "recipe", str(recipe))
    assert shown.returncode == 0 and "# A text that begins so is dropped." in shown.stdout, shown.stderr
    ran = mnf(prefect_home, installed, "run", str(recipe), "--to", "caption")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    (kept,) = find_committed(tmp_path / "run", "caption")
    rows = read_table(kept, "documents").to_pylist()
    images = [node["image"] for row in rows for node in row["nodes"] if node["image"]]
    assert len(rows) == len(images) == 9
    assert all(image["caption"].endswith(" octets") and image["captioner"] == "size/7:counted" for image in images)
    (judged,) = find_committed(tmp_path / "run", "filter")
    (drop,) = read_table(judged, "decisions").to_pylist()
    assert (drop["rule"], drop["scope"], drop["action"]) == ("topic.unwanted", "document", "drop")
    told = mnf(prefect_home, installed, "explain", "https://docs.example/3.html", "--root", str(tmp_path / "run"))
    assert "it is about a topic that nobody wants" in " ".join(told.stdout.split())
    # The stages name the rule and the captioner in what identifies them.
    parameters = json.loads((judged / "manifest.json").read_text())["parameters"]
    assert parameters["filter"]["rules"][0] == ["topic", 1, {"unwanted": "Topic 3"}]


def test_without_the_package_the_recipe_is_refused_with_what_there_is(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"name: topics\nroot: {tmp_path}\ninput: sample\nfilter: {{rules: [topic]}}\ncaption: {{captioner: sise}}\n"
    )
    refused = mnf(tmp_path, None, "run", str(recipe), "--to", "caption")
    assert refused.returncode == 2
    assert f"{recipe}:4: filter.rules.0: there is no rule 'topic'; known: c4, document, fineweb" in refused.stderr
    assert f"{recipe}:5: caption.captioner: there is no captioner 'sise'" in refused.stderr
