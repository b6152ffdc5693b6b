"""What `faults` disturbs: jobs of a byte-level text encoder, with a wire in it to stumble over."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import shutil
import string
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import nn

from benchmarks.encoder import Layer
from benchmarks.faults_job import (
    PATIENCE,
    Job,
    enlarge,
    file_system,
    reaches,
    running,
)
from pipepar.comm.group.launcher import launcher_rank
from pipepar.data.writers.journal import journal_of
from pipepar.data.writers.partial import partial_of
from tests.helpers.cluster.hosts import Hosts, set_link, two_hosts
from tests.helpers.cluster.mpirun import environment, mpirun
from tests.helpers.cluster.waiting import until

TRIPWIRE: Final = "PIPEPAR_FAULTS_TRIPWIRE"
"""Names a path; the layers on rank R raise once there is such a file with the suffix .R."""
LENGTH: Final = 32
"""Bytes that each text is padded or cut to."""
SILENCE: Final = 2.0
"""Seconds that a rank may give no sign of life, as the jobs are told."""
MICRO_BATCH: Final = 4
"""Samples that travel together."""

_ROOT: Final = Path(__file__).parent.parent
_WIRE: Final = "wire"
_SIZE: Final = 256
_MBIT: Final = 1000
_LAYERS: Final = 6


class Fused(Layer):
    """An encoder layer that fails when the tripwire's file appears."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Tokens to tokens, [B, S, size]."""
        wire = os.environ.get(TRIPWIRE)
        if wire and os.path.exists(f"{wire}.{launcher_rank()}"):
            raise RuntimeError("stumbled over the tripwire")
        return super().forward(x)


class Mean(nn.Module):
    """One row of features for each text."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, S, size] to [B, size]."""
        return x.mean(1)


def make() -> nn.Module:
    """The model: int64 [B, S] to float32 [B, 256], its weights the same everywhere."""
    torch.manual_seed(0)
    layers = (Fused(_SIZE) for _ in range(_LAYERS))
    model = nn.Sequential(nn.Embedding(256, _SIZE), *layers, Mean())
    return model.eval().requires_grad_(False)


def encode(texts: list[str]) -> torch.Tensor:
    """Texts to their bytes, int64 [B, 32]."""
    rows = [text.encode()[:LENGTH].ljust(LENGTH, b"\0") for text in texts]
    return torch.from_numpy(np.array([list(row) for row in rows], dtype=np.int64))


def write_input(path: Path, count: int) -> None:
    """Write so many samples, the same ones every time.

    Args:
        path: .npy for bytes as the model takes them, .txt for lines to `encode`.
        count: of samples.
    """
    some = random.Random(1)
    texts = [
        "".join(some.choices(string.ascii_letters, k=some.randint(9, 60))) for _ in range(count)
    ]
    if path.suffix == ".npy":
        np.save(path, encode(texts).numpy())
    else:
        path.write_text("".join(f"{text}\n" for text in texts), encoding="ascii")


@dataclass(frozen=True, slots=True)
class Setting:
    """Which job it is."""

    ranks: int
    """How many, on two hosts the last of them on the second."""
    input: str
    """Suffix of the input: .npy or .txt."""
    output: str
    """Suffix of the output: .npy or .jsonl."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a job runs, and on what."""

    setting: Setting
    """The job."""
    folder: Path
    """Its working directory, of its own."""
    input: Path
    """Its input file."""
    output: Path
    """Its output file."""
    plan: Path
    """Its plan."""
    hosts: Hosts | None = None
    """Two hosts, where it is on two."""

    @property
    def part(self) -> Path:
        """Where its rows are before they are complete."""
        return partial_of(self.output)

    @property
    def journal(self) -> Path:
        """Where it says which rows are safe."""
        return journal_of(self.output)

    @property
    def hidden(self) -> list[str]:
        """What lies beside the output and belongs to it."""
        return sorted(path.name for path in self.output.parent.glob(f".{self.output.name}*"))

    def wire(self, rank: int) -> Path:
        """What the layers of a rank stumble over, once it is there."""
        return self.folder / f"{_WIRE}.{rank}"

    def digest(self) -> str:
        """SHA-256 of the output."""
        return hashlib.sha256(self.output.read_bytes()).hexdigest()

    def command(self, *options: str) -> list[str]:
        """The whole command, its launcher included."""
        run = [sys.executable, "-m", "pipepar", "run", "benchmarks.faults_model:make"]
        run += [str(self.input), str(self.output), "--plan", str(self.plan), "--device", "cpu"]
        run += ["--micro-batch", str(MICRO_BATCH), *options]
        if self.setting.input == ".txt":
            run += ["--preprocess", "benchmarks.faults_model:encode"]
        if self.hosts is None:
            return [*mpirun(self.setting.ranks), *run]
        told = [word for name in (*self.environment(), "OMP_NUM_THREADS") for word in ("-x", name)]
        return self.hosts.mpirun([*told, *run], (self.setting.ranks - 1, 1))

    def running(self, *options: str) -> contextlib.AbstractContextManager[Job]:
        """The command as a job, ended at the latest when the body is over."""
        return running(self.command(*options), self.folder, self.environment())

    def environment(self) -> dict[str, str]:
        """What a job's processes are told beside what all are told."""
        return {
            "PYTHONPATH": str(_ROOT),
            "TMPDIR": str(self.folder),
            "XDG_CACHE_HOME": str(self.folder),
            "PIPEPAR_SILENCE_SECONDS": str(SILENCE),
            TRIPWIRE: str(self.folder / _WIRE),
        }


