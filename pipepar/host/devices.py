"""Which device each rank computes on: a GPU of its own where there is one, and cores near it."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias, get_args

import torch

from pipepar.comm.group.launcher import launcher_local_rank
from pipepar.comm.world import World
from pipepar.errors import InputError, PipeparError
from pipepar.format import named
from pipepar.host.machine import processor
from pipepar.host.threads import cores_behind

Wanted: TypeAlias = Literal["auto", "cpu", "cuda"]
"""What ranks are to compute on; auto: on a GPU each, as far as there are any."""

SHARING: Final = "NCCL_MULTI_RANK_GPU_ENABLE"
"""The environment variable that, at 1, lets several ranks compute on one GPU."""

LET_SHARE: Final = f"; or let ranks share one: {SHARING}=1, with NCCL 2.30.3 or later"
"""What else to do where there are GPUs, but too few."""

_PCI_DEVICES: Final = Path("/sys/bus/pci/devices")


@dataclass(frozen=True, slots=True)
class Visible:
    """A CUDA device that this process sees."""

    index: int
    """How this process numbers it, from 0."""
    uuid: str
    """Whose device it is, the same for every process of the host."""
    name: str
    """What it calls itself."""
    memory: int
    """Bytes of its memory."""
    near: frozenset[int]
    """The logical CPUs near it; none if unknown."""


@dataclass(frozen=True, slots=True)
class Devices:
    """What every rank of the job computes on, as seen by one of them."""

    by_rank: tuple[str, ...]
    """Each rank's kind of device, "cpu" or "cuda"."""
    mine: torch.device
    """This rank's own: the CPU, or a CUDA device as this process numbers it."""
    name: str
    """What that calls itself."""
    sharers: int
    """Ranks of the job on the same device, this one among them; for a CPU all ranks of the host."""
    note: str
    """What the user should know, the same on every rank; empty if all is as one would expect."""


@dataclass(frozen=True, slots=True)
class Claim:
    """What one rank brings to the sharing out of devices."""

    wanted: str
    """What the user asked for."""
    local_rank: int | None
    """Its number on its host by its launcher, None if that says none."""
    shares: bool
    """Whether it may compute on a GPU that another rank has taken."""
    uuids: Sequence[str]
    """The GPUs that it sees, in its own order."""


def visible_gpus() -> list[Visible]:
    """The CUDA devices that this process sees; starts no CUDA where there is none.

    Raises:
        RuntimeError: CUDA does not start, though torch sees a device.
    """
    # A torch built for ROCm says CUDA too, but there is no NCCL behind it.
    has_cuda = torch.version.cuda is not None and torch.cuda.is_available()
    count = torch.cuda.device_count() if has_cuda else 0
    return [_visible(index) for index in range(count)]


def choose_devices(world: World, wanted: Wanted, seen: Sequence[Visible] | None = None) -> Devices:
    """Give every rank a device, and keep one with a GPU to the cores near it. *Collective.*

    Args:
        world: all ranks; none has its threads yet.
        wanted: the same on every rank.
        seen: the GPUs that this process sees, None to look.

    Raises:
        InputError: `wanted` is none of the three, or not the same on every rank.
        PipeparError: a GPU is wanted, and this rank gets none.
        RuntimeError: CUDA does not start on this rank, though torch sees a device.
        PeerError: another rank has one of these problems, and tells it.
    """
    gpus = world.together(partial(_look, wanted, seen))
    claim = Claim(wanted, launcher_local_rank(), may_share(os.environ), [gpu.uuid for gpu in gpus])
    claims = [Claim(**json.loads(text)) for text in world.all_gather(json.dumps(asdict(claim)))]
    world.together(partial(_check_same, claims))
    taken = share_out(world.hosts, claims)
    uuid = taken[world.rank]
    world.together(partial(_check_own, world, claim, uuid))
    by_rank = tuple("cuda" if each else "cpu" for each in taken)
    gpu = next((gpu for gpu in gpus if gpu.uuid == uuid), None)
    note = "; ".join([*_left_over(world.hosts, claims, by_rank), *_stay_near(world, gpu)])
    if gpu is None:
        return Devices(by_rank, torch.device("cpu"), processor(), len(world.cores), note)
    sharers = sum(taken[rank] == uuid for rank in world.cores)
    return Devices(by_rank, torch.device("cuda", gpu.index), gpu.name, sharers, note)


def share_out(hosts: Sequence[str], claims: Sequence[Claim]) -> list[str]:
    """The UUID of the GPU that each rank gets, empty where it gets none.

    One after the other, the ranks of a host take the first that they see and nobody has. So each
    gets its own both where a launcher shows every rank one GPU, and where all ranks see all.
    """
    taken = [""] * len(claims)
    for ranks in _by_host(hosts).values():
        users: Counter[str] = Counter()
        for rank in _in_turn(ranks, claims):
            # The first of the least used: one that nobody has, as long as there is one.
            best = min(claims[rank].uuids, key=users.__getitem__, default="")
            if best and (claims[rank].shares or not users[best]):
                taken[rank] = best
                users[best] += 1
    return taken


def may_share(environment: Mapping[str, str]) -> bool:
    """Whether a rank with this environment may share its GPU with others."""
    return environment.get(SHARING) == "1"


