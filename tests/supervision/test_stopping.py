"""Jobs of several ranks that are killed or stopped by a signal, and then resumed."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from pipepar.comm.world import World
from pipepar.data.writers.journal import journal_of, read_journal
from pipepar.jobs.run import Job, run_job
from pipepar.progress import Display, silent
from tests.helpers.cluster import waiting
from tests.helpers.cluster.mpirun import finish, mpirun, run_ranks, start
from tests.helpers.jobs.command import MLP, command
from tests.helpers.jobs.threads import in_threads

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*they will slow each other"),
    pytest.mark.long(100),
]
PATIENCE = 120.0
SAMPLES = 81
SLOW = "tests.helpers.factories:slow"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("in") / "rows.npy"
    np.save(path, np.random.default_rng(1).random((SAMPLES, 4), np.float32))
    return path


@pytest.fixture(scope="module")
def whole(source: Path) -> Path:
    """Return the output of an uninterrupted run."""
    path = source.parent / "whole.npy"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PIPEPAR_TEST_PAUSE", "0")
        run_job(World.start(), Job(SLOW, source, path, micro_batch=2))
    return path


def job(source: Path, output: Path, *options: str) -> list[str]:
    size = () if "--resume" in options else ("--micro-batch", "2")
    return ["-m", "pipepar", "run", SLOW, str(source), str(output), *size, *options]


def begin(ranks: int, command: list[str], output: Path) -> subprocess.Popen[str]:
    """Start a job and wait until it has written the first results."""
    alone = [sys.executable, *command]
    running = start(alone if ranks == 1 else [*mpirun(ranks), *alone])
    until(running, journal_of(output).exists)
    return running


def ranks_of(running: subprocess.Popen[str]) -> list[int]:
    """Return the process ids of a job's ranks, by rank."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "environ").read_bytes().split(b"\0")
            if os.getsid(int(folder.name)) == running.pid or b"pipepar" in words:
                rank = next(w for w in words if w.startswith(b"OMPI_COMM_WORLD_RANK="))
                command = (folder / "cmdline").read_bytes()
                if b"pipepar" in command and os.getpgid(int(folder.name)) != running.pid:
                    found[int(rank.partition(b"=")[2])] = int(folder.name)
        except (OSError, StopIteration):
            continue  # the process has ended, or is not a rank
    return [found[rank] for rank in sorted(found)]


