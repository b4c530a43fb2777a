"""Where we lean on what a library has not promised: a private name, or a behaviour that its documentation does not state.

Each row names the library, the file of ours that leans on it and what must hold. A row that fails after an upgrade says what
to look at; that the whole still works is for the tests of that file to say. The last test holds the list complete, as far as
one can see it without running: names that begin with an underscore, and function defaults that are set from outside.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import io
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest

from megatron_nextflow.runtime import device

device.setup("cpu")  # before anything imports megatron.core

HOME = Path(__file__).parents[1]
PACKAGES = ("data", "tokenize", "megatron_nextflow", "pipelines", "orchestration")
SEAMS: list[Seam] = []


class Seam(NamedTuple):
    """What `ours`, a file, needs of `library`; `leans` is the word in that file that does so."""

    library: str
    ours: str
    leans: str
    holds: Callable[[], bool]


def seam(library: str, ours: str, leans: str) -> Callable[[Callable[[], bool]], Callable[[], bool]]:
    """Adds a row to the list."""

    def add(holds: Callable[[], bool]) -> Callable[[], bool]:
        SEAMS.append(Seam(library, ours, leans, holds))
        return holds

    return add


def takes(function: Any, *names: str) -> bool:
    """Whether a function's first parameters are called `names`."""
    return tuple(inspect.signature(function).parameters)[: len(names)] == names


def words(module: ModuleType) -> set[str]:
    """Names and strings in a module's source; what it is told at run time cannot hide what it asks for."""
    nodes = list(ast.walk(ast.parse(inspect.getsource(module))))
    found = {node.id for node in nodes if isinstance(node, ast.Name)}
    found |= {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    return found | {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}


@seam("torch", "megatron_nextflow/launching/torchrun.py", "__defaults__")
def _() -> bool:
    from torch.distributed.elastic.multiprocessing.api import PContext, SubprocessContext

    parameters = inspect.signature(PContext.close).parameters
    closes = "close" in SubprocessContext._poll.__code__.co_names  # with its defaults, when a process has failed
    return [*parameters] == ["self", "death_sig", "timeout"] and len(PContext.close.__defaults__ or ()) == 2 and closes


@seam("botocore", "data/nextflow_data/storage/stores/s3_client.py", "providers")
def _() -> bool:
    import botocore.session
    from botocore.credentials import AssumeRoleCredentialFetcher

    first = botocore.session.Session().get_component("credential_provider").providers[0]
    made_of = ("self", "client_creator", "source_credentials", "role_arn")
    return callable(first.load) and isinstance(first.METHOD, str) and takes(AssumeRoleCredentialFetcher.__init__, *made_of)


@seam("pyspark", "pipelines/nextflow_pipelines/stages/common.py", "from_arrow_schema")
def _() -> bool:
    import pyarrow as pa
    from pyspark.sql.pandas.types import from_arrow_schema

    nested = pa.list_(pa.struct([("a", pa.int32())]))
    return from_arrow_schema(pa.schema([("x", nested)])).simpleString() == "struct<x:array<struct<a:int>>>"


@seam("pyspark", "pipelines/nextflow_pipelines/spark/session.py", "_ensure_initialized")
def _() -> bool:
    from pyspark import SparkContext

    return takes(SparkContext._ensure_initialized, "instance", "gateway", "conf")


@seam("torch", "megatron_nextflow/launching/torchrun.py", "signals_to_handle")
def _() -> bool:
    from torch.distributed import run

    return run.parse_args(["script.py"]).signals_to_handle.startswith("SIGTERM") and takes(run.run, "args")


@seam("torch", "megatron_nextflow/estimate/meta_model.py", "FakeStore")
def _() -> bool:
    import torch.distributed as dist
    from torch.testing._internal.distributed.fake_pg import FakeStore

    return isinstance(FakeStore(), dist.Store) and "fake" in dist.Backend.backend_list


@seam("torch", "megatron_nextflow/checkpoint/staging.py", "_StorageInfo")
def _() -> bool:
    from torch.distributed.checkpoint.filesystem import _StorageInfo

    fields = [field.name for field in dataclasses.fields(_StorageInfo)]
    return fields[:3] == ["relative_path", "offset", "length"]


@seam("torch", "megatron_nextflow/checkpoint/verify.py", "_CLASSES")
def _() -> bool:
    from megatron_nextflow.checkpoint.verify import _CLASSES

    return all(hasattr(import_module(module), name) for module, name in map(str.split, _CLASSES))


@seam("torch", "megatron_nextflow/conversion/from_hf.py", "storage_meta")
def _() -> bool:
    from torch.distributed.checkpoint import FileSystemWriter

    return takes(FileSystemWriter.storage_meta, "self")


@seam("torch", "megatron_nextflow/runtime/adam.py", "decoupled_weight_decay")
def _() -> bool:
    from torch.optim.adam import adam

    lists = ("params", "grads", "exp_avgs", "exp_avg_sqs", "max_exp_avg_sqs", "state_steps")
    return takes(adam, *lists) and {"fused", "decoupled_weight_decay"} <= inspect.signature(adam).parameters.keys()


@seam("torch", "megatron_nextflow/runtime/device.py", "cuda.random.set_rng_state")
def _() -> bool:
    import torch

    replaced = "current_device synchronize empty_cache manual_seed manual_seed_all current_stream default_stream"
    cuda = {*replaced.split(), "get_rng_state", "set_rng_state", "Stream", "Event", "stream"}
    return cuda <= {*torch.cuda.__all__} and {"get_rng_state", "set_rng_state"} <= {*torch.cuda.random.__all__}


@seam("torch", "tokenize/nextflow_tokenize/vision/training/trainer.py", "_foreach_lerp_")
def _() -> bool:
    import torch

    moved = [torch.zeros(2)]
    torch._foreach_lerp_(moved, [torch.ones(2)], 0.25)
    return moved[0].tolist() == [0.25, 0.25]


@seam("torch", "tokenize/nextflow_tokenize/vision/training/trainer.py", "_is_amx_tile_supported")
def _() -> bool:
    import torch

    return all(hasattr(torch.cpu, name) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))


