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
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from typing import Final

from benchmarks.faults_job import PATIENCE, Job, adopt_orphans, alive
from benchmarks.faults_kinds import KINDS, LOOK, Kind, Running
from benchmarks.faults_model import Place, Reference, Setting, Workshop
from benchmarks.launch import signals_unwind
from tests.helpers.cluster.hosts import obstacle
from tests.helpers.cluster.waiting import until

_HEADS: Final = (
    *("disturbed by", "trials", "failed", "missed"),
    *("ranks: median, s", "max, s", "launcher: max, s", "done", "kept"),
)
_AFTER: Final = 3.0  # for launcher and daemons, once all ranks are gone
_PAGES: Final = 16 << 10  # for a journal, bytes


@dataclass(slots=True)
class Outcome:
    """What came of one trial."""

    problems: list[str] = field(default_factory=list)
    """What was not as it should be."""
    seconds: float | None = None
    """From the disturbance until all ranks were gone; None if it missed."""
    whole: float = 0.0
    """From the disturbance until the launcher and its daemons were gone, too."""
    done: float = 0.0
    """Share of the rows that were written when it came."""
    kept: float = 0.0
    """Share of the samples that the resumed run did not do again."""

    def check(self, holds: object, problem: str) -> None:
        """Note a problem if a condition does not hold."""
        if not holds:
            self.problems.append(problem)


def conduct(name: str, seed: int, workshop: Workshop) -> Outcome:
    """Disturb a job, and go on with it.

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
        # A launcher that is told to end may say so after all was written.
        whole = kind.may_miss and place.output.exists() and place.digest() == reference.digest
        outcome.check(whole or not place.output.exists(), f"there is a {place.output.name}")
        workshop.mend(place)
        with place.running("--resume") as job:
            _resume(job, place, reference, outcome)
    outcome.check(str(place.folder) not in Path("/proc/self/mounts").read_text(), "a mount is left")
    for host in place.hosts.names if place.hosts else ():
        outcome.check(not Path("/run/netns", host).exists(), f"namespace {host} is left")
    return outcome


def _disturb(one: Running, kind: Kind, share: float, outcome: Outcome) -> None:
    job = one.job
    until(lambda: one.rows() > 0, PATIENCE, LOOK)
    one.ranks.update(job.ranks())
    if len(one.ranks) != one.place.setting.ranks:
        outcome.check(False, f"of its ranks {sorted(one.ranks)} came to stream: {job.last_words}")
        return
    until(lambda: one.rows() >= share, PATIENCE, LOOK)
    time.sleep(one.some.uniform(0, one.reference.step))
    resumable = one.place.journal.exists()
    struck = kind.strike(one)
    begin, outcome.done = time.monotonic(), min(one.rows(), 1.0)
    until(lambda: not alive(one.ranks), kind.limit + _AFTER)
    seconds = time.monotonic() - begin
    outcome.check(not alive(one.ranks), f"ranks {alive(one.ranks)} are there after {seconds:.1f} s")
    gone = job.finish(_AFTER)
    if job.status == 0 and kind.may_miss:
        return
    outcome.seconds, outcome.whole = seconds, time.monotonic() - begin
    outcome.check(seconds <= kind.limit, f"{seconds:.1f} s, at most {kind.limit:g} s expected")
    outcome.check(gone, f"{_AFTER:g} s after the ranks there is still the launcher")
    outcome.check(not job.left(), f"left behind: {job.left()}")
    right = job.status != 0 if struck.status is None else job.status == struck.status
    outcome.check(right, f"exit status {job.status}, expected {struck.status or 'any but 0'}")
    named = {rank for rank in [struck.named] if rank is not None}
    outcome.check(set(job.named) == named, f"it named {job.named}, expected {named or 'none'}")
    outcome.check(job.blocks <= 1, f"{job.blocks} blocks, expected one at most")
    if job.blocks:
        right = job.remedies in ([1] if resumable else [0, 1])
        outcome.check(right, f"it speaks of --resume {job.remedies} times, expected once")
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
    for row in (_HEADS, ["---"] * len(_HEADS), *(_row(*each) for each in outcomes.items())):
        print(f"| {' | '.join(row)} |")


def _row(name: str, found: list[Outcome]) -> list[str]:
    harmed = [each for each in found if each.seconds is not None]
    failed = sum(bool(each.problems) for each in found)
    missed = sum(each.seconds is None and not each.problems for each in found)
    counts = map(str, (len(found), failed, missed))
    if not harmed:
        return [name, *counts, *["-"] * 5]
    ranks = [each.seconds or 0.0 for each in harmed]
    times = statistics.median(ranks), max(ranks), max(each.whole for each in harmed)
    shares = (statistics.fmean(map(attrgetter(share), harmed)) for share in ("done", "kept"))
    return [name, *counts, *(f"{each:.2f}" for each in times), *(f"{each:.0%}" for each in shares)]


def run(kinds: Sequence[str], trials: int, seed: int, samples: int) -> bool:
    """Conduct trials of these kinds, in turn; whether all went well."""
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
