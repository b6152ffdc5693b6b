"""The assignment of devices to ranks: a GPU for each rank where there is one, and cores near it."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Final, Literal, TypeAlias, get_args

import torch

from pipepar.comm.group.launcher import launcher_local_rank
from pipepar.comm.world import World
from pipepar.errors import InputError, PipeparError
from pipepar.format import named
from pipepar.host.gpus import VisibleGpu, visible_gpus
from pipepar.host.machine import processor
from pipepar.host.threads import cores_behind

DeviceChoice: TypeAlias = Literal["auto", "cpu", "cuda"]
"""The requested kind of device; auto: a GPU for each rank, as far as there are any."""

SHARING: Final = "NCCL_MULTI_RANK_GPU_ENABLE"
"""The environment variable that lets several ranks compute on one GPU if it is 1."""

SHARE_REMEDY: Final = f"; or let ranks share one: {SHARING}=1, with NCCL 2.30.3 or later"
"""A further remedy if there are too few GPUs."""


@dataclass(frozen=True, slots=True)
class Devices:
    """The devices of all ranks, and the device of this rank."""

    by_rank: tuple[str, ...]
    """The kind of device of each rank, "cpu" or "cuda"."""
    mine: torch.device
    """The device of this rank."""
    name: str
    """The name of the device of this rank."""
    sharers: int
    """Number of ranks on that device, including this one; for a CPU, all ranks of the host."""
    note: str
    """A note for the user, the same on every rank; empty if there is nothing to report."""


@dataclass(frozen=True, slots=True)
class Claim:
    """The facts about one rank that the assignment of GPUs depends on."""

    wanted: str
    """The requested kind of device."""
    local_rank: int | None
    """Its rank on its host, from its launcher; None if the launcher sets none."""
    shares: bool
    """Whether it may use a GPU that another rank uses."""
    uuids: Sequence[str]
    """The UUIDs of the GPUs that are visible to it, in its order."""


def choose_devices(
    world: World, wanted: DeviceChoice, seen: Sequence[VisibleGpu] | None = None
) -> Devices:
    """Assign a device to every rank, and bind ranks with a GPU to cores near it. *Collective.*

    Args:
        world: all ranks, before they claim their threads.
        wanted: the requested kind of device, the same on every rank.
        seen: the visible GPUs; None to query CUDA.

    Returns:
        The devices of all ranks, and the device of this rank.

    Raises:
        InputError: `wanted` is none of the three, or not the same on every rank.
        PipeparError: a GPU is required, and this rank gets none.
        RuntimeError: CUDA cannot be initialised on this rank, although torch reports a device.
        PeerError: another rank raised one of these errors.
    """
    gpus = world.together(partial(_candidates, wanted, seen))
    claim = Claim(wanted, launcher_local_rank(), may_share(os.environ), [gpu.uuid for gpu in gpus])
    claims = [Claim(**json.loads(text)) for text in world.all_gather(json.dumps(asdict(claim)))]
    world.together(partial(_require_same, claims))
    taken = assign_gpus(world.hosts, claims)
    uuid = taken[world.rank]
    world.together(partial(_require_own_gpu, world, claim, uuid))
    by_rank = tuple("cuda" if each else "cpu" for each in taken)
    gpu = next((gpu for gpu in gpus if gpu.uuid == uuid), None)
    note = "; ".join([*_cpu_notes(world.hosts, claims, by_rank), *_bind_near(world, gpu)])
    if gpu is None:
        return Devices(by_rank, torch.device("cpu"), processor(), len(world.cores), note)
    sharers = sum(taken[rank] == uuid for rank in world.cores)
    return Devices(by_rank, torch.device("cuda", gpu.index), gpu.name, sharers, note)


def assign_gpus(hosts: Sequence[str], claims: Sequence[Claim]) -> list[str]:
    """Assign GPUs to ranks.

    The ranks of a host, one after another, take the first visible GPU that is still free. So each
    gets its own GPU, whether a launcher shows each rank one GPU or all of them. If none is free, a
    rank that may share takes the least used one, and another rank gets none.

    Args:
        hosts: the host of each rank.
        claims: the facts of each rank.

    Returns:
        The UUID of the GPU of each rank; empty if it gets none.
    """
    taken = [""] * len(claims)
    for ranks in _by_host(hosts).values():
        users: Counter[str] = Counter()
        for rank in _by_local_rank(ranks, claims):
            # The first of the least used GPUs, which is a free one as long as there is any.
            best = min(claims[rank].uuids, key=users.__getitem__, default="")
            if best and (claims[rank].shares or not users[best]):
                taken[rank] = best
                users[best] += 1
    return taken


def may_share(environment: Mapping[str, str]) -> bool:
    """Return whether a rank with this environment may share its GPU with others."""
    return environment.get(SHARING) == "1"


def gpu_remedy(ranks: int, gpus: int) -> str:
    """Return the remedy for a host with fewer visible GPUs than ranks.

    Args:
        ranks: number of ranks on the host.
        gpus: number of GPUs that are visible there.
    """
    request = (
        f"ask for a GPU for each rank (sbatch --gpus-per-node={ranks}), and set "
        "CUDA_VISIBLE_DEVICES to the GPU of the rank, or to all of them"
    )
    fewer = f"start {gpus} rank{'s' * (gpus > 1)} on that host, or " if 0 < gpus < ranks else ""
    return fewer + request


def _candidates(wanted: str, seen: Sequence[VisibleGpu] | None) -> Sequence[VisibleGpu]:
    """Return the GPUs that this rank may get; refuse an unknown kind of device."""
    if wanted not in get_args(DeviceChoice):
        expected = "expected auto, cpu or cuda; to select GPUs, set CUDA_VISIBLE_DEVICES"
        raise InputError(f"found device {wanted!r}, {expected}")
    if wanted == "cpu":
        return ()
    return visible_gpus() if seen is None else seen


def _by_host(hosts: Sequence[str]) -> dict[str, list[int]]:
    """Return the ranks of each host, ascending."""
    ranks: dict[str, list[int]] = {}
    for rank, host in enumerate(hosts):
        ranks.setdefault(host, []).append(rank)
    return ranks


def _by_local_rank(ranks: Sequence[int], claims: Sequence[Claim]) -> Sequence[int]:
    """Return the ranks of a host sorted by local rank, if these are all different."""
    numbers = {rank: number for rank in ranks if (number := claims[rank].local_rank) is not None}
    if len(set(numbers.values())) < len(ranks):
        return ranks
    return sorted(ranks, key=numbers.__getitem__)


def _require_same(claims: Sequence[Claim]) -> None:
    first = claims[0].wanted
    for rank, claim in enumerate(claims):
        if claim.wanted != first:
            raise InputError(
                f"found device {first!r} on rank 0 and {claim.wanted!r} on rank {rank}, expected "
                "the same on every rank; start all of them with the same options"
            )


def _require_own_gpu(world: World, claim: Claim, uuid: str) -> None:
    if uuid or claim.wanted != "cuda":
        return
    count, ranks = len(claim.uuids), len(world.cores)
    shown = os.environ.get("CUDA_VISIBLE_DEVICES")
    variable = "is not set" if shown is None else f"is {shown!r}"
    if count:
        remedy = gpu_remedy(ranks, count) + SHARE_REMEDY
    elif torch.version.cuda is None:
        remedy = f"install a CUDA build of torch, since this one ({torch.__version__}) has no CUDA"
    else:
        remedy = f"check that nvidia-smi works on that host; {gpu_remedy(ranks, count)}"
    raise PipeparError(
        f"rank {world.rank} on {world.host} has no GPU to compute on: it sees {_gpus(count)}, "
        f"CUDA_VISIBLE_DEVICES {variable}, and the host has {ranks} rank{'s' * (ranks > 1)}; "
        f"expected a GPU for each rank, since device is 'cuda'. {remedy[0].upper()}{remedy[1:]}; "
        "or set device to 'auto' or 'cpu'"
    )


def _cpu_notes(hosts: Sequence[str], claims: Sequence[Claim], by_rank: Sequence[str]) -> list[str]:
    """Return a note for each host with ranks without a GPU; none if no rank of the job has one."""
    notes: list[str] = []
    if "cuda" not in by_rank:
        return notes
    for host, ranks in _by_host(hosts).items():
        without = [rank for rank in ranks if by_rank[rank] == "cpu"]
        count = len({uuid for rank in ranks for uuid in claims[rank].uuids})
        if without:
            compute = "computes" if len(without) == 1 else "compute"
            see = "sees" if len(ranks) == 1 else "see"
            remedy = gpu_remedy(len(ranks), count) + (SHARE_REMEDY if count else "")
            notes.append(
                f"{named(without)} on {host} {compute} on the CPU, since {named(ranks)} there "
                f"{see} {_gpus(count)}: {remedy}"
            )
    return notes


def _bind_near(world: World, gpu: VisibleGpu | None) -> list[str]:
    """Bind this rank to cores near its GPU; return notes about ranks bound far from their GPU.

    A rank stays within the cores from its launcher. It is not bound, without a note, if ranks could
    not each keep a core of their own.
    """
    present = frozenset(world.cores[world.rank])
    near = gpu.near & present if gpu else frozenset()
    far = gpu is not None and bool(gpu.near) and not near
    mine = json.dumps([far, sorted(near or present)])
    gathered = [json.loads(text) for text in world.all_gather(mine)]
    wanted = {rank: cores_behind(gathered[rank][1]) for rank in world.cores}
    sharers = sum(cores <= wanted[world.rank] for cores in wanted.values())
    helps = bool(near) and near < present and sharers <= len(wanted[world.rank])
    world.bind(near if helps else None)
    notes = []
    for host, ranks in _by_host(world.hosts).items():
        those = [rank for rank in ranks if gathered[rank][0]]
        if those:
            notes.append(
                f"{named(those)} on {host} {'is' if len(those) == 1 else 'are'} bound to cores far "
                "from the GPU: copies to and from it take longer; bind ranks to cores near their "
                "GPUs (srun --gpu-bind=closest, mpirun --map-by numa), or do not bind them (mpirun "
                "--bind-to none)"
            )
    return notes


def _gpus(count: int) -> str:
    return f"{count or 'no'} GPU{'s' * (count != 1)}"
