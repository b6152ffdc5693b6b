"""Jobs that are disturbed: whether all ranks end in time, which rank is named, what remains.

Each trial starts a job, disturbs it at a random moment, checks that all of it ends, and completes
it with --resume; the output must then equal that of an undisturbed run, byte for byte. The moment
is uniform over the written rows, up to 95 % of them (85 % where the input is cut), and from there
uniform over the time of one micro-batch. A kind and a seed repeat a trial. The full disk and the
cut link need root.
"""

from __future__ import annotations

import random
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from typing import Final

from benchmarks.catalog.faults.job import TIMEOUT, Job, adopt_orphans, alive
from benchmarks.catalog.faults.kinds import KINDS, POLL, Kind, Trial
from benchmarks.catalog.faults.workspace import JobFolder, JobSpec, UndisturbedRun, Workspace
from benchmarks.shared.benchmark import Benchmark, BenchmarkError, Option
from benchmarks.shared.run import Run
from tests.helpers.cluster.hosts import obstacle
from tests.helpers.cluster.waiting import until

_COLUMNS: Final = (
    *("disturbed by", "trials", "failed", "missed"),
    *("ranks gone: median, s", "max, s", "launcher: max, s", "done", "kept"),
)
_AFTER: Final = 3.0  # for the launcher and its daemons, after the end of all ranks
_JOURNAL_BYTES: Final = 16 << 10  # for the journal


@dataclass(slots=True)
class Outcome:
    """The outcome of one trial."""

    problems: list[str] = field(default_factory=list)
    """The violated expectations."""
    seconds: float | None = None
    """Seconds from the disturbance to the end of all ranks; None if the job completed."""
    whole: float = 0.0
    """Seconds from the disturbance to the end of the launcher and its daemons."""
    done: float = 0.0
    """The share of the rows that were written at the disturbance."""
    kept: float = 0.0
    """The share of the samples that the resumed job did not repeat."""

    def check(self, holds: object, problem: str) -> None:
        """Add a problem if a condition does not hold."""
        if not holds:
            self.problems.append(problem)


def measure(run: Run) -> None:
    """Run trials of the selected kinds in turn, and report them.

    Raises:
        BenchmarkError: a trial failed, or no trial of a kind kept any sample.
    """
    options = run.options
    kinds = list(options.only or KINDS)
    if reason := obstacle():
        kinds = [name for name in kinds if not KINDS[name].needs_root]
        run.report.note(f"no full disk and no cut link here: {reason}")
    adopt_orphans()
    outcomes: dict[str, list[Outcome]] = {name: [] for name in kinds}
    with tempfile.TemporaryDirectory(prefix="pipepar-faults-") as folder:
        workspace = Workspace(Path(folder), options.samples)
        for index in range(options.trials):
            name, seed = kinds[index % len(kinds)], options.seed + index
            try:
                outcome = conduct(name, seed, workspace)
            except Exception as error:
                outcome = Outcome([f"the trial itself failed: {error!r}"])
            outcomes[name].append(outcome)
            _print(f"--only {name} --seed {seed} --trials 1", outcome)
    run.report.table("trials", _COLUMNS, [_row(*each) for each in outcomes.items()])
    failed = sum(bool(each.problems) for found in outcomes.values() for each in found)
    idle = [name for name, found in outcomes.items() if found and not any(o.kept for o in found)]
    if failed or idle:
        raise BenchmarkError(
            f"{failed} trials failed, expected 0; kinds of which no trial kept a sample: "
            f"{', '.join(idle) or 'none'}"
        )


