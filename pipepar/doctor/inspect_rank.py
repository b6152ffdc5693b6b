"""The facts of a rank and its host, for `pipepar doctor`."""

from __future__ import annotations

import contextlib
import os
import platform
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any, Final, cast

import torch

from pipepar.comm.group.launcher import launched, launcher_local_rank
from pipepar.comm.world import World
from pipepar.doctor.facts import RankFacts, Space
from pipepar.format import readable_bytes
from pipepar.host.devices import SHARING, Claim, assign_gpus, may_share
from pipepar.host.gpus import visible_gpus
from pipepar.host.machine import processor
from pipepar.host.threads import claim_threads, cores_behind

_PACKAGES: Final = ("pipepar", "torch", "transformers", "mpi4py", "numpy")
_VARIABLES: Final = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OMP_PROC_BIND",
    "CUDA_VISIBLE_DEVICES",
    SHARING,
)
_THREAD_LEVELS: Final = (
    "MPI_THREAD_SINGLE",
    "MPI_THREAD_FUNNELED",
    "MPI_THREAD_SERIALIZED",
    "MPI_THREAD_MULTIPLE",
)


def inspect_rank(world: World) -> RankFacts:
    """Return the facts of this rank, without its default device. Does not communicate.

    Sets the number of threads of the rank, as a run does. Initialises CUDA only if torch reports a
    device.

    Raises:
        OSError: a directory that a run writes to cannot be inspected.
        RuntimeError: CUDA cannot be initialised, although torch reports a device.
    """
    mpi, thread_level = _mpi()
    gpus = visible_gpus()
    return RankFacts(
        rank=world.rank,
        host=world.host,
        cores=sorted(cores_behind(world.cores[world.rank])),
        allotted=_allotted(world),
        threads=claim_threads(world),
        cpu=processor(),
        memory=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        devices=[f"{gpu.name} ({readable_bytes(gpu.memory)})" for gpu in gpus],
        mpi=mpi,
        thread_level=thread_level,
        versions=_versions(),
        environment={name: os.environ[name] for name in _VARIABLES if name in os.environ},
        spaces=list(_spaces()),
        gpus=[gpu.uuid for gpu in gpus],
        local_rank=launcher_local_rank(),
    )


def with_devices(ranks: Sequence[RankFacts]) -> list[RankFacts]:
    """Return the facts of all ranks, completed with the default device of each rank."""
    claims = [
        Claim("auto", facts.local_rank, may_share(facts.environment), facts.gpus) for facts in ranks
    ]
    taken = assign_gpus([facts.host for facts in ranks], claims)
    return [
        replace(facts, device=_device(facts, gpu), gpu=gpu)
        for facts, gpu in zip(ranks, taken, strict=True)
    ]


def _allotted(world: World) -> int:
    """Return the number of cores of this host that the job may use.

    These are the cores of the ranks and of the launcher, since each rank may be bound to a few of
    them; under Slurm, at most the cores that it allocated.
    """
    cpus = set().union(*world.cores.values())
    with contextlib.suppress(OSError):  # the launcher may be invisible to its ranks
        cpus |= os.sched_getaffinity(os.getppid())
    cores = len(cores_behind(cpus))
    # The parent of a rank started by srun is a daemon of Slurm, which is not bound to the share of
    # the job. The variable counts hardware threads.
    share = os.environ.get("SLURM_CPUS_ON_NODE", "")
    return min(cores, int(share) * cores // len(cpus)) if share.isdecimal() else cores


def _device(facts: RankFacts, gpu: str) -> str:
    """Return the index and name of a GPU of the rank, given its UUID; "cpu" if that is empty."""
    if not gpu:
        return "cpu"
    index = facts.gpus.index(gpu)
    return f"cuda:{index} {facts.devices[index]}"


def _mpi() -> tuple[str, str]:
    """Return the name and thread level of MPI; empty in a process without a launcher."""
    if not launched():
        return "", ""
    from mpi4py import MPI

    levels = (
        MPI.THREAD_SINGLE,
        MPI.THREAD_FUNNELED,
        MPI.THREAD_SERIALIZED,
        MPI.THREAD_MULTIPLE,
    )
    library = MPI.Get_library_version().split(",")[0].splitlines()[0].strip()
    return library, _THREAD_LEVELS[levels.index(MPI.Query_thread())]


def _versions() -> dict[str, str]:
    """Return the versions of Python, the main packages and NCCL; empty if a package is missing."""
    versions = {"Python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = ""
    if torch.distributed.is_available() and torch.distributed.is_nccl_available():
        nccl: tuple[int | str, ...] = cast("Any", torch.cuda.nccl).version()
        versions["NCCL"] = ".".join(map(str, nccl))
    return versions


def _spaces() -> Iterator[Space]:
    """Yield the free space of each directory that a run writes to and that exists."""
    places = (
        ("shared memory", "/dev/shm"),
        ("temporary files", tempfile.gettempdir()),
        ("working directory", str(Path.cwd())),
    )
    for use, path in places:
        if Path(path).is_dir():  # not every system has /dev/shm
            space = os.statvfs(path)
            free = space.f_bavail * space.f_frsize if os.access(path, os.W_OK) else 0
            yield Space(use, path, free)
