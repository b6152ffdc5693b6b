"""Counting and placement of the GPU benchmark; no GPU needed."""

from collections import Counter

import pytest
import torch

from benchmarks.__main__ import main
from benchmarks.catalog.gpu.copies import hidden_share, hidden_shares
from benchmarks.catalog.gpu.profile import _BEGIN, _END, Call, count, profiled
from tests.helpers.cluster.gpus import Gpus, NoPlace, place


def host(name: str, at: float) -> Call:
    return Call(name, at, at + 1, on_host=True)


def on_gpu(name: str, at: float) -> Call:
    return Call(name, at, at + 1, on_host=False)


def marked(*inside: Call) -> list[Call]:
    return [host(_BEGIN, 0), *inside, host(_END, 100)]


def test_waits_are_counted_by_name() -> None:
    counted = count(
        marked(
            host("cudaLaunchKernel", 2),
            host("cudaStreamSynchronize", 3),
            host("cudaStreamSynchronize_v3020", 4),
            host("cuEventSynchronize", 5),
            host("cudaMemcpyAsync", 6),
            host("cudaMemcpy", 7),
            host("cudaHostAlloc", 8),
            host("cudaEventQuery", 9),
            host("aten::mm", 10),
            on_gpu("Memcpy HtoD (Pageable -> Device)", 11),
            on_gpu("Memcpy DtoH (Device -> Pinned)", 12),
        )
    )
    assert counted.calls == 8
    assert counted.waits == Counter(cudaStreamSynchronize=2, cuEventSynchronize=1, cudaMemcpy=1)
    assert counted.allocations == Counter(cudaHostAlloc=1)
    assert counted.pageable == 1
    assert counted.total == 6
    assert "cudaStreamSynchronize 2" in str(counted)


def test_only_calls_between_the_marks_count() -> None:
    calls = marked(host("cudaStreamSynchronize", 50))
    outside = [host("cudaDeviceSynchronize", -5), host("cudaDeviceSynchronize", 200)]
    counted = count([*outside, *calls, on_gpu(_BEGIN, 90), on_gpu(_END, 91)])
    assert counted.waits == Counter(cudaStreamSynchronize=1)


def test_no_waits() -> None:
    counted = count(marked(host("cudaLaunchKernel", 2)))
    assert (counted.calls, counted.total, str(counted)) == (1, 0, "none")


def test_a_missing_mark_is_an_error() -> None:
    with pytest.raises(ValueError, match="1 and 0 marks"):
        count([host(_BEGIN, 0)])


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a profiler that sees no CUDA")
def test_marks_are_found_in_a_profile() -> None:
    def action(begin: object, end: object) -> None:
        begin()  # type: ignore[operator]
        torch.ones(2) + 1
        end()  # type: ignore[operator]

    counted = profiled(action)
    assert (counted.calls, counted.total) == (0, 0)


def test_the_hidden_share() -> None:
    assert hidden_share(2, 1, 2) == 1
    assert hidden_share(1, 2, 3) == 0
    assert hidden_share(4, 2, 5) == 0.5
    assert hidden_shares([(2, 1, 2), (2, 2, 3)]) == [1, 0.5]


def test_each_rank_has_its_own_gpu_if_there_are_enough() -> None:
    placed = place(2, Gpus(4, (2, 28, 9)))
    assert (placed.shared, dict(placed.env)) == (False, {})
    assert placed.words == "2 ranks, one GPU a rank"
    assert place(1, Gpus(1, None)).words == "1 rank, one GPU a rank"


def test_ranks_share_gpus_if_nccl_allows_it() -> None:
    placed = place(3, Gpus(2, (2, 30, 3)))
    assert placed.shared
    assert placed.words == "3 ranks on 2 GPUs, shared (NCCL 2.30.3)"
    assert placed.env["NCCL_MULTI_RANK_GPU_ENABLE"] == "1"


@pytest.mark.parametrize(
    ("gpus", "reason"),
    [
        (Gpus(0, (2, 30, 3)), "torch sees no CUDA device"),
        (Gpus(1, (2, 30, 2)), "this one is 2.30.2"),
        (Gpus(1, None), "no libnccl"),
    ],
)
def test_ranks_that_cannot_be_placed(gpus: Gpus, reason: str) -> None:
    with pytest.raises(NoPlace, match=reason):
        place(2, gpus)


def test_without_a_gpu_the_benchmark_fails_with_a_message(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["gpu"]) == 1
    assert "torch sees no CUDA device; there is nothing to measure here" in capsys.readouterr().err