def resume(ranks: int, source: Path, output: Path, whole: Path) -> list[str]:
    """Resume a job to its end, with threads as ranks; return the notes of rank 0."""
    notes: list[str] = []
    display = Display(silent, silent, notes.append)
    resumed = Job(SLOW, source, output, resume=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PIPEPAR_TEST_PAUSE", "0")
        in_threads(ranks, lambda world: run_job(world, resumed, display))
    assert output.read_bytes() == whole.read_bytes()
    assert sorted(os.listdir(output.parent)) == [output.name]
    return notes


def resume_in_processes(ranks: int, source: Path, output: Path, whole: Path) -> str:
    """Resume a job to its end under mpirun; return what it prints."""
    ended = run_ranks(ranks, job(source, output, "--resume"), PATIENCE, {"PIPEPAR_TEST_PAUSE": "0"})
    assert ended.status == 0, ended.output
    assert output.read_bytes() == whole.read_bytes()
    assert sorted(os.listdir(output.parent)) == [output.name]
    return ended.output


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_killed_at_any_moment(ranks: int, source: Path, whole: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.npy"
    running = begin(ranks, job(source, output), output)
    time.sleep(random.uniform(0, 0.4))  # three ranks take 0.8 s for all samples
    assert running.poll() is None
    for process in ranks_of(running) if ranks > 1 else [running.pid]:
        os.kill(process, signal.SIGKILL)
    assert finish(running, PATIENCE).status != 0
    assert not output.exists()
    done = sum(len(record.samples) for record in read_journal(output)[1])
    assert 0 < done < SAMPLES
    notes = resume(4 - ranks, source, output, whole)
    assert f"resuming: {done} of {SAMPLES} samples are done already" in notes


def test_a_signal_to_the_job(source: Path, whole: Path, tmp_path: Path) -> None:
    """mpirun forwards SIGUSR1, but handles SIGTERM itself."""
    number = signal.SIGUSR1
    output = tmp_path / "out.npy"
    running = begin(2, job(source, output), output)
    running.send_signal(number)
    ended = finish(running, PATIENCE)
    assert ended.status == 75, ended.output
    assert ended.output.count(f"stopped by {number.name} after ") == 1, ended.output
    assert f" of {SAMPLES} samples; continue with --resume" in ended.output
    assert "### pipepar" not in ended.output
    printed = resume_in_processes(2, source, output, whole)
    assert f" of {SAMPLES} samples are done already" in printed


@pytest.mark.parametrize(
    ("rank", "ranks", "number"),
    [(0, 2, signal.SIGTERM), (1, 2, signal.SIGUSR1), (2, 3, signal.SIGTERM)],
)
def test_a_signal_to_one_rank(
    rank: int, ranks: int, number: signal.Signals, source: Path, whole: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out.npy"
    running = begin(ranks, job(source, output), output)
    os.kill(ranks_of(running)[rank], number)
    ended = finish(running, PATIENCE)
    assert ended.status == 75, ended.output
    assert ended.output.count(f"stopped by {number.name} after ") == 1, ended.output
    resume(1, source, output, whole)


def test_sigterm_to_mpirun(source: Path, whole: Path, tmp_path: Path) -> None:
    """mpirun gives its ranks a quarter of a second, which may be too short for an orderly stop."""
    output = tmp_path / "out.npy"
    running = begin(2, job(source, output), output)
    ranks = ranks_of(running)
    running.send_signal(signal.SIGTERM)
    assert finish(running, PATIENCE).status != 0
    assert waiting.until(lambda: all(map(has_ended, ranks)), PATIENCE)
    resume(2, source, output, whole)


def has_ended(process: int) -> bool:
    """Return whether a process has closed its files, and so released the lock on its output."""
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2]
    except OSError:
        return True
    return state.split()[0] in "ZX"


def test_a_signal_at_the_very_start(source: Path, tmp_path: Path) -> None:
    """The signal stays pending until the job listens for signals."""
    running = start([sys.executable, *job(source, tmp_path / "out.npy")])
    until(running, lambda: blocks(running.pid, signal.SIGUSR1))
    running.send_signal(signal.SIGUSR1)
    ended = finish(running, PATIENCE)
    assert ended.status == 75, ended.output
    assert "stopped by SIGUSR1 before it began; continue with --resume" in ended.output


def test_signals_at_the_very_end(source: Path, whole: Path, tmp_path: Path) -> None:
    """They do not change the exit status of a job that is done."""
    output = tmp_path / "out.npy"
    running = start([sys.executable, *job(source, output)], {"PIPEPAR_TEST_PAUSE": "0"})
    until(running, output.exists)
    while running.poll() is None:
        running.send_signal(signal.SIGUSR1)
        time.sleep(0.002)
    assert running.returncode == 0, finish(running, PATIENCE).output
    assert output.read_bytes() == whole.read_bytes()


def until(running: subprocess.Popen[str], condition: Callable[[], bool]) -> None:
    """Wait until a condition is true while a job runs."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert running.poll() is None, finish(running, PATIENCE).output
        assert time.monotonic() < deadline
        time.sleep(0.002)


def blocks(process: int, number: int) -> bool:
    """Return whether a process blocks a signal."""
    status = Path(f"/proc/{process}/status").read_text()
    (mask,) = (line.split()[1] for line in status.splitlines() if line.startswith("SigBlk:"))
    return bool(int(mask, 16) >> (number - 1) & 1)


def test_a_second_signal_ends_at_once(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, clock = tmp_path / "out.npy", tmp_path / "clock"
    command = job(source, output)
    command[3] = "tests.helpers.factories:stays"
    monkeypatch.setenv("PIPEPAR_TEST_CLOCK", str(clock))
    running = begin(1, command, output)
    until(running, clock.exists)  # the stage computes and does not end
    first = time.monotonic()
    running.send_signal(signal.SIGTERM)
    time.sleep(0.2)
    running.send_signal(signal.SIGTERM)  # a launcher and a batch system may both send it
    time.sleep(max(first + 1.3 - time.monotonic(), 0))
    assert running.poll() is None
    running.send_signal(signal.SIGTERM)
    ended = finish(running, 5)
    assert ended.status == 128 + signal.SIGTERM
    assert "no more samples begin" in ended.output
    assert "ended at once by a second SIGTERM; continue with --resume" in " ".join(
        ended.output.split()
    )
    assert journal_of(output).exists()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a file system of 64 KiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("this user may not mount a file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("suffix", [".npy", ".jsonl"])
def test_a_full_disk(small_disk: Path, tmp_path: Path, suffix: str) -> None:
    np.save(tmp_path / "in.npy", np.random.default_rng(2).random((9000, 4), np.float32))
    output, whole = small_disk / f"out{suffix}", tmp_path / f"whole{suffix}"

    def job(path: Path, *options: object) -> tuple[int, str]:
        return command(*map(str, ("run", MLP, tmp_path / "in.npy", path, *options)))

    status, printed = job(whole, "--micro-batch", 8)
    assert status == 0, printed
    status, printed = job(output, "--micro-batch", 8)
    assert status == 1
    assert "No space left on device" in printed
    assert not output.exists()
    remount = ["mount", "-o", "remount,size=8m", str(small_disk)]
    subprocess.run(remount, check=True)
    status, printed = job(output, "--resume")
    assert status == 0, printed
    assert "resuming: " in printed
    assert output.read_bytes() == whole.read_bytes()
