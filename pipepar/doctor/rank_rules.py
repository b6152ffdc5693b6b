"""Rules for the ranks and hosts of a job: facts in, findings out.

Each rule checks one subject. It yields a finding for each fault, with what was found, what was
expected and the remedy; without a fault, it yields one finding of level ok.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from pipepar.doctor.facts import Finding, Level, RankFacts, by_host
from pipepar.format import named, readable_bytes
from pipepar.host.devices import SHARE_REMEDY, gpu_remedy
from pipepar.host.threads import overloaded

_MIB: Final = 2**20
# The limits of free bytes for a problem and for a warning. The limits of shared memory are for each
# rank of a host: Open MPI takes 16 MiB there for each.
_LEAST_SPACE: Final = {
    "shared memory": (16 * _MIB, 64 * _MIB),
    "temporary files": (64 * _MIB, 1024 * _MIB),
    "working directory": (64 * _MIB, 1024 * _MIB),
}
_SPACE_REMEDY: Final = {
    "shared memory": "start fewer ranks there, remove files that dead jobs left in it, or enlarge "
    "it (a container: --shm-size)",
    "temporary files": "remove files there, or set TMPDIR to a directory with more space",
    "working directory": "remove files there, or start in a writable directory with more space",
}


def judge_ranks(ranks: Sequence[RankFacts]) -> list[Finding]:
    """Return the findings about the ranks.

    Args:
        ranks: the facts of every rank of the job, in order; at least one.
    """
    rules = (_ranks, _cores, _threads, _environment, _devices, _mpi, _versions, _space)
    return [finding for rule in rules for finding in rule(ranks)]


def _ranks(ranks: Sequence[RankFacts]) -> Iterator[Finding]:
    """Yield the number of ranks and hosts, never as a fault."""
    hosts = len(by_host(ranks))
    found = f"{_count(len(ranks), 'rank')} on {_count(hosts, 'host')}"
    hint = "start several to have their links measured: mpirun -n 4 pipepar doctor"
    yield Finding("ranks", "ok", found, remedy=hint if len(ranks) == 1 else "")


def _cores(ranks: Sequence[RankFacts]) -> Iterator[Finding]:
    """Check that no two ranks of a host are bound to the same core."""
    overloads = [
        (host, found)
        for host, those in by_host(ranks).items()
        if (found := overloaded({facts.rank: set(facts.cores) for facts in those}))
    ]
    for host, (those, cores) in overloads:
        yield Finding(
            "cores",
            "problem",
            f"{named(those)} share {_count(cores, 'core')} on {host}",
            "a core for each rank, since ranks on one core take turns and delay every stage",
            "start fewer ranks there, or bind each to cores of its own (mpirun --bind-to core, "
            "srun --cpu-bind=cores)",
        )
    if not overloads:
        fewest = min(len(facts.cores) for facts in ranks)
        yield Finding("cores", "ok", f"each rank is bound to {_count(fewest, 'core')} or more")


def _threads(ranks: Sequence[RankFacts]) -> Iterator[Finding]:
    """Check that each rank computes with as many threads as its cores allow."""
    groups: dict[tuple[str, str, str], list[int]] = {}
    for host in by_host(ranks).values():
        for facts in host:
            if wrong := _wrong_threads(facts, host):
                groups.setdefault(wrong, []).append(facts.rank)
    for (found, expected, remedy), those in groups.items():
        found = f"{found} on {named(sorted(those))}"
        yield Finding("threads", "warning", found, expected, remedy)
    if not groups:
        fewest = min(facts.threads for facts in ranks)
        found = f"each rank computes with {_count(fewest, 'thread')} or more"
        yield Finding("threads", "ok", found)


def _wrong_threads(facts: RankFacts, host: Sequence[RankFacts]) -> tuple[str, str, str] | None:
    """Return found, expected and remedy if the number of threads is wrong, else None."""
    sharers = sum(not set(facts.cores).isdisjoint(other.cores) for other in host)
    room = max(1, len(facts.cores) // sharers)
    fair = facts.allotted // len(host)
    found = f"{_count(facts.threads, 'thread')}, bound to {_count(len(facts.cores), 'core')},"
    given = "OMP_NUM_THREADS" in facts.environment
    if facts.threads > room:
        remedy = f"unset OMP_NUM_THREADS, set it to {room}, or bind each rank to more cores"
        return found, f"{room} at most, since threads of one core take turns", remedy
    if facts.threads < fair:
        remedy = f"unset OMP_NUM_THREADS or set it to {fair}"
        if len(facts.cores) < fair:
            also = f", and {remedy}" if given else ""
            remedy = f"mpirun --map-by slot:PE={fair}, or srun --cpus-per-task={fair}{also}"
        expected = f"{fair} each, the host's {_count(facts.allotted, 'core')} shared out"
        return found, expected, remedy
    return None


def _environment(ranks: Sequence[RankFacts]) -> Iterator[Finding]:
    """Check that OMP_NUM_THREADS is the same on every rank."""
    groups = _alike(ranks, [facts.environment.get("OMP_NUM_THREADS", "") for facts in ranks])
    texts = [f"OMP_NUM_THREADS={value}" if value else "OMP_NUM_THREADS not set" for value in groups]
    if len(groups) > 1:
        yield Finding(
            "environment",
            "warning",
            _on_ranks(texts, list(groups.values())),
            "the same on every rank, since a stage with fewer threads delays the others",
            "set it for all of them (mpirun -x OMP_NUM_THREADS), or for none",
        )
    else:
        why = "" if next(iter(groups)) else ": each rank uses its share of the cores"
        yield Finding("environment", "ok", texts[0] + why)


def _devices(ranks: Sequence[RankFacts]) -> Iterator[Finding]:
    """Check that the ranks have the same kind of device, and each a GPU of its own."""
    kinds = [", ".join(facts.devices) or f"no CUDA device, {facts.cpu}" for facts in ranks]
    groups = _alike(ranks, kinds)
    wrong = [finding for host in by_host(ranks).values() for finding in _gpus(host)]
    if len(groups) > 1:
        yield Finding(
            "devices",
            "warning",
            _on_ranks(list(groups), list(groups.values())),
            "the same on every rank, since the slowest stage limits the speed",
            "ask for hosts of one kind (sbatch --constraint)",
        )
    elif not wrong:
        yield Finding("devices", "ok", kinds[0])
    yield from wrong


def _gpus(host: Sequence[RankFacts]) -> Iterator[Finding]:
    """Yield the faults in the assignment of the GPUs of a host to its ranks."""
    seen = {gpu for facts in host for gpu in facts.gpus}
    remedy = gpu_remedy(len(host), len(seen))
    without = [facts.rank for facts in host if not facts.gpu]
    if seen and without:
        found = (
            f"{_count(len(seen), 'GPU')} on {host[0].host} for {_count(len(host), 'rank')}: "
            f"{named(without)} would compute on the CPU"
        )
        expected = "a GPU for each rank, since the slowest stage limits the speed"
        yield Finding("devices", "warning", found, expected, remedy + SHARE_REMEDY)
    for gpu in dict.fromkeys(facts.gpu for facts in host if facts.gpu):
        those = [facts for facts in host if facts.gpu == gpu]
        if len(those) > 1:
            found = f"{named([facts.rank for facts in those])} on {host[0].host} would share a GPU"
            expected = "a GPU for each rank, or NCCL 2.30.3 or later, where they take turns"
            yield Finding("devices", "warning", f"{found}, {those[0].device}", expected, remedy)


def _mpi(ranks: Sequence[RankFacts]) -> Iterator[Finding]:
    libraries = _alike(ranks, [facts.mpi for facts in ranks])
    weak = [facts for facts in ranks if facts.mpi and facts.thread_level != "MPI_THREAD_MULTIPLE"]
    if len(libraries) > 1:
        yield Finding(
            "MPI",
            "problem",
            _on_ranks([library or "no MPI" for library in libraries], list(libraries.values())),
            "one library on all ranks, since different ones may be incompatible",
            "load the same MPI module on every host",
        )
    if weak:
        yield Finding(
            "MPI",
            "problem",
            f"{weak[0].thread_level} on {named([facts.rank for facts in weak])}",
            "MPI_THREAD_MULTIPLE, for the thread that moves messages while a rank computes",
            "leave mpi4py.rc.thread_level alone, or use an MPI built with thread support",
        )
    if len(libraries) == 1 and not weak:
        first = ranks[0]
        found = (
            f"{first.mpi}, {first.thread_level}" if first.mpi else "none: one process needs none"
        )
        yield Finding("MPI", "ok", found)


def _versions(ranks: Sequence[RankFacts]) -> Iterator[Finding]:
    names = list(dict.fromkeys(name for facts in ranks for name in facts.versions))
    wrong = False
    for name in names:
        groups = _alike(ranks, [facts.versions.get(name, "") for facts in ranks])
        if len(groups) > 1 or "" in groups:
            wrong = True
            yield Finding(
                "versions",
                "problem",
                _on_ranks(
                    [f"{name} {version or 'not installed'}" for version in groups],
                    list(groups.values()),
                ),
                "the same on every rank, since other versions may make different graphs",
                "start all ranks in one environment, on a file system that every host sees",
            )
    if not wrong:
        found = ", ".join(f"{name} {ranks[0].versions[name]}" for name in names)
        yield Finding("versions", "ok", found)


def _space(ranks: Sequence[RankFacts]) -> Iterator[Finding]:
    lowest: dict[str, int] = {}
    wrong = False
    for host, those in by_host(ranks).items():
        least: dict[tuple[str, str], int] = {}
        for space in (space for facts in those for space in facts.spaces):
            key = space.use, space.path
            least[key] = min(space.free, least.get(key, space.free))
            lowest[space.use] = min(space.free, lowest.get(space.use, space.free))
        for (use, path), free in least.items():
            share = len(those) if use == "shared memory" else 1
            problem, warning = (share * limit for limit in _LEAST_SPACE[use])
            if free < warning:
                wrong = True
                level: Level = "problem" if free < problem else "warning"
                found = f"{use}: {readable_bytes(free)} free in {path} on {host}"
                needed = f"{readable_bytes(warning)} or more ({_count(len(those), 'rank')} there)"
                yield Finding("space", level, found, needed, _SPACE_REMEDY[use])
    if not wrong:
        texts = [f"{use} {readable_bytes(free)}" for use, free in lowest.items()]
        yield Finding("space", "ok", f"free: {', '.join(texts)}")


def _alike(ranks: Sequence[RankFacts], values: Sequence[str]) -> dict[str, list[int]]:
    """Return the ranks with each value."""
    groups: dict[str, list[int]] = {}
    for facts, value in zip(ranks, values, strict=True):
        groups.setdefault(value, []).append(facts.rank)
    return groups


def _on_ranks(texts: Sequence[str], groups: Sequence[Sequence[int]]) -> str:
    return "; ".join(f"{text} on {named(those)}" for text, those in zip(texts, groups, strict=True))


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'s' * (number != 1)}"