@dataclass(frozen=True, slots=True)
class Reference:
    """An undisturbed run."""

    digest: str
    """SHA-256 of its output."""
    size: int
    """Bytes of its output."""
    samples: int
    """In its input."""
    seconds: float
    """From the opening of its output to the end."""

    @property
    def step(self) -> float:
        """Seconds between one micro-batch's rows and the next one's."""
        return self.seconds * MICRO_BATCH / self.samples


class Workshop:
    """Makes what jobs need, in a folder: inputs, plans, and what undisturbed runs come to."""

    def __init__(self, folder: Path, samples: int) -> None:
        """Begin in an empty folder, with so many samples in an input."""
        self._samples = samples
        self._folder = folder
        self._references: dict[Setting, Reference] = {}

    def _input(self, setting: Setting) -> Path:
        """The input, which no job touches."""
        path = self._folder / f"input{setting.input}"
        if not path.exists():
            write_input(path, self._samples)
        return path

    def reference(self, setting: Setting) -> Reference:
        """What a job comes to that nothing disturbs."""
        if setting not in self._references:
            self._references[setting] = self._undisturbed(setting)
        return self._references[setting]

    @contextlib.contextmanager
    def place(
        self, setting: Setting, room: int | None = None, two: bool = False
    ) -> Iterator[Place]:
        """Where a job can run, with an input and a plan; gone again afterwards.

        Args:
            setting: the job.
            room: bytes that its output's file system holds; None for one without such a limit.
            two: whether on two hosts.
        """
        with contextlib.ExitStack() as held:
            folder = Path(held.enter_context(tempfile.TemporaryDirectory(dir=self._folder)))
            (folder / "out").mkdir()
            if room is not None:
                held.enter_context(file_system(folder / "out", room))
            hosts = held.enter_context(two_hosts(_MBIT)) if two else None
            copy, output = folder / f"in{setting.input}", folder / "out" / f"out{setting.output}"
            shutil.copyfile(self._input(setting), copy)
            yield Place(setting, folder, copy, output, self._plan(setting.ranks), hosts)

    def mend(self, place: Place) -> None:
        """Take away whatever disturbed a job."""
        for rank in range(place.setting.ranks):
            place.wire(rank).unlink(missing_ok=True)
        shutil.copyfile(self._input(place.setting), place.input)
        if os.path.ismount(place.output.parent):
            enlarge(place.output.parent, 64 << 20)
        if place.hosts is not None:
            names, addresses = place.hosts.names, place.hosts.addresses
            for name in names:
                set_link(name, "up")
            # A host asks for the other's hardware address again, and refuses meanwhile.
            pairs = list(zip(names, reversed(addresses), strict=True))
            until(lambda: all(reaches(*pair) for pair in pairs), 10)

    def _undisturbed(self, setting: Setting) -> Reference:
        with self.place(setting) as place, place.running() as job:
            until(lambda: place.part.exists() or job.status is not None, PATIENCE)
            begin = time.monotonic()
            until(lambda: place.output.exists() or job.status is not None, PATIENCE)
            seconds = time.monotonic() - begin
            if not job.finish(PATIENCE) or job.status != 0:
                raise RuntimeError(f"{setting}, which nothing disturbed, failed: {job.said}")
            print(f"undisturbed: {setting}, streams for {seconds:.1f} s", flush=True)
            size = place.output.stat().st_size
            return Reference(place.digest(), size, self._samples, seconds)

    def _plan(self, ranks: int) -> Path:
        path = self._folder / f"plan{ranks}.json"
        if not path.exists():
            example = self._input(Setting(ranks, ".npy", ".npy"))
            command = [sys.executable, "-m", "pipepar", "plan", "benchmarks.faults_model:make"]
            command += ["--stages", str(ranks), "--input", str(example), "-o", str(path)]
            env = environment({"XDG_CACHE_HOME": str(self._folder)})
            planned = subprocess.run(
                command, env=env, timeout=PATIENCE, check=False, capture_output=True, text=True
            )
            if planned.returncode != 0:
                raise RuntimeError(f"no plan: {planned.stdout}{planned.stderr}")
        return path
