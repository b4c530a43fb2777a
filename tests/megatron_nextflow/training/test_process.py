"""What the training program refuses, how it says so, and how it ends."""

from __future__ import annotations

import faulthandler
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from nextflow_tokenize.config.pack import PackConfig
from nextflow_tokenize.shards.reader import ShardSet
from nextflow_tokenize.shards.writer import write_manifest

from megatron_nextflow import train
from megatron_nextflow.checkpoint.save import SaveError
from megatron_nextflow.config.train import OptimizerConfig, TrainConfig
from megatron_nextflow.feeding import inputs
from megatron_nextflow.feeding.ahead import FeedAhead
from megatron_nextflow.feeding.feed import FeedError
from megatron_nextflow.feeding.inputs import InputError
from megatron_nextflow.launching.exit_status import STATUS_FILE
from megatron_nextflow.runtime import training_folder
from megatron_nextflow.runtime.stop_request import Stop
from megatron_nextflow.step.trainer import DivergedError, Trainer
from megatron_nextflow.training import loop, process
from megatron_nextflow.training.agreed_batch import UnreadableError
from megatron_nextflow.watch.heartbeat import read_heartbeat
from megatron_nextflow.watch.rank_log import log_path, open_log
from megatron_nextflow.watch.reporter import read_events, read_metrics

Config = Callable[..., TrainConfig]
Program = Callable[[TrainConfig], int]
CPU = torch.device("cpu")


@pytest.fixture
def data(training_data: Any, tmp_path: Path) -> Any:
    """A copy to damage."""
    copy = tmp_path / "data"
    shutil.copytree(training_data.shards.parent, copy)
    return type(training_data)(copy / "shards", copy / "vision")


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> Iterator[Program]:
    """The training program in this process, whose group and logging are left as they were."""
    monkeypatch.setattr(dist, "destroy_process_group", lambda *group: None)
    monkeypatch.setattr(process, "_die_with_parents", lambda: None)
    root, interrupt = logging.getLogger(), signal.getsignal(signal.SIGINT)
    handlers, hooks, level = root.handlers[:], (sys.excepthook, threading.excepthook), root.level

    def run(config: TrainConfig) -> int:
        file = config.output.parent / "train.json"
        file.write_text(config.model_dump_json(), encoding="utf-8")
        return train.main(["--config", str(file)])

    yield run
    root.handlers[:], (sys.excepthook, threading.excepthook) = handlers, hooks
    root.setLevel(level)
    logging.captureWarnings(False)
    logging.raiseExceptions = True
    signal.signal(signal.SIGINT, interrupt)
    faulthandler.enable()


def _flip(file: Path, place: int) -> None:
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)