def conduct(name: str, seed: int, workspace: Workspace) -> Outcome:
    """Disturb a job, and resume it.

    Args:
        name: the name of the kind.
        seed: the seed of all random decisions.
        workspace: makes the files of the job.
    """
    kind, draw, outcome = KINDS[name], random.Random(f"{name} {seed}"), Outcome()
    suffixes = (".npy", ".txt")[seed % 2], (".npy", ".jsonl")[seed // 2 % 2]
    spec = JobSpec(2 + seed // 4 % 2, *suffixes)
    undisturbed = workspace.undisturbed(spec)
    share = draw.uniform(0, kind.latest)
    small = int(max(share, 0.1) * undisturbed.size) + _JOURNAL_BYTES
    capacity = small if name == "full-disk" else None
    with workspace.job_folder(spec, capacity, two=name == "cut-link") as files:
        with files.running() as job:
            trial = Trial(draw, files, undisturbed, job)
            _disturb(trial, kind, 0.0 if capacity else share, outcome)
        if outcome.seconds is None and not outcome.problems:
            same = files.digest() == undisturbed.digest
            outcome.check(same, "the job completed with a different output")
            return outcome
        # A launcher that received SIGTERM can report it after all rows were written.
        complete = files.output.exists() and files.digest() == undisturbed.digest
        outcome.check(
            (kind.may_miss and complete) or not files.output.exists(),
            f"{files.output.name} exists",
        )
        workspace.repair(files)
        with files.running("--resume") as job:
            _resume(job, files, undisturbed, outcome)
    outcome.check(str(files.folder) not in Path("/proc/self/mounts").read_text(), "a mount is left")
    for host in files.hosts.names if files.hosts else ():
        outcome.check(not Path("/run/netns", host).exists(), f"namespace {host} is left")
    return outcome


def _disturb(trial: Trial, kind: Kind, share: float, outcome: Outcome) -> None:
    job = trial.job
    until(lambda: trial.rows() > 0, TIMEOUT, POLL)
    trial.ranks.update(job.ranks())
    if len(trial.ranks) != trial.files.spec.ranks:
        outcome.check(False, f"only ranks {sorted(trial.ranks)} stream: {job.last_output}")
        return
    until(lambda: trial.rows() >= share, TIMEOUT, POLL)
    time.sleep(trial.draw.uniform(0, trial.undisturbed.step))
    resumable = trial.files.journal.exists()
    expected = kind.disturb(trial)
    begin, outcome.done = time.monotonic(), min(trial.rows(), 1.0)
    until(lambda: not alive(trial.ranks), kind.limit + _AFTER)
    seconds = time.monotonic() - begin
    outcome.check(
        not alive(trial.ranks), f"ranks {alive(trial.ranks)} still run after {seconds:.1f} s"
    )
    gone = job.finish(_AFTER)
    if job.status == 0 and kind.may_miss:
        return
    outcome.seconds, outcome.whole = seconds, time.monotonic() - begin
    outcome.check(seconds <= kind.limit, f"{seconds:.1f} s, expected at most {kind.limit:g} s")
    outcome.check(gone, f"the launcher still runs {_AFTER:g} s after the ranks")
    outcome.check(not job.left(), f"left behind: {job.left()}")
    right = job.status != 0 if expected.status is None else job.status == expected.status
    outcome.check(right, f"exit status {job.status}, expected {expected.status or 'any except 0'}")
    named = {rank for rank in [expected.named] if rank is not None}
    outcome.check(set(job.named) == named, f"ranks {job.named} named, expected {named or 'none'}")
    outcome.check(job.blocks <= 1, f"{job.blocks} error blocks, expected at most one")
    if job.blocks:
        right = job.remedies in ([1] if resumable else [0, 1])
        outcome.check(right, f"--resume mentioned {job.remedies} times, expected once")
    outcome.check(not outcome.problems, f"output: {job.last_output}")


def _resume(job: Job, files: JobFolder, undisturbed: UndisturbedRun, outcome: Outcome) -> None:
    ended = job.finish(TIMEOUT)
    outcome.kept = job.kept / undisturbed.samples
    outcome.check(ended, f"the resumed job did not end within {TIMEOUT:g} s")
    outcome.check(not job.left(), f"the resumed job left behind: {job.left()}")
    if job.status != 0:
        outcome.check(False, f"the resumed job has exit status {job.status}: {job.last_output}")
        return
    same = files.digest() == undisturbed.digest
    outcome.check(same, "the resumed job has a different output")
    outcome.check(not files.hidden, f"the resumed job left {files.hidden} next to the output")


def _row(name: str, found: Sequence[Outcome]) -> list[str]:
    disturbed = [each for each in found if each.seconds is not None]
    failed = sum(bool(each.problems) for each in found)
    missed = sum(each.seconds is None and not each.problems for each in found)
    counts = map(str, (len(found), failed, missed))
    if not disturbed:
        return [name, *counts, *["-"] * 5]
    ranks = [each.seconds or 0.0 for each in disturbed]
    times = statistics.median(ranks), max(ranks), max(each.whole for each in disturbed)
    shares = (statistics.fmean(map(attrgetter(share), disturbed)) for share in ("done", "kept"))
    return [name, *counts, *(f"{each:.2f}" for each in times), *(f"{each:.0%}" for each in shares)]


def _print(which: str, outcome: Outcome) -> None:
    word = "FAILED" if outcome.problems else "ok" if outcome.seconds else "missed"
    shares = f"{outcome.done:.0%} done, {outcome.kept:.0%} kept"
    print(f"{which}: {word}, all ranks gone after {outcome.seconds or 0:.2f} s, {shares}")
    print("".join(f"    {problem}\n" for problem in outcome.problems), end="", flush=True)


BENCHMARK: Final = Benchmark(
    question="does a disturbed job end, name the right rank, and lose nothing?",
    duration="25 minutes; as root, for a full disk and a cut link",
    measure=measure,
    options=(
        Option("trials", 100, "number of trials of all kinds together"),
        Option("seed", 0, "seed of the first trial"),
        Option("only", (), "only these kinds", tuple(KINDS)),
        Option("samples", 1000, "samples of an input"),
    ),
)
