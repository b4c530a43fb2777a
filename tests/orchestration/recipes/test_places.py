"""Where a run lies, and what is refused of its places before any work."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from nextflow_data.storage.config import StorageConfig
from nextflow_data.storage.store_path import StorePath
from nextflow_orchestration.recipes.errors import RecipeError
from nextflow_orchestration.recipes.places import shown, work_of
from nextflow_orchestration.recipes.printed import printed
from nextflow_orchestration.recipes.run import Recipe, load_recipe


def load(folder: Path, text: str, *overrides: str) -> Recipe:
    path = folder / "r.yaml"
    path.write_text(text)
    return load_recipe(path, list(overrides))


def refused(folder: Path, text: str, *overrides: str) -> str:
    with pytest.raises(RecipeError) as caught:
        load(folder, text, *overrides).check_inputs()
    return str(caught.value)


def test_a_relative_root_counts_from_where_the_recipe_was_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = load(tmp_path, "name: a\nroot: runs/a\ninput: sample\n")
    monkeypatch.chdir("/")
    assert recipe.root == recipe.working == tmp_path / "runs" / "a"
    assert shown(recipe.root) == str(tmp_path / "runs" / "a").removeprefix("/")
    elsewhere = load(tmp_path, f"name: a\nroot: {tmp_path}/r\nwork: {tmp_path}/w\ninput: sample\n")
    assert (elsewhere.root, elsewhere.working) == (tmp_path / "r", tmp_path / "w")


def test_a_root_in_a_store_is_reached_by_the_recipes_settings_and_runs_beside_it(tmp_path: Path) -> None:
    text = "name: a\nroot: s3://bucket/some/run/\nstorage: {s3: {endpoint: 'http://127.0.0.1:9'}}\ninput: sample\n"
    recipe = load(tmp_path, text)
    assert isinstance(recipe.root, StorePath) and str(recipe.root) == shown(recipe.root) == "s3://bucket/some/run"
    assert recipe.root.config.s3.endpoint == "http://127.0.0.1:9"
    # The same folder, whatever the recipe is called and however its store is reached: it is found from the address.
    plain = StorePath("s3://bucket/some/run", StorageConfig())
    assert recipe.working == work_of(plain) and recipe.working.parent == Path("runs").absolute()
    assert work_of(StorePath("s3://other/some/run")) != recipe.working
    assert load(tmp_path, printed(recipe)) == recipe
    assert yaml.safe_load(printed(recipe))["root"] == "s3://bucket/some/run"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("root: gs://bucket/run", "r.yaml:2: root: a run cannot be written to gs://"),
        ("root: https://host/run", "r.yaml:2: root: a run cannot be written to https://"),
        ("root: 7", "r.yaml:2: root: write a folder's path or an s3:// address"),
        ("root: 's3://'", "r.yaml:2: root: "),
        ("root: r\nstorage: {s3: {endpoint: 'http://me:rosebud@host'}}", "r.yaml:3: storage.s3.endpoint: an address with a"),
        ("root: r\nstorage: {s3: {endpiont: x}}", "did you mean 'endpoint'?"),
    ],
)
def test_places_that_cannot_be(tmp_path: Path, line: str, message: str) -> None:
    said = refused(tmp_path, f"name: a\n{line}\ninput: sample\n")
    assert message in said and "rosebud" not in said


def test_a_password_on_the_command_line_is_refused_and_not_repeated(tmp_path: Path) -> None:
    said = refused(tmp_path, "name: a\nroot: r\ninput: sample\n", "input=[https://me:rosebud@host/a.warc.gz]")
    assert said.startswith("--set: input.0: ") and "rosebud" not in said


def test_inputs_in_a_store_are_told_with_their_line_before_any_work(
    s3_root: StorePath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nextflow_data.storage.files import put

    put(s3_root / "a b ☃.warc.gz", b"x")
    endpoint = s3_root.config.s3.endpoint
    head = f"name: a\nroot: {tmp_path}/r\nstorage: {{s3: {{endpoint: '{endpoint}', attempts: 1}}}}\ninput:\n"
    load(tmp_path, f"{head}- {s3_root}/a b ☃.warc.gz\n").check_inputs()
    said = refused(tmp_path, f"{head}- {s3_root}/gone/a.warc.gz\n- s3://no-such-bucket/b.warc.gz\n").splitlines()
    assert len(said) == 2
    assert "r.yaml:5: input file not found: " in said[0] and "correct `input`" in said[0]
    assert "r.yaml:6: " in said[1] and "there is no bucket no-such-bucket" in said[1]
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong-secret-4712")
    other = head.replace("attempts: 1", "attempts: 2")  # another client, which reads the environment anew
    said = refused(tmp_path, f"{other}- {s3_root}/a b ☃.warc.gz\n").splitlines()
    assert len(said) == 1 and "r.yaml:5: " in said[0] and "the secret does not belong" in said[0]
    assert "4712" not in said[0]


def test_a_root_that_may_not_be_written_to_is_told_before_any_work(
    s3_root: StorePath, s3_server: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in s3_server.environment("part").items():  # type: ignore[attr-defined]
        monkeypatch.setenv(name, value)
    head = f"name: a\nstorage: {{s3: {{endpoint: '{s3_root.config.s3.endpoint}', attempts: 3}}}}\ninput: sample\n"
    said = refused(tmp_path, f"{head}root: s3://{s3_server.bucket}/closed/run\n")  # type: ignore[attr-defined]
    assert "r.yaml:4: " in said and "s3:PutObject" in said
    load(tmp_path, f"{head}root: {s3_root.parent.parent}/open/run\n").check_inputs()
