import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from losses import dense_hybrid

pytest.importorskip("triton")

LOGITS = [torch.zeros(2, 5, 7, 9), torch.zeros(2, 2, 7, 9)]
LABELS = torch.zeros(2, 7, 9, dtype=torch.int64)


@pytest.mark.processes
@pytest.mark.slow
def test_under_the_interpreter():
    environment = {**os.environ, "TRITON_INTERPRET": "1"}  # which has to be there before Triton is imported
    tests = Path(__file__).parents[1] / "support" / "interpreted_loss_kernels.py"
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-W", "ignore", tests]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout[-5000:]
    assert " passed" in ended.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("capability", "dtype", "layout"),
    [(80, "bf16", torch.channels_last), (90, "fp32", torch.contiguous_format)],
    ids=["8.0", "9.0"],
)
def test_kernels_compile_for_gpus_that_need_not_be_there(capability, dtype, layout, tmp_path, monkeypatch):
    # The interpreter takes types that the compiler refuses.
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from losses import divergence_kernels, kernels

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    constants = kernels.options(*(maps.contiguous(memory_format=layout) for maps in LOGITS), True, 1.0)
    constants = {name: value for name, value in constants.items() if name.isupper()} | {"SIZE": 64}
    types = {"labels": "*i64", "outlier": "*u8", "counts": "*i32", "pixels": "i32", "margin": "fp32"}
    types |= {"sums": "*fp32", "sums_gradient": "*fp32", "sum_gradient": "*fp32", "log_uniform": "fp32"}
    for kernel in (
        kernels.add_up,
        kernels.write_gradients,
        divergence_kernels.add_up_divergence,
        divergence_kernels.write_divergence_gradient,
        kernels.count,
    ):
        names = kernel.arg_names
        signature = {name: "constexpr" if name in constants else types.get(name, f"*{dtype}") for name in names}
        values = {(names.index(name),): value for name, value in constants.items() if name in names}
        source = ASTSource(fn=kernel, signature=signature, constexprs=values)
        assert triton.compile(source, target=GPUTarget("cuda", capability, 32)).asm["cubin"]


class OnGpu(torch.Tensor):
    """Says that it is on a GPU"""

    is_cuda = True


def test_the_loss_takes_the_kernels_for_what_they_take_on_a_gpu_and_for_nothing_else(monkeypatch):
    monkeypatch.setattr(dense_hybrid, "working_kernels", lambda device: "kernels")

    def taken(*tensors):
        return dense_hybrid.kernels_for(*(tensor.as_subclass(OnGpu) for tensor in tensors))

    logits, labels = LOGITS, LABELS
    assert taken(labels, *logits) == taken(labels.byte(), *(maps.bfloat16() for maps in logits)) == "kernels"
    assert taken(labels) == "kernels"
    assert dense_hybrid.kernels_for(labels, *logits) is None
    assert taken(labels.int(), *logits) is None
    assert taken(labels, logits[0].double()) is None
    assert taken(labels[:, 1:], *logits) is None  # PyTorch says what is wrong
    assert taken(labels[:0], logits[0][:0]) is None
    assert taken(labels, torch.zeros(2, 257, 7, 9)) is None
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert taken(labels, *logits) is None


def test_where_triton_does_not_work_a_warning_says_so_and_pytorchs_operations_do():
    with pytest.warns(UserWarning, match="without its Triton kernels, slower: RuntimeError"):
        assert dense_hybrid.working_kernels.__wrapped__(torch.device("cpu")) is None
