"""Jobs that are disturbed: do all ranks end in time, is the right one named, what is kept?

    python -m benchmarks.faults [--trials N] [--seed S] [--only KIND ...] [--samples N]

Each trial starts a job, disturbs it at a random moment, looks whether all of it ends, and goes on
with it by --resume: the output must then be that of an undisturbed run, byte for byte. The moment
is uniform over the streaming: over the rows that are written, up to 95 % of them (85 % where the
input is cut), and from there over the time of one micro-batch. A trial is repeated by its kind and
its seed. The full disk and the cut link need root.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from benchmarks.faults_job import PATIENCE, Job, adopt_orphans, alive, set_link, until
from benchmarks.faults_model import SILENCE, Place, Reference, Setting, Workshop
from benchmarks.hosts import obstacle
from benchmarks.launch import signals_unwind

_SLACK: Final = 3.0  # beyond the limit of silence: to gather stacks, and to end
_AFTER: Final = 5.0  # for launcher and daemons, once all ranks are gone
_LOOK: Final = 0.002
_PAGES: Final = 16 << 10  # for a journal, bytes
_STOPPED: Final = 75  # exit status of a job that was told to stop


@dataclass(frozen=True, slots=True)
class Running:
    """A job that is about to be disturbed."""

    some: random.Random
    """Decides what is left to chance."""
    place: Place
    """Where it runs."""
    reference: Reference
    """What it would come to."""
    job: Job
    """The job itself."""
    ranks: dict[int, int] = field(default_factory=dict)
    """Process ids of its ranks, once it streams."""

    def rows(self) -> float:
        """Share of the rows that are written by now."""
        try:
            return self.place.part.stat().st_size / self.reference.size
        except FileNotFoundError:
            return 1.0 if self.job.status is not None else 0.0

    def signal_a_rank(self, number: signal.Signals) -> int:
        """Send a signal to a random rank, which is returned."""
        rank = self.some.randrange(self.place.setting.ranks)
        os.kill(self.ranks[rank], number)
        return rank


@dataclass(frozen=True, slots=True)
class Struck:
    """What was done to a job."""

    named: int | None
    """The rank that must be named; None if none may."""
    status: int | None = None
    """The exit status that must follow; None for any but 0."""


def _kill(one: Running) -> Struck:
    return Struck(one.signal_a_rank(signal.SIGKILL))


def _stop(one: Running) -> Struck:
    return Struck(one.signal_a_rank(signal.SIGSTOP))


def _terminate(one: Running) -> Struck:
    if one.some.random() < 0.5:
        os.kill(one.job.launcher, signal.SIGTERM)
        return Struck(None)
    one.signal_a_rank(signal.SIGTERM)
    return Struck(None, _STOPPED)


def _raise(one: Running) -> Struck:
    rank = one.some.randrange(one.place.setting.ranks)
    one.place.wire(rank).touch()
    return Struck(rank)


def _fill(one: Running) -> Struck:
    """Nothing is to be done: the file system was made too small."""
    folder = one.place.output.parent
    until(lambda: not os.statvfs(folder).f_bavail or one.job.status is not None, PATIENCE, _LOOK)
    return Struck(one.place.setting.ranks - 1)


def _cut(one: Running) -> Struck:
    """At random, at most a little ahead of where the input is being read."""
    size = one.place.input.stat().st_size
    os.truncate(one.place.input, int(size * one.some.uniform(0, min(1, one.rows() + 0.1))))
    return Struck(0)


def _unlink(one: Running) -> Struck:
    assert one.place.hosts is not None
    set_link(one.some.choice(one.place.hosts.names), "down")
    return Struck(one.place.setting.ranks - 1)


@dataclass(frozen=True, slots=True)
class Kind:
    """One way to disturb a job."""

    strike: Callable[[Running], Struck]
    """Does it."""
    limit: float = 5.0
    """Seconds after which all ranks must be gone."""
    latest: float = 0.95
    """Share of the rows up to which it comes."""
    needs_root: bool = False
    """Whether nobody else can do it."""
    may_miss: bool = False
    """Whether a job that is nearly done may come to its end all the same."""


KINDS: Final = {
    "killed-rank": Kind(_kill),
    "stopped-rank": Kind(_stop, limit=SILENCE + _SLACK),
    "sigterm": Kind(_terminate, may_miss=True),
    "exception": Kind(_raise, may_miss=True),
    "full-disk": Kind(_fill, needs_root=True),
    "cut-input": Kind(_cut, latest=0.85, may_miss=True),
    "cut-link": Kind(_unlink, limit=SILENCE + _SLACK, needs_root=True),
}


@dataclass(slots=True)
class Outcome:
    """What came of one trial."""

    problems: list[str] = field(default_factory=list)
    """What was not as it should be."""
    seconds: float | None = None
    """From the disturbance until all ranks were gone; None if they never were, or it missed."""
    done: float = 0.0
    """Share of the rows that were written when it came."""
    kept: float = 0.0
    """Share of the samples that the resumed run did not do again."""

    def check(self, holds: object, problem: str) -> None:
        """Note a problem if a condition does not hold."""
        if not holds:
            self.problems.append(problem)


def conduct(name: str, seed: int, workshop: Workshop) -> Outcome:
    """Disturb a job, and go on with it. *Local.*

    Args:
        name: of the kind.
        seed: decides everything else.
        workshop: makes what a job needs.
    """
    kind, some, outcome = KINDS[name], random.Random(f"{name} {seed}"), Outcome()
    suffixes = (".npy", ".txt")[seed % 2], (".npy", ".jsonl")[seed // 2 % 2]
    setting = Setting(2 + seed // 4 % 2, *suffixes)
    reference = workshop.reference(setting)
    share = some.uniform(0, kind.latest)
    room = int(max(share, 0.1) * reference.size) + _PAGES if name == "full-disk" else None
    with workshop.place(setting, room, two=name == "cut-link") as place:
        with place.running() as job:
            _disturb(Running(some, place, reference, job), kind, 0.0 if room else share, outcome)
        if outcome.seconds is None and not outcome.problems:
            outcome.check(place.digest() == reference.digest, "it ended with another output")
            return outcome
        outcome.check(not place.output.exists(), f"there is a {place.output.name}")
        workshop.mend(place)
        with place.running("--resume") as job:
            _resume(job, place, reference, outcome)
    outcome.check(str(place.folder) not in Path("/proc/self/mounts").read_text(), "a mount is left")
    for host in place.hosts.names if place.hosts else ():
        outcome.check(not Path("/run/netns", host).exists(), f"namespace {host} is left")
    return outcome


def _disturb(one: Running, kind: Kind, share: float, outcome: Outcome) -> None:
    job = one.job
    until(lambda: one.rows() > 0, PATIENCE, _LOOK)
    one.ranks.update(job.ranks())
    if len(one.ranks) != one.place.setting.ranks:
        outcome.check(False, f"of its ranks {sorted(one.ranks)} came to stream: {job.last_words}")
        return
    until(lambda: one.rows() >= share, PATIENCE, _LOOK)
    time.sleep(one.some.uniform(0, one.reference.step))
    struck = kind.strike(one)
    begin, outcome.done = time.monotonic(), min(one.rows(), 1.0)
    until(lambda: not alive(one.ranks), kind.limit + _AFTER)
    seconds = time.monotonic() - begin
    outcome.check(not alive(one.ranks), f"ranks {alive(one.ranks)} are there after {seconds:.1f} s")
    gone = job.finish(_AFTER)
    if job.status == 0 and kind.may_miss:
        return
    outcome.seconds = seconds
    outcome.check(seconds <= kind.limit, f"{seconds:.1f} s, at most {kind.limit:g} s expected")
    outcome.check(gone, f"{_AFTER:g} s after the ranks there is still the launcher")
    outcome.check(not job.left(), f"left behind: {job.left()}")
    right = job.status != 0 if struck.status is None else job.status == struck.status
    outcome.check(right, f"exit status {job.status}, expected {struck.status or 'any but 0'}")
    named = {rank for rank in [struck.named] if rank is not None}
    outcome.check(set(job.named) == named, f"it named {job.named}, expected {named or 'none'}")
    outcome.check(job.blocks <= 1, f"{job.blocks} blocks, expected one at most")
    outcome.check(not outcome.problems, f"it said: {job.last_words}")


def _resume(job: Job, place: Place, reference: Reference, outcome: Outcome) -> None:
    ended = job.finish(PATIENCE)
    outcome.kept = job.kept / reference.samples
    outcome.check(ended, f"resumed, it did not end in {PATIENCE:g} s")
    outcome.check(not job.left(), f"resumed, it left behind: {job.left()}")
    if job.status != 0:
        outcome.check(False, f"resumed, exit status {job.status}; it said: {job.last_words}")
        return
    outcome.check(place.digest() == reference.digest, "resumed, the output is another one")
    outcome.check(not place.hidden, f"resumed, {place.hidden} lie beside the output")


def _print(outcomes: dict[str, list[Outcome]]) -> None:
    rows = []
    for name, found in outcomes.items():
        seconds = [each.seconds for each in found if each.seconds is not None] or [float("nan")]
        harmed = [each for each in found if each.seconds is not None]
        shares = [
            f"{statistics.fmean(values):.0%}" if values else "-"
            for values in ([each.done for each in harmed], [each.kept for each in harmed])
        ]
        times = [f"{statistics.median(seconds):.2f}", f"{max(seconds):.2f}"]
        failed = sum(bool(each.problems) for each in found)
        missed = sum(each.seconds is None and not each.problems for each in found)
        counts = map(str, (len(found), failed, missed))
        rows.append([name, *counts, *times, *shares])
    heads = ["disturbed by", "trials", "failed", "missed", "median, s", "max, s", "done", "kept"]
    for row in (heads, ["---"] * len(heads), *rows):
        print(f"| {' | '.join(row)} |")


def run(kinds: Sequence[str], trials: int, seed: int, samples: int) -> bool:
    """Conduct trials of these kinds, in turn; whether all went well. *Local.*"""
    outcomes: dict[str, list[Outcome]] = {name: [] for name in kinds}
    with tempfile.TemporaryDirectory(prefix="pipepar-faults-") as folder:
        workshop = Workshop(Path(folder), samples)
        for at in range(trials):
            name = kinds[at % len(kinds)]
            try:
                outcome = conduct(name, seed + at, workshop)
            except Exception as error:
                outcome = Outcome([f"the trial itself failed: {error!r}"])
            outcomes[name].append(outcome)
            _tell(f"--only {name} --seed {seed + at} --trials 1", outcome)
    _print(outcomes)
    idle = [name for name, found in outcomes.items() if found and not any(o.kept for o in found)]
    print("".join(f"{name}: no trial kept anything\n" for name in idle), end="")
    return not idle and not any(each.problems for found in outcomes.values() for each in found)


def _tell(which: str, outcome: Outcome) -> None:
    word = "FAILED" if outcome.problems else "ok" if outcome.seconds else "missed"
    shares = f"{outcome.done:.0%} done, {outcome.kept:.0%} kept"
    print(f"{which}: {word}, all ranks gone after {outcome.seconds or 0:.2f} s, {shares}")
    print("".join(f"    {problem}\n" for problem in outcome.problems), end="", flush=True)


def main() -> int:
    """Conduct trials; 0 if all went well."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--trials", type=int, default=100, help="of all kinds together [100]")
    parser.add_argument("--seed", type=int, default=0, help="of the first trial [0]")
    parser.add_argument("--only", choices=KINDS, action="append", help="this kind; may be repeated")
    parser.add_argument("--samples", type=int, default=1000, help="of an input [1000]")
    options = parser.parse_args()
    kinds = options.only or list(KINDS)
    if reason := obstacle():
        kinds = [name for name in kinds if not KINDS[name].needs_root]
        print(f"faults: no full disk and no cut link here: {reason}")
    adopt_orphans()
    with signals_unwind():
        return 0 if run(kinds, options.trials, options.seed, options.samples) else 1


if __name__ == "__main__":
    sys.exit(main())
