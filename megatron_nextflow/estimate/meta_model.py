"""Which parameters a process will hold, counted on the model that training builds, without a device and without peers.

The model of a pipeline stage is made by the same code as in training, on the meta device, which has shapes and no memory,
and in a process group that only pretends to have other members. So what Megatron would refuse is refused, and what it would
place on a process is counted and not assumed. The cost: the fake process group is one that torch made for its own tests.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore

from megatron_nextflow.config.train import TrainConfig
from megatron_nextflow.runtime import device
from megatron_nextflow.sequence.vocabulary import Vocabulary


@dataclass(frozen=True)
class Held:
    """Parameters of a pipeline stage: on one process (`mine`), and together, each once (`whole`); and those learnt."""

    mine: int
    mine_trained: int
    whole: int
    whole_trained: int


def held_by(config: TrainConfig, vocabulary: Vocabulary, codebook_dim: int, stage: int) -> Held:
    """What pipeline stage `stage` holds, all its chunks. No process group may be running; on return none is.

    Megatron answers for the CPU afterwards (`device.setup`). Raises what building the model raises.
    """
    with _pretended(config, stage):
        from megatron_nextflow.model.layer_spec import transformer_config
        from megatron_nextflow.model.nextflow import NextFlowModel
        from megatron_nextflow.model.precision import Precision
        from megatron_nextflow.step.trainer import CONNECTOR_AND_HEAD

        # Transformer Engine's layers, which need a GPU, hold the same parameters as Megatron's own.
        dtype = torch.bfloat16 if config.precision == "bf16" else torch.float32
        settings = transformer_config(config, Precision(dtype, None, ""))
        settings.use_cpu_initialization = True  # Megatron then names no device, and takes the one of the context
        parallel = config.parallel
        named: list[tuple[str, torch.nn.Parameter]] = []
        with torch.device("meta"):
            codebook = torch.zeros(vocabulary.codes, codebook_dim)
            for number in range(parallel.vpp):
                virtual = number if parallel.interleaved else None
                chunk = NextFlowModel(settings, config.model, vocabulary, codebook, virtual)
                named += chunk.named_parameters()
    learnt = CONNECTOR_AND_HEAD if config.trainable == "connector_and_head" else ("",)
    mine = whole = mine_trained = whole_trained = 0
    for name, parameter in named:
        size = parameter.numel()
        together = size * (parallel.tp if getattr(parameter, "tensor_model_parallel", False) else 1)
        mine, whole = mine + size, whole + together
        if parameter.requires_grad and name.startswith(learnt):
            mine_trained, whole_trained = mine_trained + size, whole_trained + together
    return Held(mine, mine_trained, whole, whole_trained)


@contextmanager
def _pretended(config: TrainConfig, stage: int) -> Iterator[None]:
    """Megatron's parallel state on the first process of pipeline stage `stage` of one copy of the model."""
    parallel = config.parallel
    rank = stage * parallel.tp * parallel.cp
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=parallel.model_parallel)
    try:
        device.setup("cpu")
        from megatron.core import parallel_state
        from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed

        parallel_state.initialize_model_parallel(**parallel.megatron(), create_gloo_process_groups=False)
        try:
            model_parallel_cuda_manual_seed(config.model.seed)
            yield
        finally:
            parallel_state.destroy_model_parallel()
    finally:
        dist.destroy_process_group()
