"""One model on every layout of processes: the same losses and gradient norms as one process has, in float32.

All layouts run one after the other in one group of four processes, which saves starting them anew, each for ten steps from
the initial weights, with a z-loss, on packs of text and images of several grids, lengths and numbers of scales. Every kind
of parallelism, alone and with others, is in the quick part; the slow one has the rest of the combinations.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from megatron_nextflow.config.loss import LossConfig
from megatron_nextflow.config.model import ParallelConfig
from megatron_nextflow.config.train import TrainConfig
from megatron_nextflow.loss_terms.z_loss import ZLoss

Config = Callable[..., TrainConfig]
STEPS = 10
TERMS = {"z_loss": ZLoss(weight=0.01)}

_PROGRAM = """
import json, sys, warnings
from pathlib import Path
from megatron_nextflow.runtime import device

def main():
    target = device.setup("cpu", 1)
    warnings.filterwarnings("ignore")
    import torch.distributed as dist
    from megatron.core import parallel_state
    from megatron_nextflow.config.train import TrainConfig
    from megatron_nextflow.feeding.feed import Feed, Share
    from megatron_nextflow.feeding.inputs import open_inputs
    from megatron_nextflow.step.process_groups import start_parallel, stop_parallel
    from megatron_nextflow.step.trainer import Trainer

    for text in Path(sys.argv[1]).read_text().splitlines():
        config = TrainConfig.model_validate_json(text)
        config.check(dist.get_world_size())
        start_parallel(config)
        source = open_inputs(config)
        trainer = Trainer(config, source.vocabulary, source.codebook, target)
        trainer.set_step(0)
        copies = parallel_state.get_data_parallel_world_size()
        feed = Feed(source.packs, config, source.vocabulary, Share(parallel_state.get_data_parallel_rank(), copies))
        rows = []
        for _ in range(config.steps):
            report, norm = trainer.step(feed.next_batch())
            rows.append({**vars(report), "norm": norm, "parameters": trainer.parameters})
        if dist.get_rank() == 0:
            config.output.write_text(json.dumps(rows))
    stop_parallel()
    dist.destroy_process_group()  # threads of gloo that outlive the interpreter can end it with SIGABRT

if __name__ == "__main__":
    main()
