"""Bad losses and bad packs: when one is seen, and what real trainings then do with weights, data and checkpoints.

Bad losses are made where they come from: the loss weights of the batch at a place of the order are multiplied, so that loss
and gradients pass through everything that follows.
"""

from __future__ import annotations

import math
import shutil
import statistics
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nextflow_tokenize.shards.reader import ShardSet

from megatron_nextflow.checkpoint.format import read_manifest
from megatron_nextflow.config.health import HealthConfig
from megatron_nextflow.config.train import TrainConfig
from megatron_nextflow.feeding.feed import Feed, FeedError
from megatron_nextflow.feeding.order import shuffled
from megatron_nextflow.runtime import training_folder
from megatron_nextflow.sequence.batch import LayoutBatch
from megatron_nextflow.step.trainer import DivergedError, Trainer
from megatron_nextflow.training import loop
from megatron_nextflow.training.agreed_batch import UnreadableError
from megatron_nextflow.watch.health import Health
from megatron_nextflow.watch.heartbeat import read_heartbeat
from megatron_nextflow.watch.reporter import read_events, read_metrics

Config = Callable[..., TrainConfig]
CPU = torch.device("cpu")


def _seen(config: HealthConfig, losses: list[float]) -> Health:
    health = Health(config)
    for loss in losses:
        health.accept(loss)
    return health


def test_a_spike_is_above_a_multiple_of_the_median() -> None:
    """Of 1, 2, 3, 100 the median is 2.5, and 2 × 2.5 = 5 is no spike yet."""
    health = _seen(HealthConfig(spike="skip", spike_window=4, spike_factor=2.0), [50.0, 1.0, 2.0, 3.0, 100.0])
    assert health.of_loss(5.0, 0) is None
    found = health.of_loss(5.01, 0)
    assert found is not None
    assert (found.kind, found.action, found.median) == ("spike", "skip", 2.5)
    assert "5.01 is above 2 × 2.5" in found.reason


def test_no_spike_before_the_window_is_full_or_when_off() -> None:
    config = HealthConfig(spike="warn", spike_window=4)
    assert _seen(config, [1.0] * 3).of_loss(100.0, 0) is None
    assert _seen(config, [1.0] * 4).of_loss(100.0, 0) is not None
    assert _seen(config.model_copy(update={"spike": "off"}), [1.0] * 9).of_loss(100.0, 0) is None
    assert Health(config, [1.0] * 4).of_loss(100.0, 0) is not None  # a checkpoint's window


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_no_number_is_found_in_loss_and_norm(value: float) -> None:
    health = Health(HealthConfig(nan="skip", spike="off"))
    for found in (health.of_loss(value, 7), health.of_norm(value, 7)):
        assert found is not None and (found.kind, found.action) == ("nan", "skip")
    assert health.of_norm(1e30, 0) is None


def test_what_no_next_batch_would_mend_ends_the_run_at_once() -> None:
    health = Health(HealthConfig(most_skipped=2))
    assert [health.of_data("why", lasting=False, left_out=count).action for count in (1, 2)] == ["skip", "stop"]
    assert health.of_data("why", lasting=True, left_out=0).action == "stop"


def test_too_many_left_out_stop_the_run() -> None:
    health = _seen(HealthConfig(nan="rollback", spike="skip", spike_window=4, most_skipped=3), [1.0] * 4)
    for loss in (math.nan, 9.0):
        last, over = health.of_loss(loss, 2), health.of_loss(loss, 3)
        assert last is not None and last.action in ("rollback", "skip")
        assert over is not None and over.action == "stop" and "most_skipped" in over.reason
    warned = _seen(HealthConfig(spike="warn", spike_window=4, most_skipped=1), [1.0] * 4).of_loss(9.0, 5)
    assert warned is not None and warned.action == "warn"


@pytest.fixture
def bad(monkeypatch: pytest.MonkeyPatch) -> dict[int, float]:
    """Places at which a global batch begins, and what its loss weights are multiplied by."""
    factors: dict[int, float] = {}
    give = Feed.next_batch

    def poisoned(self: Feed) -> Iterator[LayoutBatch]:
        batches = give(self)
        factor = factors.get(self.consumed - self.config.data.global_batch_size, 1.0)
        return (replace(batch, weights=batch.weights * factor) for batch in batches)

    monkeypatch.setattr(Feed, "next_batch", poisoned)
    return factors


def _keys(data: Any, place: int, seed: int = 0) -> list[str]:
    packs = ShardSet.open(str(data.shards))
    return sorted(packs.read(shuffled(p, len(packs), seed)).key for p in range(place, place + 4))