@seam("megatron-core", "megatron_nextflow/checkpoint/staging.py", "_replace_state_dict_keys_with_sharded_keys")
def _() -> bool:
    from megatron.core.dist_checkpointing.strategies import torch as strategy

    named, flat, renamed = strategy._replace_state_dict_keys_with_sharded_keys({}, True)
    return not named and not flat and not renamed and takes(strategy.mcore_to_pyt_state_dict, "state_dict", "is_loading")


@seam("megatron-core", "megatron_nextflow/checkpoint/staging.py", "save_state_dict_async_plan")
def _() -> bool:
    from megatron.core.dist_checkpointing.strategies.filesystem_async import FileSystemWriterAsync
    from megatron.core.dist_checkpointing.strategies.state_dict_saver import save_state_dict_async_plan

    plans = takes(save_state_dict_async_plan, "state_dict", "storage_writer", "process_group", "coordinator_rank", "planner")
    return plans and takes(FileSystemWriterAsync.prepare_write_data, "self", "plan", "planner")


@seam("megatron-core", "megatron_nextflow/step/process_groups.py", "vars(parallel_state)")
def _() -> bool:
    from megatron.core import parallel_state

    return {f"_{name}_PARALLEL_GROUP" for name in ("TENSOR_MODEL", "PIPELINE_MODEL", "DATA")} <= vars(parallel_state).keys()


@seam("megatron-core", "megatron_nextflow/runtime/device.py", "_set_cuda_rng_state")
def _() -> bool:
    import megatron.core.tensor_parallel.random as random

    return "_set_cuda_rng_state" in random.CudaRNGStatesTracker.add.__code__.co_names


@seam("megatron-core", "megatron_nextflow/runtime/device.py", "USING_PYTORCH_OPTIMIZER")
def _() -> bool:
    import megatron.core.optimizer as optimizer
    import megatron.core.optimizer.distrib_optimizer as distributed

    asked = {"Adam", "HAVE_APEX_OR_TE", "USING_APEX_OPTIMIZER", "torch.cuda.FloatTensor"}
    return {"Adam", "USING_PYTORCH_OPTIMIZER"} <= words(optimizer) and asked <= words(distributed)


@seam("megatron-core", "megatron_nextflow/step/trainer.py", "init_state_fn")
def _() -> bool:
    from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
    from megatron.core.optimizer.optimizer import ChainedOptimizer

    halves = ("prepare_grads", "get_grad_norm", "step_with_ready_grads")
    whole = all(hasattr(kind, name) for kind in (DistributedOptimizer, ChainedOptimizer) for name in halves)
    return whole and "init_state_fn" in inspect.signature(DistributedOptimizer).parameters