def more_gpus(ranks: int, gpus: int) -> str:
    """What to do where so many ranks of a host do not each find one of so few GPUs."""
    ask = (
        f"ask for a GPU for each rank (sbatch --gpus-per-node={ranks}), and let "
        "CUDA_VISIBLE_DEVICES show a rank its own, or all"
    )
    fewer = f"start {gpus} rank{'s' * (gpus > 1)} on that host, or " if 0 < gpus < ranks else ""
    return fewer + ask


def cpus_of(text: str) -> frozenset[int]:
    """The CPUs in a list as the kernel writes it, such as 0-3,8."""
    cpus: set[int] = set()
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        cpus.update(range(int(first), int(last or first) + 1))
    return frozenset(cpus)


def _look(wanted: str, seen: Sequence[Visible] | None) -> Sequence[Visible]:
    if wanted not in get_args(Wanted):
        raise InputError(
            f"found device {wanted!r}, expected auto, cpu or cuda; which GPUs there are to choose "
            "from is for CUDA_VISIBLE_DEVICES to say"
        )
    if wanted == "cpu":
        return ()
    return visible_gpus() if seen is None else seen


def _visible(index: int) -> Visible:
    found: Any = torch.cuda.get_device_properties(index)
    return Visible(index, str(found.uuid), found.name, found.total_memory, _near(found))


def _near(found: Any) -> frozenset[int]:
    try:
        address = f"{found.pci_domain_id:04x}:{found.pci_bus_id:02x}:{found.pci_device_id:02x}.0"
        text = (_PCI_DEVICES / address / "local_cpulist").read_text(encoding="ascii").strip()
    except (AttributeError, OSError):  # an older torch, or a system that does not tell
        return frozenset()
    return cpus_of(text)


def _by_host(hosts: Sequence[str]) -> dict[str, list[int]]:
    """The ranks of each host, ascending."""
    ranks: dict[str, list[int]] = {}
    for rank, host in enumerate(hosts):
        ranks.setdefault(host, []).append(rank)
    return ranks


def _in_turn(ranks: Sequence[int], claims: Sequence[Claim]) -> Sequence[int]:
    """The ranks of a host in their launcher's order if that is one, else in the job's."""
    numbers = {rank: number for rank in ranks if (number := claims[rank].local_rank) is not None}
    if len(set(numbers.values())) < len(ranks):
        return ranks
    return sorted(ranks, key=numbers.__getitem__)


def _check_same(claims: Sequence[Claim]) -> None:
    first = claims[0].wanted
    for rank, claim in enumerate(claims):
        if claim.wanted != first:
            raise InputError(
                f"found device {first!r} on rank 0 and {claim.wanted!r} on rank {rank}, expected "
                "the same on every rank; start all of them with the same options"
            )


def _check_own(world: World, claim: Claim, uuid: str) -> None:
    if uuid or claim.wanted != "cuda":
        return
    count, ranks = len(claim.uuids), len(world.cores)
    shown = os.environ.get("CUDA_VISIBLE_DEVICES")
    variable = "is not set" if shown is None else f"is {shown!r}"
    if count:
        remedy = more_gpus(ranks, count) + LET_SHARE
    elif torch.version.cuda is None:
        remedy = f"install a CUDA build of torch, for this one ({torch.__version__}) has no CUDA"
    else:
        remedy = f"see that nvidia-smi works on that host; {more_gpus(ranks, count)}"
    raise PipeparError(
        f"rank {world.rank} on {world.host} has no GPU to compute on: it sees {_gpus(count)}, "
        f"CUDA_VISIBLE_DEVICES {variable}, and the host has {ranks} rank{'s' * (ranks > 1)}; "
        f"expected a GPU for each rank, since device is 'cuda'. {remedy[0].upper()}{remedy[1:]}; "
        "or let device be 'auto' or 'cpu'"
    )


def _left_over(hosts: Sequence[str], claims: Sequence[Claim], by_rank: Sequence[str]) -> list[str]:
    """A sentence for each host that has ranks without a GPU; none where the whole job has none."""
    notes: list[str] = []
    if "cuda" not in by_rank:
        return notes
    for host, ranks in _by_host(hosts).items():
        without = [rank for rank in ranks if by_rank[rank] == "cpu"]
        count = len({uuid for rank in ranks for uuid in claims[rank].uuids})
        if without:
            compute = "computes" if len(without) == 1 else "compute"
            see = "sees" if len(ranks) == 1 else "see"
            notes.append(
                f"{named(without)} on {host} {compute} on the CPU, since {named(ranks)} there "
                f"{see} {_gpus(count)}: {more_gpus(len(ranks), count)}{LET_SHARE if count else ''}"
            )
    return notes


def _stay_near(world: World, gpu: Visible | None) -> list[str]:
    """Keep this rank to the cores near its GPU; a sentence for each host where it cannot be.

    Within what its launcher bound it to, and only if that leaves every rank a core: memory that is
    near is worth less.
    """
    present = frozenset(world.cores[world.rank])
    near = gpu.near & present if gpu else frozenset()
    far = gpu is not None and bool(gpu.near) and not near
    mine = json.dumps([far, sorted(near or present)])
    gathered = [json.loads(text) for text in world.all_gather(mine)]
    wishes = {rank: cores_behind(gathered[rank][1]) for rank in world.cores}
    crowd = sum(request <= wishes[world.rank] for request in wishes.values())
    helps = bool(near) and near < present and crowd <= len(wishes[world.rank])
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
