"""The assignment of GPUs to ranks, the visible GPUs, and the device of a single rank.

Tests with several ranks are in tests/ranks/ranks_devices.py.
"""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from pipepar.comm.world import World
from pipepar.errors import InputError, PipeparError
from pipepar.host import devices, gpus
from pipepar.host.devices import Claim, assign_gpus, choose_devices
from pipepar.host.gpus import VisibleGpu, cpus_of, visible_gpus
from pipepar.host.machine import processor


def gpu(index: int, uuid: str, near: frozenset[int] = frozenset()) -> VisibleGpu:
    return VisibleGpu(index, uuid, f"GPU {uuid}", 2**30, near)


def claims(
    *uuids: str, shares: bool = False, local: Sequence[int | None] | None = None
) -> list[Claim]:
    """Return the claim of each rank; each letter is a GPU that is visible to it."""
    return [
        Claim("auto", local[rank] if local else rank, shares, list(each))
        for rank, each in enumerate(uuids)
    ]


@pytest.mark.parametrize(
    ("hosts", "seen", "taken"),
    [
        ("aaaa", ["ABCD"] * 4, "ABCD"),  # each rank sees all GPUs
        ("aaaa", ["A", "B", "C", "D"], "ABCD"),  # each rank sees its own GPU
        ("aaaa", ["AB", "AB", "CD", "CD"], "ABCD"),  # each rank sees the GPUs near it
        ("aabb", ["AB", "AB", "CD", "CD"], "ABCD"),
        ("abab", ["A", "B", "A", "B"], "AB--"),
        ("aabb", ["A", "A", "BC", "BC"], "A-BC"),  # hosts that differ
        ("aab", ["AB", "AB", ""], "AB-"),  # a host without GPUs
        ("aaa", ["", "", ""], "---"),
        ("aaa", ["AB", "", "AB"], "A-B"),
    ],
)
def test_each_rank_takes_the_first_free_gpu(hosts: str, seen: list[str], taken: str) -> None:
    assert [each or "-" for each in assign_gpus(hosts, claims(*seen))] == list(taken)


def test_local_ranks_order_the_ranks_if_all_differ() -> None:
    seen = ["ABC"] * 3
    assert assign_gpus("aaa", claims(*seen, local=[2, 0, 1])) == ["C", "A", "B"]
    assert assign_gpus("aaa", claims(*seen, local=[0, 0, 0])) == ["A", "B", "C"]
    assert assign_gpus("aaa", claims(*seen, local=[2, None, 1])) == ["A", "B", "C"]
    # Each host by itself.
    assert assign_gpus("aab", claims("AB", "AB", "AB", local=[1, 0, 0])) == ["B", "A", "A"]


def test_ranks_share_the_least_used_gpu_if_allowed() -> None:
    assert assign_gpus("aaaaa", claims(*["AB"] * 5, shares=True)) == ["A", "B", "A", "B", "A"]
    assert assign_gpus("aaa", claims("A", "AB", "A", shares=True)) == ["A", "B", "A"]
    assert assign_gpus("aa", claims("A", "", shares=True)) == ["A", ""]


def test_the_remedy_for_too_few_gpus() -> None:
    assert devices.gpu_remedy(4, 1).startswith("start 1 rank on that host, or ask")
    assert devices.gpu_remedy(4, 2).startswith("start 2 ranks on that host, or ask")
    assert "--gpus-per-node=4" in devices.gpu_remedy(4, 2)
    assert devices.gpu_remedy(2, 0).startswith("ask")
    assert devices.gpu_remedy(2, 2).startswith("ask")  # there are enough, but not all are visible


@pytest.mark.parametrize(
    ("text", "cpus"), [("", ()), ("3", (3,)), ("0-2,8,10-11", (0, 1, 2, 8, 10, 11))]
)
def test_lists_of_cpus_are_parsed(text: str, cpus: Sequence[int]) -> None:
    assert cpus_of(text) == frozenset(cpus)


def test_cuda_is_not_initialised_without_a_gpu() -> None:
    if torch.cuda.is_available():
        pytest.skip("this host has a GPU")
    assert visible_gpus() == []
    assert not torch.cuda.is_initialized()  # type: ignore[no-untyped-call]


def test_visible_gpus_have_the_properties_from_torch(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    place = {"pci_domain_id": 0, "pci_bus_id": 0x1A, "pci_device_id": 0}
    found = [
        SimpleNamespace(uuid="u0", name="big", total_memory=80, **place),
        SimpleNamespace(uuid="u1", name="big", total_memory=80, **place | {"pci_bus_id": 0x1B}),
        SimpleNamespace(uuid="u2", name="old", total_memory=8),
    ]
    (tmp_path / "0000:1a:00.0").mkdir()
    (tmp_path / "0000:1a:00.0" / "local_cpulist").write_text("0-1,4\n", encoding="ascii")
    monkeypatch.setattr(gpus, "_PCI_DEVICES", tmp_path)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "get_device_properties", found.__getitem__)
    assert visible_gpus() == [
        VisibleGpu(0, "u0", "big", 80, frozenset({0, 1, 4})),
        VisibleGpu(1, "u1", "big", 80, frozenset()),
        VisibleGpu(2, "u2", "old", 8, frozenset()),
    ]


@pytest.fixture
def world() -> World:
    return World.start()


def test_a_single_rank_without_a_gpu(world: World) -> None:
    for found in (choose_devices(world, "auto", []), choose_devices(world, "cpu", [gpu(0, "A")])):
        assert found.by_rank == ("cpu",)
        assert found.mine == torch.device("cpu")
        assert (found.name, found.sharers, found.note) == (processor(), 1, "")


def test_a_single_rank_takes_the_first_gpu(world: World) -> None:
    for wanted in ("auto", "cuda"):
        found = choose_devices(world, wanted, [gpu(0, "A"), gpu(1, "B")])
        assert found.by_rank == ("cuda",)
        assert found.mine == torch.device("cuda", 0)
        assert (found.name, found.sharers, found.note) == ("GPU A", 1, "")


def test_gpus_are_not_queried_for_cpu(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "visible_gpus", lambda: pytest.fail("queried CUDA"))
    assert choose_devices(world, "cpu").by_rank == ("cpu",)


@pytest.mark.parametrize(
    ("cuda", "remedy"), [(None, "Install a CUDA build of torch"), ("12.8", "Check that nvidia-smi")]
)
def test_a_missing_gpu_is_an_error(
    cuda: str | None, remedy: str, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(PipeparError, match=remedy) as caught:
        choose_devices(world, "cuda", [])
    assert f"rank 0 on {world.host} has no GPU" in str(caught.value)
    assert "sees no GPUs, CUDA_VISIBLE_DEVICES is ''" in str(caught.value)
    assert "has 1 rank;" in str(caught.value)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    with pytest.raises(PipeparError, match="CUDA_VISIBLE_DEVICES is not set"):
        choose_devices(world, "cuda", [])


def test_an_unknown_device_is_refused(world: World) -> None:
    with pytest.raises(InputError, match=r"found device 'cuda:1', expected auto, cpu or cuda"):
        choose_devices(world, "cuda:1")  # type: ignore[arg-type]


def test_a_binding_far_from_the_gpu_is_noted_and_unchanged(world: World) -> None:
    before = world.cores
    found = choose_devices(world, "auto", [gpu(0, "A", frozenset({10**6}))])
    assert world.cores == before
    assert f"rank 0 on {world.host} is bound to cores far from the GPU" in found.note
    assert "--gpu-bind=closest" in found.note