@seam("megatron-core", "megatron_nextflow/model/layer_spec.py", "sequence_parallel")
def _() -> bool:
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec

    layer = get_gpt_layer_local_spec(normalization="RMSNorm").submodules
    gradients = import_module("megatron.core.distributed.finalize_model_grads")  # a function of that name hides it
    norms = hasattr(layer, "input_layernorm") and hasattr(layer, "pre_mlp_layernorm")
    return norms and hasattr(layer.self_attention.submodules, "core_attention") and "sequence_parallel" in words(gradients)


@seam("megatron-core", "megatron_nextflow/checkpoint/tensors.py", "chained_optim_avoid_prefix")
def _() -> bool:
    import megatron.core.optimizer.distrib_optimizer as distributed
    import megatron.core.optimizer.optimizer as optimizer

    keys = {"distrib_optim_sharding_type", "distrib_optim_fully_reshardable_mem_efficient", "fully_reshardable"}
    return keys <= words(distributed) and "chained_optim_avoid_prefix" in words(optimizer)


@seam("datatrove", "data/nextflow_data/rules/shipped/repetition.py", "_line_splitter")
def _() -> bool:
    from datatrove.pipeline.filters.gopher_repetition_filter import GopherRepetitionFilter

    block = GopherRepetitionFilter()
    return block._line_splitter.split("a\n\nb") == ["a", "b"] and block.paragraph_exp.split("a\n\nb\nc") == ["a", "b\nc"]


@seam("datatrove", "data/nextflow_data/rules/word_tokens.py", "_do_tokenize")
def _() -> bool:
    from datatrove.utils.word_tokenizers import SpaCyTokenizer

    (tokens,) = SpaCyTokenizer("en")._do_tokenize("One. Two")
    return [(t.idx, t.text, t.whitespace_) for t in tokens] == [(0, "One", ""), (3, ".", " "), (5, "Two", "")]


@seam("webdataset", "tokenize/nextflow_tokenize/shards/writer.py", "tarstream.offset")
def _() -> bool:
    from webdataset.writer import TarWriter

    written = TarWriter(io.BytesIO(), encoder=False, mtime=0, user="", group="", mode=0o644, compress=False)
    written.write({"__key__": "a", "json": b"{}"})
    return written.tarstream.offset == 1024  # POSIX: a header and one block of 512 bytes


@seam("prefect", "orchestration/nextflow_orchestration/runs/server.py", "drain_all")
def _() -> bool:
    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogWorker

    return takes(EventsWorker.drain_all, "timeout") and takes(APILogWorker.drain_all, "timeout")


@pytest.mark.parametrize("seam", SEAMS, ids=lambda seam: f"{seam.library}:{seam.leans}")
def test_what_we_lean_on_still_holds(seam: Seam) -> None:
    assert seam.holds(), f"{seam.ours} leans on {seam.library}: {seam.leans}"
    assert seam.leans in (HOME / seam.ours).read_text(encoding="utf-8"), "the list names what is no longer there"


DOCUMENTED = {"_exit", "_Element"}
"""With an underscore and all: os._exit, and the class of lxml's elements."""


def _private(tree: ast.Module) -> Iterator[str]:
    """Private names that a module of ours takes from another: imported, asked of what was imported, or set."""
    imported: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            imported |= {alias.asname or alias.name.split(".")[0] for alias in node.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            inside = any(part.startswith("_") and part != "__future__" for part in (node.module or "").split("."))
            yield from (alias.name for alias in node.names if inside or alias.name.startswith("_"))
        elif isinstance(node, ast.Attribute) and node.attr == "__defaults__":
            yield node.attr
        elif isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
            owner = node.value
            while isinstance(owner, ast.Attribute):
                owner = owner.value
            if isinstance(owner, ast.Name) and owner.id in imported:
                yield node.attr


def test_nothing_private_is_missing_from_the_list() -> None:
    listed = {(seam.ours, seam.leans) for seam in SEAMS}
    files = [path for package in PACKAGES for path in (HOME / package).rglob("*.py")]
    found = {
        (str(path.relative_to(HOME)), name)
        for path in files
        for name in _private(ast.parse(path.read_text(encoding="utf-8")))
        if name not in DOCUMENTED
    }
    assert len(found) >= 5 and not found - listed, "name it above, and what must hold of it"
