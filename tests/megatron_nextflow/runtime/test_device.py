"""The CPU's answers to what megatron-core asks of CUDA, and the CPU's Adam."""

from __future__ import annotations

import pytest
import torch

from megatron_nextflow.runtime import device
from megatron_nextflow.runtime.adam import GroupStepAdam


def test_cuda_tensors_are_made_on_the_cpu() -> None:
    assert torch.zeros(2, device="cuda").device.type == "cpu"
    assert torch.zeros(2, device=torch.cuda.current_device()).device.type == "cpu"
    assert torch.ones(2).cuda().to("cuda:0").pin_memory().device.type == "cpu"
    assert torch.zeros(2).type() == "torch.cuda.FloatTensor"
    assert torch.zeros(2).type(torch.float64).dtype == torch.float64


def test_the_generator_is_the_cpus() -> None:
    torch.cuda.manual_seed(5)
    first = torch.rand(3)
    torch.cuda.manual_seed(5)
    state = torch.cuda.get_rng_state()
    assert torch.equal(torch.rand(3), first)
    torch.cuda.set_rng_state(state)
    assert torch.equal(torch.rand(3), first)


def test_setup_is_refused_once_megatron_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    import megatron.core  # noqa: F401 - its presence is what is tested

    monkeypatch.setattr(device, "_shim", None)
    with pytest.raises(RuntimeError, match=r"must be called before anything imports megatron\.core"):
        device.setup("cpu")


def test_a_gpu_that_is_not_there_is_not_replaced() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(RuntimeError, match="torch sees no GPU"):
        device.setup("cuda")


def test_on_a_gpu_without_transformer_engine_adam_is_ours_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's own has no step count beside moments that were made for it: a KeyError at the first step."""
    import megatron.core.optimizer as optimizer
    import megatron.core.optimizer.distrib_optimizer as distributed

    for name, answer in (("is_available", True), ("device_count", 2), ("current_device", 1), ("set_device", None)):
        monkeypatch.setattr(torch.cuda, name, lambda *_, answer=answer: answer)
    monkeypatch.setenv("LOCAL_RANK", "1")
    torchs, fused = torch.optim.AdamW, type("FusedAdam", (), {})
    for found, missing, expected in ((torchs, True, GroupStepAdam), (fused, False, fused)):
        monkeypatch.setattr(optimizer, "Adam", found)
        monkeypatch.setattr(optimizer, "USING_PYTORCH_OPTIMIZER", missing)
        monkeypatch.setattr(distributed, "Adam", found)
        assert device.setup("cuda") == torch.device("cuda", 1)
        assert optimizer.Adam is distributed.Adam is expected and not optimizer.USING_PYTORCH_OPTIMIZER
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(RuntimeError, match="torch sees 2 GPUs on this machine, process 3 has none"):
        device.setup("cuda")


def test_adam_is_torchs_and_goes_on_from_its_state() -> None:
    """Equal to torch.optim.AdamW over a break in which the state is carried to another optimizer."""
    torch.manual_seed(0)
    start = [torch.randn(5, 3), torch.randn(7)]
    settings = {"lr": 3e-3, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}
    ours = [p.clone().requires_grad_() for p in start]
    theirs = [p.clone().requires_grad_() for p in start]
    mine, reference = GroupStepAdam(ours, **settings), torch.optim.AdamW(theirs, **settings)  # type: ignore[arg-type]
    for step in range(6):
        for a, b in zip(ours, theirs, strict=True):
            a.grad = torch.randn_like(a)
            b.grad = a.grad.clone()
        mine.step()
        reference.step()
        if step == 2:
            saved = mine.state_dict()
            mine = GroupStepAdam(ours, **settings)  # type: ignore[arg-type]
            mine.load_state_dict(saved)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)
    assert mine.param_groups[0]["step"] == 6
    assert set(mine.state[ours[0]]) == {"exp_avg", "exp_avg_sq"}