"""

_SEQUENCE = {"tp": 2, "sequence_parallel": True}
LAYOUTS: dict[str, dict[str, Any]] = {
    "dp4": {},
    "tp2 sp dp2": _SEQUENCE,
    "pp4": {"pp": 4},
    "tp2 pp2": {"tp": 2, "pp": 2},
    "pp2 vpp2 dp2": {"pp": 2, "vpp": 2},
    "tp2 sp pp2 vpp2": {**_SEQUENCE, "pp": 2, "vpp": 2},
    "cp2 dp2": {"cp": 2},
    "cp2 pp2 vpp2": {"cp": 2, "pp": 2, "vpp": 2},
}
SLOW: dict[str, dict[str, Any]] = {
    "tp2 dp2": {"tp": 2},
    "pp2 dp2": {"pp": 2},
    "tp2 sp pp2": {**_SEQUENCE, "pp": 2},
    "tp2 pp2 vpp2": {"tp": 2, "pp": 2, "vpp": 2},
    "cp4": {"cp": 4},
    "cp2 pp2": {"cp": 2, "pp": 2},
    "cp2 tp2 sp": {**_SEQUENCE, "cp": 2},
}
VARIANTS: dict[str, dict[str, Any]] = {
    "recompute": {"recompute": True, "parallel": ParallelConfig(pp=2, cp=2)},
    "overlap": {"parallel": ParallelConfig(overlap_grad_reduce=True)},
    "small chunks": {"loss": LossConfig(chunk=7, terms=TERMS), "parallel": ParallelConfig(tp=2, pp=2)},
    "alignment": {"trainable": "connector_and_head", "parallel": ParallelConfig(pp=4)},
}
SLOW_VARIANTS: dict[str, dict[str, Any]] = {
    "overlap vpp2": {"parallel": ParallelConfig(pp=2, vpp=2, overlap_grad_reduce=True)},
    "alignment cp2 tp2 sp": {"trainable": "connector_and_head", "parallel": ParallelConfig(**_SEQUENCE, cp=2)},
}


def _run(configs: list[TrainConfig], processes: int) -> dict[str, Any]:
    """The rows of each run, by name."""
    folder = configs[0].output.parent
    program, listed = folder / "program.py", folder / "configs.jsonl"
    program.write_text(_PROGRAM, encoding="utf-8")
    listed.write_text("\n".join(config.model_dump_json() for config in configs), encoding="utf-8")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TORCH_COMPILE_DISABLE": "1", "LOGLEVEL": "ERROR"}
    done = subprocess.run(
        [*command, str(program), str(listed)], env=environment, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return {config.output.stem: json.loads(config.output.read_text(encoding="utf-8")) for config in configs}


@pytest.fixture(scope="module")
def config(make_config: Config, training_data: Any, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """The run of a name; what it measured is written to the file `output`."""
    folder = tmp_path_factory.mktemp("layouts")
    given = {"steps": STEPS, "loss": LossConfig(terms=TERMS)}
    return lambda name, **settings: make_config(training_data, folder / f"{name}.json", **(given | settings))


@pytest.fixture(scope="module")
def one(config: Config) -> dict[str, Any]:
    """What one process measured: "one", "alignment", and "two packs a pass" where the others have one a pass."""
    packed = config("two packs a pass")
    packed = packed.model_copy(update={"data": packed.data.model_copy(update={"micro_batch_size": 2})})
    return _run([config("one"), config("alignment one", trainable="connector_and_head"), packed], 1)


@pytest.fixture(scope="module")
def rows(config: Config) -> dict[str, Any]:
    """What each layout and variant measured on four processes."""
    many = [config(name, parallel=ParallelConfig(**layout)) for name, layout in LAYOUTS.items()]
    return _run([*many, *(config(name, **settings) for name, settings in VARIANTS.items())], 4)


@pytest.fixture(scope="module")
def slow_rows(config: Config) -> dict[str, Any]:
    """As `rows`, of the slow part."""
    many = [config(name, parallel=ParallelConfig(**layout)) for name, layout in SLOW.items()]
    return _run([*many, *(config(name, **settings) for name, settings in SLOW_VARIANTS.items())], 4)


def _assert_equal(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    assert len(found) == len(expected) == STEPS
    for ours, theirs in zip(found, expected, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
        assert ours["norm"] == pytest.approx(theirs["norm"], rel=1e-5)
        assert ours["terms"] == pytest.approx(theirs["terms"], rel=1e-5)
        assert sum(ours["terms"].values()) == pytest.approx(ours["loss"], rel=1e-6) and ours["terms"]["z_loss"] > 0
        assert ours["by_kind"] == pytest.approx(theirs["by_kind"], rel=1e-4)
        for name in ("tokens", "labels", "pairs", "parameters"):
            assert ours[name] == theirs[name]


@pytest.mark.parametrize("name", [*LAYOUTS, "recompute", "overlap", "small chunks"])
def test_every_layout_equals_one_process(name: str, rows: dict[str, Any], one: dict[str, Any]) -> None:
    _assert_equal(rows[name], one["one"])


@pytest.mark.slow
@pytest.mark.parametrize("name", [*SLOW, "overlap vpp2"])
def test_the_other_layouts_do_too(name: str, slow_rows: dict[str, Any], one: dict[str, Any]) -> None:
    _assert_equal(slow_rows[name], one["one"])


def test_two_packs_a_pass_are_one_a_pass(one: dict[str, Any]) -> None:
    _assert_equal(one["two packs a pass"], one["one"])


def test_alignment_on_four_stages_equals_one_process(rows: dict[str, Any], one: dict[str, Any]) -> None:
    """Two of the stages have nothing to learn."""
    _assert_equal(rows["alignment"], one["alignment one"])
    assert rows["alignment"][0]["parameters"] < one["one"][0]["parameters"] / 4


@pytest.mark.slow
def test_alignment_on_parts_of_the_sequence_equals_one_process(slow_rows: dict[str, Any], one: dict[str, Any]) -> None:
    """Of what is frozen some would be added up over the parts."""
    _assert_equal(slow_rows["alignment cp2 tp2 sp"], one["alignment one"])


def test_there_is_something_to_compare(one: dict[str, Any]) -> None:
    """The comparisons would also pass for a model that does not learn, or for packs of one length and no images."""
    plain = one["one"]
    assert plain[-1]["loss"] < plain[0]["loss"] - 0.3
    assert len({row["tokens"] for row in plain}) > 5
    assert {"text", "image/1", "image/4"} <= {kind for row in plain for kind in row["by_kind"]}
