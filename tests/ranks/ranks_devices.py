"""The choice of a GPU for each rank, and the cores that the rank is then bound to.

Ranks describe GPUs that do not exist. `choose_devices` only compares these descriptions.
"""

import os
from collections.abc import Iterator

import pytest
import torch

from pipepar.comm.world import World
from pipepar.errors import InputError, PeerError, PipeparError
from pipepar.host.devices import SHARING, DeviceChoice, Devices, choose_devices
from pipepar.host.gpus import VisibleGpu
from pipepar.host.machine import processor
from pipepar.host.threads import claim_threads, cores_behind
from tests.helpers.rank_fixtures import all_equal, set_affinity

pytestmark = pytest.mark.mpi


@pytest.fixture(autouse=True)
def _restore_cores(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv(SHARING, raising=False)
    cores = os.sched_getaffinity(0)
    yield
    set_affinity(cores)


def gpus(uuids: str, *near: int) -> list[VisibleGpu]:
    """Return the GPUs that a process sees, one for each letter."""
    return [
        VisibleGpu(index, uuid, f"GPU {uuid}", 2**30, frozenset(near))
        for index, uuid in enumerate(uuids)
    ]


def set_host(world: World, host: str) -> None:
    """Pretend that this rank is on another host."""
    world.host = host
    world.hosts = world.all_gather(host)
    world.bind(None)


def refused(world: World, wanted: DeviceChoice, uuids: str, reporter: int) -> str:
    """Check that rank `reporter` raises the error, and return the message that all ranks get."""
    expected = PipeparError if world.rank == reporter else PeerError
    with pytest.raises(expected) as caught:
        choose_devices(world, wanted, gpus(uuids))
    assert type(caught.value) in (expected, InputError)
    text = str(caught.value)
    assert text.startswith(f"rank {reporter} on ") or world.rank == reporter
    return text


def test_all_ranks_see_all_gpus(world: World) -> None:
    wanted: DeviceChoice
    for wanted in ("auto", "cuda"):
        found = choose_devices(world, wanted, gpus("ABCD"))
        assert found == Devices(
            ("cuda",) * world.size,
            torch.device("cuda", world.rank),
            f"GPU {'ABCD'[world.rank]}",
            sharers=1,
            note="",
        )


def test_each_rank_sees_only_its_own_gpu(world: World) -> None:
    found = choose_devices(world, "cuda", gpus("ABCD"[world.rank]))
    assert found.mine == torch.device("cuda", 0)
    assert found.name == f"GPU {'ABCD'[world.rank]}"
    assert (found.by_rank, found.sharers, found.note) == (("cuda",) * world.size, 1, "")


def test_ranks_without_gpus_use_the_cpu(world: World) -> None:
    found = choose_devices(world, "auto", [])
    assert found == Devices(("cpu",) * world.size, torch.device("cpu"), processor(), world.size, "")


def test_cpu_can_be_chosen_with_gpus_present(world: World) -> None:
    found = choose_devices(world, "cpu", gpus("ABCD"))
    assert (found.by_rank, found.mine) == (("cpu",) * world.size, torch.device("cpu"))
    assert found.note == ""


def test_ranks_without_a_free_gpu_use_the_cpu(world: World) -> None:
    found = choose_devices(world, "auto", gpus("A"))
    assert found.by_rank == ("cuda",) + ("cpu",) * (world.size - 1)
    assert found.mine.type == found.by_rank[world.rank]
    assert found.sharers == (1 if world.rank == 0 else world.size)
    note = {
        1: "",
        2: "rank 1 on {} computes on the CPU, since ranks 0-1 there see 1 GPU: start 1 rank",
        3: "ranks 1-2 on {} compute on the CPU, since ranks 0-2 there see 1 GPU: start 1 rank",
        4: "ranks 1-3 on {} compute on the CPU, since ranks 0-3 there see 1 GPU: start 1 rank",
    }[world.size]
    assert found.note.startswith(note.format(world.host))
    assert (SHARING in found.note) == (world.size > 1)
    assert all_equal(world, found.note)


def test_a_rank_without_a_free_gpu_is_an_error_with_cuda(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5")
    if world.size == 1:
        assert choose_devices(world, "cuda", gpus("A")).by_rank == ("cuda",)
        return
    text = refused(world, "cuda", "A", reporter=1)
    assert f"rank 1 on {world.host} has no GPU to compute on: it sees 1 GPU" in text
    assert "CUDA_VISIBLE_DEVICES is '5'" in text
    assert f"the host has {world.size} ranks" in text
    assert f"--gpus-per-node={world.size}" in text
    assert f"{SHARING}=1" in text


def test_ranks_share_gpus_if_allowed(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SHARING, "1")
    found = choose_devices(world, "cuda", gpus("AB"))
    assert found.mine == torch.device("cuda", world.rank % 2)
    assert found.sharers == {1: (1,), 2: (1, 1), 3: (2, 1, 2), 4: (2,) * 4}[world.size][world.rank]
    assert (found.by_rank, found.note) == (("cuda",) * world.size, "")


def test_hosts_with_and_without_gpus(world: World) -> None:
    """Even ranks are on host a with one GPU, odd ranks on host b without."""
    set_host(world, "ab"[world.rank % 2])
    found = choose_devices(world, "auto", gpus("A" if world.host == "a" else ""))
    assert found.by_rank == ("cuda",) + ("cpu",) * (world.size - 1)
    notes = found.note.split("; rank")
    assert ("on b" in found.note) == (world.size > 1)
    if world.size == 4:
        assert notes[0].startswith("rank 2 on a computes on the CPU, since ranks 0, 2 there see 1")
        assert notes[1].startswith("s 1, 3 on b compute on the CPU, since ranks 1, 3 there see no")
        assert SHARING not in notes[1]
    sharers = 1 if world.rank == 0 else len(world.cores)
    assert found.sharers == sharers


def test_gpus_are_assigned_on_each_host(world: World) -> None:
    set_host(world, "ab"[world.rank // 2])
    found = choose_devices(world, "cuda", gpus("AB" if world.host == "a" else "CD"))
    assert found.mine == torch.device("cuda", world.rank % 2)
    assert found.name == f"GPU {'ABCD'[world.rank]}"


def test_gpus_follow_the_local_ranks_of_the_launcher(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = world.size - 1 - world.rank
    monkeypatch.setenv("OMPI_COMM_WORLD_LOCAL_RANK", str(place))
    assert choose_devices(world, "cuda", gpus("ABCD")).mine == torch.device("cuda", place)


def test_ranks_with_different_device_options_are_refused(world: World) -> None:
    last = world.size - 1
    if world.size == 1:
        return
    text = refused(world, "cpu" if world.rank == last else "auto", "ABCD", reporter=0)
    assert f"found device 'auto' on rank 0 and 'cpu' on rank {last}" in text


def test_an_error_while_finding_gpus_is_reported(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> list[VisibleGpu]:
        if world.rank == world.size - 1:
            raise RuntimeError("the driver is too old")
        return []

    monkeypatch.setattr("pipepar.host.devices.visible_gpus", broken)
    failing = world.rank == world.size - 1
    with pytest.raises(RuntimeError if failing else PeerError, match="the driver is too old"):
        choose_devices(world, "auto")


def test_a_rank_is_bound_to_cores_near_its_gpu(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    # One logical CPU of each core.
    cores = sorted(
        {core: cpu for cpu in world.cores[world.rank] for core in cores_behind([cpu])}.values()
    )
    if len(cores) < max(2, world.size):
        pytest.skip("there are fewer cores than ranks")
    near = cores[world.rank]
    found = choose_devices(world, "auto", gpus("ABCD", near, 10**6))
    assert found.note == ""
    assert world.cores == {rank: [cores[rank]] for rank in range(world.size)}
    for thread in map(int, os.listdir("/proc/self/task")):
        assert os.sched_getaffinity(thread) == {near}
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = torch.get_num_threads()
    try:
        assert claim_threads(world) == 1
    finally:
        torch.set_num_threads(before)


def test_ranks_are_not_bound_to_shared_cores(world: World) -> None:
    cores = world.cores[world.rank]
    choose_devices(world, "auto", gpus("ABCD", cores[0]))
    alone = world.size == 1 and len(cores) > 1
    assert world.cores == dict.fromkeys(range(world.size), cores[:1] if alone else cores)


def test_ranks_on_the_cpu_are_not_bound(world: World) -> None:
    cores = world.cores[world.rank]
    if len(cores_behind(cores)) < 2:
        pytest.skip("with one core there is nothing to choose")
    choose_devices(world, "auto", gpus("A", cores[0]))
    others = dict.fromkeys(range(1, world.size), cores)
    assert world.cores == {0: cores[:1], **others}


def test_a_rank_never_gets_more_cores_than_it_had(world: World) -> None:
    cores = world.cores[world.rank]
    world.bind(cores[:1])
    if world.rank == 0:
        found = choose_devices(world, "auto", gpus("ABCD", *cores))
    else:
        found = choose_devices(world, "auto", gpus("ABCD", *cores[1:]))
    assert world.cores == dict.fromkeys(range(world.size), cores[:1])
    far = world.size > 1 and len(cores) > 1
    assert ("bound to cores far from the GPU" in found.note) == far
    if far:
        ranks = {2: "rank 1 on {} is", 3: "ranks 1-2 on {} are", 4: "ranks 1-3 on {} are"}
        assert found.note.startswith(ranks[world.size].format(world.host))
    assert all_equal(world, found.note)