def _kinds(output: Path) -> list[str]:
    return [event["kind"] for event in read_events(output)]


def test_skipping_leaves_weights_and_optimizer_alone(
    bad: dict[int, float], make_config: Config, training_data: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A loss that is no number in step 2, gradients that are none behind a good loss in step 4."""
    bad[4] = math.nan
    changed: list[bool] = []
    update = Trainer.update

    def watched(self: Trainer, skip: bool = False) -> float:
        if len(changed) == 3:
            next(p for p in self.model.parameters() if p.requires_grad).main_grad[0] = math.inf
        before = [p.detach().clone() for p in self.model.parameters()]
        norm = update(self, skip)
        changed.append(any(not torch.equal(a, b) for a, b in zip(before, self.model.parameters(), strict=True)))
        return norm

    monkeypatch.setattr(Trainer, "update", watched)
    health = HealthConfig(nan="skip")
    assert loop.train(make_config(training_data, tmp_path, steps=5, health=health), CPU) == 5
    assert changed == [True, False, True, False, True]
    rows = read_metrics(tmp_path)
    assert [row["step"] for row in rows] == [1, 3, 5]
    assert [row["skipped"] for row in rows] == [0, 1, 2]
    loss, norm = (event for event in read_events(tmp_path) if event["kind"] == "nan")
    assert (loss["step"], loss["place"], loss["loss"], loss["keys"]) == (2, 4, None, _keys(training_data, 4))
    assert (norm["step"], norm["place"], norm["action"]) == (4, 12, "skip") and norm["loss"] > 0
    assert "gradient norm" in norm["message"]
    saved = training_folder.latest(tmp_path)
    assert saved is not None and read_manifest(saved).state.skipped == [4, 12]


def test_going_back_gives_the_run_that_never_saw_the_batches(
    bad: dict[int, float], make_config: Config, training_data: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first batch, before any step, and the one at place 16, seen in step 4 after a checkpoint at step 2."""
    bad.update({0: math.nan, 16: math.nan})
    health = HealthConfig(nan="rollback", spike_window=4)
    config = make_config(training_data, tmp_path / "back", steps=6, checkpoint_interval=2, health=health)
    assert loop.train(config, CPU) == 6

    begin = Feed.__init__

    def without(self: Feed, *args: Any) -> None:
        begin(self, *args)
        self.skip |= {0, 16}

    monkeypatch.setattr(Feed, "__init__", without)
    assert loop.train(make_config(training_data, tmp_path / "never", steps=6), CPU) == 6
    found, expected = read_metrics(tmp_path / "back"), read_metrics(tmp_path / "never")
    assert [row["consumed"] for row in found] == [8, 12, 16, 24, 28, 32]
    for ours, theirs in zip(found, expected, strict=True):
        for name in ("step", "loss", "by_kind", "grad_norm", "lr", "consumed"):
            assert ours[name] == theirs[name], (ours["step"], name)

    events = read_events(tmp_path / "back")
    assert [(e["kind"], e["step"]) for e in events if e["kind"] != "saved"] == [
        ("nan", 1), ("rollback", 0), ("nan", 4), ("rollback", 2), ("finished", 6)
    ]  # fmt: skip
    assert [(e["place"], e["keys"]) for e in events if e["kind"] == "nan"] == [
        (place, _keys(training_data, place)) for place in (0, 16)
    ]
    saved = training_folder.latest(tmp_path / "back")
    assert saved is not None
    state = read_manifest(saved).state
    assert state.skipped == [0, 16]
    assert state.losses == [row["loss"] for row in found[-4:]]


def test_after_too_many_the_run_stops_and_names_the_packs(
    bad: dict[int, float], make_config: Config, training_data: Any, tmp_path: Path
) -> None:
    bad.update(dict.fromkeys(range(4, 100, 4), math.nan))
    config = make_config(
        training_data, tmp_path, steps=9, checkpoint_interval=1, health=HealthConfig(nan="rollback", most_skipped=2)
    )
    with pytest.raises(DivergedError, match=f"place 12 has the packs {', '.join(_keys(training_data, 12))}"):
        loop.train(config, CPU)
    assert [event["action"] for event in read_events(tmp_path) if event["kind"] == "nan"] == ["rollback", "rollback", "stop"]
    heartbeat = read_heartbeat(tmp_path)
    assert heartbeat is not None and (heartbeat["state"], heartbeat["step"]) == ("failed", 1)
    saved = training_folder.latest(tmp_path)
    assert saved is not None and saved.name == "step-00000001"
    assert read_manifest(saved).state.skipped == [4, 8]


def test_a_spike_is_told_and_the_run_goes_on(
    bad: dict[int, float], make_config: Config, training_data: Any, tmp_path: Path
) -> None:
    bad[20] = 50.0
    health = HealthConfig(spike="warn", spike_window=4)
    assert loop.train(make_config(training_data, tmp_path, steps=7, health=health), CPU) == 7
    losses = [row["loss"] for row in read_metrics(tmp_path)]
    assert len(losses) == 7
    (spike,) = (event for event in read_events(tmp_path) if event["kind"] == "spike")
    assert (spike["step"], spike["place"], spike["action"], spike["keys"]) == (6, 20, "warn", _keys(training_data, 20))
    assert spike["loss"] == losses[5]
    assert spike["median"] == statistics.median(losses[1:5])


def test_a_spike_is_judged_alike_after_a_restart(
    bad: dict[int, float], make_config: Config, training_data: Any, tmp_path: Path
) -> None:
    bad[20] = 50.0
    config = make_config(training_data, tmp_path, steps=5, health=HealthConfig(spike="skip", spike_window=4))
    loop.train(config, CPU)
    loop.train(config.model_copy(update={"steps": 7}), CPU)
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2, 3, 4, 5, 7]
    assert _kinds(tmp_path) == ["saved", "finished", "resumed", "spike", "saved", "finished"]