def test_a_shard_with_one_flipped_byte_is_refused_where_all_are_hashed(
    data: Any, make_config: Config, tmp_path: Path
) -> None:
    shard = sorted(data.shards.glob("*.tar"))[-1]
    _flip(shard, shard.stat().st_size // 2)
    config = make_config(data, tmp_path / "run")
    config = config.model_copy(update={"data": config.data.model_copy(update={"verify": True})})
    with pytest.raises(InputError, match=rf"{shard.name} was changed after it was written.*mnf audit"):
        loop.train(config, CPU)
    assert not (tmp_path / "run").exists()


def test_another_tokenizer_than_the_shards_is_refused(data: Any, make_config: Config, tmp_path: Path) -> None:
    _flip(data.vision_tokenizer / "weights.safetensors", -1)
    with pytest.raises(InputError, match=r"was made with the vision tokenizer .*name the tokenizer that made the shards"):
        loop.train(make_config(data, tmp_path / "run"), CPU)
    config = make_config(data, tmp_path / "run")
    without = config.model_copy(update={"data": config.data.model_copy(update={"vision_tokenizer": None})})
    with pytest.raises(InputError, match=r"data\.vision_tokenizer is not set"):
        loop.train(without, CPU)


def test_a_model_shorter_than_the_packs_is_refused(data: Any, make_config: Config, tmp_path: Path) -> None:
    config = make_config(data, tmp_path / "run")
    short = config.model_copy(update={"model": config.model.model_copy(update={"max_length": 100})})
    with pytest.raises(InputError, match=r"packed for 192 slots, model\.max_length is 100"):
        loop.train(short, CPU)


def test_a_loss_that_is_no_number_stops_the_run_before_the_update(
    data: Any, make_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.Tensor] = []
    build = Trainer.__init__

    def poisoned(self: Trainer, *args: Any, **settings: Any) -> None:
        build(self, *args, **settings)
        seen.append(self.model.output_layer.weight)
        with torch.no_grad():
            self.model.decoder.final_layernorm.weight[0] = torch.nan
        self.optimizer.reload_model_params()

    monkeypatch.setattr(Trainer, "__init__", poisoned)
    with pytest.raises(DivergedError, match="not a finite number"):
        loop.train(make_config(data, tmp_path / "run"), CPU)
    assert seen[0].isfinite().all()
    assert not list((tmp_path / "run").glob("checkpoints/step-*"))


def test_fewer_packs_than_a_step_takes_are_told(training_data: Any, make_config: Config, tmp_path: Path) -> None:
    config = make_config(training_data, tmp_path / "run", steps=1, optimizer=OptimizerConfig(warmup_steps=0))
    packs = len(ShardSet.open(str(training_data.shards)))
    many = config.data.model_copy(update={"global_batch_size": packs + 1})
    loop.train(config.model_copy(update={"data": many}), CPU)
    first = read_events(config.output)[0]
    assert first["kind"] == "repeats"
    assert f"fewer packs ({packs}) than a step takes (data.global_batch_size {packs + 1})" in first["message"]
    assert not config.data.repeats(packs) and not many.repeats(packs + 1)


def test_a_shard_set_without_packs_is_refused(data: Any, make_config: Config, tmp_path: Path) -> None:
    made = ShardSet.open(str(data.shards)).manifest
    shutil.rmtree(data.shards)
    tokenizers = {"text_tokenizer": made.text_tokenizer, "vision_tokenizer": made.vision_tokenizer}
    write_manifest(data.shards, [], config=PackConfig(max_length=192), parents={}, **tokenizers)
    with pytest.raises(InputError, match="holds no packs; there is nothing to train on"):
        loop.train(make_config(data, tmp_path / "run"), CPU)
    assert not (tmp_path / "run").exists()


def test_a_stop_signal_saves_and_ends_with_0(
    data: Any, make_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: Program
) -> None:
    give = FeedAhead.next_batch

    def interrupted(self: FeedAhead) -> Any:
        if self.consumed == 8:
            os.kill(os.getpid(), signal.SIGTERM)
        return give(self)

    monkeypatch.setattr(FeedAhead, "next_batch", interrupted)
    config = make_config(data, tmp_path / "run", steps=100_000, log_interval=2)
    assert program(config) == 0
    saved = training_folder.latest(config.output)
    assert saved is not None and saved.name == "step-00000003"
    assert [row["step"] for row in read_metrics(config.output)] == [2]
    assert [event["kind"] for event in read_events(config.output)] == ["saved", "stop"]
    heartbeat = read_heartbeat(config.output)
    assert heartbeat is not None and (heartbeat["state"], heartbeat["step"]) == ("stopped", 3)


def test_a_signal_before_the_first_step_waits_for_no_step(
    data: Any, make_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: Program
) -> None:
    """And one while inputs are verified and weights are loaded is not even caught: it ends the process."""
    handlers: list[Any] = []
    open_inputs, enter = inputs.open_inputs, Stop.__enter__

    def opened(config: TrainConfig) -> inputs.Inputs:
        handlers.append(signal.getsignal(signal.SIGTERM))
        return open_inputs(config)

    def entered(self: Stop) -> Stop:
        stop = enter(self)
        os.kill(os.getpid(), signal.SIGTERM)
        return stop

    monkeypatch.setattr(inputs, "open_inputs", opened)
    monkeypatch.setattr(Stop, "__enter__", entered)
    config = make_config(data, tmp_path / "run")
    assert program(config) == 0
    assert handlers == [signal.SIG_DFL]
    assert read_metrics(config.output) == [] and training_folder.latest(config.output) is None
    assert [event["kind"] for event in read_events(config.output)] == ["stop"]


@pytest.mark.parametrize(
    ("error", "begun", "status", "words"),
    [
        (
            RuntimeError("a kernel failed"),
            False,
            1,
            "rank 0 failed: RuntimeError: a kernel failed; its traceback is in {log}",
        ),
        (OSError(28, "No space left on device"), True, 1, "rank 0 failed: [Errno 28] No space left on device"),
        (SaveError("checkpoint step-00000002 could not be saved"), True, 1, "checkpoint step-00000002 could not be saved"),
        (UnreadableError("rank 1 cannot read /shards: gone"), True, 1, "train: rank 1 cannot read /shards: gone"),
        (FeedError("pack 7: an image has 9 scales"), False, 2, "train: pack 7: an image has 9 scales"),
        (FeedError("pack 7: no"), True, 1, "rank 0 failed: pack 7: no; its traceback is in {log}; there is no checkpoint"),
        (ValueError("axes don't match"), True, 1, "rank 0 failed: ValueError: axes don't match; its traceback is in {log}"),
        (DivergedError("step 3: the loss is not a finite number"), True, 3, "step 3: the loss is not a finite number"),
    ],
)
def test_the_status_says_what_kind_of_end_it_was(
    error: Exception,
    begun: bool,
    status: int,
    words: str,
    data: Any,
    make_config: Config,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    program: Program,
) -> None:
    """A refusal is what is known before the first step; a ValueError after it is somebody's bug."""

    def fail() -> None:
        raise error

    prepared = SimpleNamespace(begun=begun, run=fail)
    monkeypatch.setattr(loop, "prepare", lambda *args: prepared)
    monkeypatch.setenv(STATUS_FILE, str(tmp_path / "status"))
    config = make_config(data, tmp_path / "run")
    assert program(config) == status
    assert (tmp_path / "status").read_text(encoding="utf-8") == f"{status}\n"
    log = log_path(config.output, 0)
    said = capfd.readouterr().err
    assert said.count("\n") == 1 and words.format(log=log) in said
    assert f"{type(error).__name__}: " in log.read_text(encoding="utf-8")
    assert program(config) == status and capfd.readouterr().err == ""  # said once, by whoever was first
    monkeypatch.setenv(STATUS_FILE, str(tmp_path / "gone" / "status"))
    assert program(config) == status and words.format(log=log) in capfd.readouterr().err


def test_an_error_of_the_first_step_is_no_refusal(
    data: Any, make_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: Program
) -> None:
    def wrong(self: Trainer, batches: Any) -> Any:
        raise ValueError("too many values to unpack")

    monkeypatch.setattr(Trainer, "gradients", wrong)
    assert program(make_config(data, tmp_path / "run")) == 1


def test_a_log_has_what_nobody_caught(tmp_path: Path, program: Program) -> None:
    """`program` puts the process's logging back."""
    for _ in range(2):
        path = open_log(tmp_path, 7)

    def reader() -> None:
        raise RuntimeError("the disk went away")

    thread = threading.Thread(target=reader)
    thread.start()
    thread.join()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("something is odd", stacklevel=1)
    text = path.read_text(encoding="utf-8")
    assert path.name == "rank-00007.log" and text.count(f"pid {os.getpid()}") == 2
    assert "in reader" in text and "RuntimeError: the disk went away" in text and "something is odd" in text


def test_the_program_says_why_in_one_line(data: Any, make_config: Config, tmp_path: Path) -> None:
    _flip(data.shards / "manifest.json", 300)
    config = tmp_path / "train.json"
    config.write_text(make_config(data, tmp_path / "run").model_dump_json(), encoding="utf-8")
    done = _run(config)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("train: ") and "manifest.json" in done.stderr


def test_a_configuration_that_cannot_work_never_loads_torch(tmp_path: Path) -> None:
    config = tmp_path / "train.json"
    config.write_text('{"parallel": {"tp": 3}, "stepz": 1}', encoding="utf-8")
    done = _run(config)
    assert done.returncode == 2
    assert "stepz" in done.stderr


def _run(config: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "megatron_nextflow.train", "--config", str(config)]
    return subprocess.run(command, capture_output=True, text=True, timeout=240)
