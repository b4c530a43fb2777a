"""Training in a run goes on from its last checkpoint, and ends in the bytes of a run that was never stopped."""

from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

import pytest
from bound import bind_sources
from nextflow_pipelines.registry import run_stage
from nextflow_pipelines.spark.context import RunContext, StageResult
from nextflow_tokenize.vision.training import checkpoints as training_state


def test_a_stopped_training_goes_on_from_its_checkpoint(
    results: Mapping[str, StageResult], chain: ModuleType, warc: Path, tmp_path: Path
) -> None:
    config = chain.SECTIONS["vision_tokenizer"]
    training = config.training.model_copy(update={"steps": 24, "checkpoint_interval": 10})
    sections = {**chain.SECTIONS, "vision_tokenizer": config.model_copy(update={"training": training})}
    seen: list[int] = []

    def stop(done: int, total: int | None, note: str) -> None:
        if note.startswith("training"):
            seen.append(done)
            if done == 20 and len(seen) == 2:
                raise KeyboardInterrupt

    roots = {name: tmp_path / name for name in ("stopped", "whole")}
    for root in roots.values():
        bind_sources(root, [warc])
    with pytest.raises(KeyboardInterrupt):
        run_stage("vision_tokenizer", RunContext(roots["stopped"], progress=stop), sections, results)
    (folder,) = roots["stopped"].glob("vision_tokenizer-*/_work/training")
    assert [path.name for path in training_state.found(folder)] == ["checkpoint-00000020.pt", "checkpoint-00000010.pt"]
    again = run_stage("vision_tokenizer", RunContext(roots["stopped"], progress=stop), sections, results)
    assert seen == [10, 20, 24]
    whole = run_stage("vision_tokenizer", RunContext(roots["whole"]), sections, results)
    files = [sorted((path.relative_to(r.dir), path.read_bytes()) for path in r.dir.rglob("*") if path.is_file())
             for r in (again, whole)]  # fmt: skip
    assert files[0] == files[1]
    assert not folder.exists()