@pytest.fixture
def damaged(training_data: Any, tmp_path: Path) -> Callable[[int], Any]:
    """A copy of the shard set in which a byte of the pack at a place of the order is not what was written."""

    def damage(place: int) -> Any:
        copy = Path(shutil.copytree(training_data.shards, tmp_path / "shards"))
        packs = ShardSet.open(copy)
        shard, sample = packs.locate(shuffled(place, len(packs), 0))
        offsets = np.fromfile(copy / shard.index_name, dtype="<u8")
        with open(copy / shard.name, "r+b") as stream:
            stream.seek(int(offsets[sample + 1]) - 1)
            stream.write(b"\x07")
        return replace(training_data, shards=copy)

    return damage


def test_a_pack_that_went_bad_is_left_out_with_its_batch(
    damaged: Callable[[int], Any], make_config: Config, training_data: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shards are not hashed at the start, so it is met in the third batch."""
    config = make_config(damaged(9), tmp_path / "bad", steps=3)
    assert loop.train(config, CPU) == 3
    begin = Feed.__init__

    def without(self: Feed, *args: Any) -> None:
        begin(self, *args)
        self.skip |= {8}

    monkeypatch.setattr(Feed, "__init__", without)
    assert loop.train(make_config(training_data, tmp_path / "never", steps=3), CPU) == 3
    found, expected = read_metrics(tmp_path / "bad"), read_metrics(tmp_path / "never")
    assert [row["consumed"] for row in found] == [4, 8, 16]
    assert [row["loss"] for row in found] == [row["loss"] for row in expected]
    (event,) = (event for event in read_events(tmp_path / "bad") if event["kind"] == "data")
    packs = ShardSet.open(training_data.shards)
    key = packs.key(shuffled(9, len(packs), 0))
    assert (event["step"], event["place"], event["action"], event["keys"]) == (3, 8, "skip", [key])
    assert key in event["message"] and "restore the shard" in event["message"]
    saved = training_folder.latest(tmp_path / "bad")
    assert saved is not None and read_manifest(saved).state.skipped == []  # not the loss's doing


@pytest.mark.parametrize(
    ("error", "raised", "said"),
    [
        (OSError(5, "Input/output error"), UnreadableError, r"step 3: rank 0 cannot read .*shards: .*Input/output error"),
        (FeedError("pack 7: no use"), FeedError, r"pack 7: no use, and 2 batches were left out before it \(health\.most_sk"),
    ],
)
def test_shards_that_give_nothing_more_end_the_run_with_everything_saved(
    error: Exception,
    raised: type[Exception],
    said: str,
    make_config: Config,
    training_data: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lay_out = Feed._lay_out

    def fail(self: Feed, index: int) -> Any:
        laid_out = lay_out(self, index)
        if self.consumed > 8:
            raise error
        return laid_out

    monkeypatch.setattr(Feed, "_lay_out", fail)
    config = make_config(training_data, tmp_path, steps=9, health=HealthConfig(most_skipped=2))
    with pytest.raises(raised, match=said):
        loop.train(config, CPU)
    saved = training_folder.latest(tmp_path)
    assert saved is not None and saved.name == "step-00000002"
    assert [event["action"] for event in read_events(tmp_path) if event["kind"] == "data"][-1] == "stop"
    monkeypatch.undo()
    assert loop.train(config.model_copy(update={"steps": 3}), CPU) == 3
