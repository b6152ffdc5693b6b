"""The exit status of the command, and its last message."""

import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from pipepar.cli import app
from pipepar.comm.world import World
from pipepar.data.writers.journal import journal_of
from pipepar.errors import (
    CaptureError,
    InputError,
    PipeparError,
    PlanError,
    StageError,
    WeightsError,
)
from pipepar.supervision.failure import FailTogether
from pipepar.supervision.stopping import Stopped, reached
from tests.helpers import factories
from tests.helpers.jobs.command import MLP, command, pipepar

SIZE = ("--micro-batch", 2)


@pytest.fixture(autouse=True)
def handles_sigint() -> Iterator[None]:
    """Handle SIGINT as in a terminal: processes that a shell starts in the background ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(
    "words",
    [
        ("run",),
        ("run", MLP, "in.npy"),
        ("run", MLP, "in.npy", "o.npy", "--micro-batch", "0"),
        ("run", MLP, "in.npy", "o.npy", "--depth", "1001"),
        ("run", MLP, "in.npy", "o.npy", "--max-length", "0"),
        ("run", MLP, "in.npy", "o.npy", "--padding", "shortest"),
        ("run", MLP, "in.npy", "o.npy", "--on-error", "ignore"),
        ("plan", MLP, "--stages", "0"),
        ("plan", MLP, "--depth", "1001"),
        ("plan", MLP, "--device", "tpu"),
        ("doctor", "all"),
        ("walk",),
    ],
    ids=lambda words: " ".join(words),
)
def test_usage_errors_end_with_2(words: tuple[str, ...]) -> None:
    status, output = command(*words)
    assert status == 2
    assert "Usage: " in output


def test_the_version() -> None:
    status, output = command("--version")
    assert status == 0
    assert output.startswith("pipepar ")
    assert output[len("pipepar ")].isdigit()


@pytest.mark.parametrize(("rank", "prints"), [("0", True), ("1", False)])
def test_only_rank_0_prints_a_usage_error(
    rank: str, prints: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", rank)
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    monkeypatch.setattr("sys.argv", ["pipepar", "run"])
    waited: list[float] = []
    monkeypatch.setattr("time.sleep", waited.append)
    with pytest.raises(SystemExit) as ended:
        app.main()
    assert ended.value.code == 2
    assert ("Usage: " in capsys.readouterr().err) == prints
    assert bool(waited) != prints  # the other ranks wait until rank 0 has printed


def test_ctrl_c(rows: Path, tmp_path: Path) -> None:
    interrupted = "tests.helpers.factories:interrupted"
    status, output = pipepar("run", interrupted, rows, tmp_path / "o.npy", *SIZE)
    assert status == 130
    assert "### pipepar: rank 0 of 1 on " in output
    assert "interrupted from the keyboard" in output
    assert "Traceback" not in output
    assert not (tmp_path / "o.npy").exists()


def test_ctrl_c_during_pipepar_plan() -> None:
    status, _ = pipepar(
        "plan", "tests.helpers.functions:interrupted", "--shape", "2x4", "--stages", 2
    )
    assert status == 130


def test_ctrl_c_during_pipepar_doctor(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*which: object) -> None:
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr("os.statvfs", interrupt)
    status, output = pipepar("doctor")
    assert status == 130
    assert "interrupted from the keyboard" in output


@pytest.mark.parametrize(("factory", "name"), [("terminated", "SIGTERM"), ("warned", "SIGUSR1")])
def test_a_job_stopped_by_a_signal_can_be_resumed(
    factory: str, name: str, rows: Path, tmp_path: Path
) -> None:
    output = tmp_path / "o.npy"
    model = f"tests.helpers.factories:{factory}"
    status, words = pipepar("run", model, rows, output, *SIZE)
    assert status == 75, words
    assert f"note: {name}: no more samples begin, those under way are finished" in words
    assert words.endswith(f"stopped by {name} after 6 of 11 samples; continue with --resume")
    assert "samples in" not in words  # no summary of half a job
    assert not output.exists()
    assert journal_of(output).exists()
    status, words = command("run", model, str(rows), str(output), "--resume")
    assert status == 0, words
    assert "note: resuming: 6 of 11 samples are done already" in words
    assert "pipepar: 5 of 5 samples (100%)" in words  # of the remaining samples
    assert "5 samples in" in words
    assert not journal_of(output).exists()
    layer = getattr(factories, factory)()[0]
    with torch.no_grad():
        expected = torch.cat(
            [layer(part) for part in torch.split(torch.from_numpy(np.load(rows)), 2)]
        )
    assert torch.equal(torch.from_numpy(np.load(output)), expected)


CAUSES: dict[str, tuple[type[PipeparError], tuple[str, ...], str]] = {
    "input": (InputError, (MLP, "gone.npy"), "gone.npy"),
    "weights": (WeightsError, (MLP, "rows.npy", "--weights", "w.safetensors"), "0.weight"),
    "capture": (CaptureError, ("tests.helpers.factories:undecided", "rows.npy"), "x.sum() > 0"),
    "plan": (
        PlanError,
        ("tests.helpers.factories:one_layer", "rows.npy", "--plan", "plan.json"),
        "the plan does not fit",
    ),
    "stage": (
        StageError,
        ("tests.helpers.factories:raises_last", "rows.npy", "--micro-batch", "2"),
        "stage 0 failed on micro-batch 4",
    ),
}


@pytest.mark.parametrize(("kind", "words", "message"), CAUSES.values(), ids=CAUSES)
def test_each_kind_of_error_ends_with_1(
    kind: type[PipeparError],
    words: tuple[str, ...],
    message: str,
    rows: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(rows.parent)
    save_file({"1.weight": torch.zeros(4, 4)}, "w.safetensors")
    assert command("plan", MLP, "--stages", "1", "--shape", "2x4", "-o", "plan.json")[0] == 0
    raised: list[type[BaseException]] = []
    report = FailTogether.report

    def record(self: FailTogether, error: BaseException) -> str:
        raised.append(type(error))
        return report(self, error)

    monkeypatch.setattr(FailTogether, "report", record)
    model, source, *options = words
    status, output = command("run", model, source, "o.npy", *options)
    assert status == 1, output
    assert raised == [kind]
    assert output.count("### pipepar: rank 0 of 1 on ") == 1
    assert message in output
    assert not Path("o.npy").exists()


def test_missing_samples_are_an_error() -> None:
    """A job is not successful if the last rank has not written all samples."""
    with pytest.raises(PipeparError, match=r"3 of 11 samples never arrived at the last stage"):
        reached(World.start(), 0, "", 8, 11)
    assert reached(World.start(), 0, "", 11, 11) is None
    assert reached(World.start(), 0, "SIGTERM", 11, 11) is None
    assert reached(World.start(), 0, "SIGTERM", 8, 11) == Stopped("SIGTERM", 8, 11)


@pytest.mark.parametrize(
    "words", [("run", MLP, "in.npy", "o.npy"), ("plan", MLP, "--stages", "2"), ("doctor",)]
)
@pytest.mark.parametrize("problem", [ImportError("no libmpi.so"), RuntimeError("[the] wrong MPI")])
def test_without_a_working_mpi(
    words: tuple[str, ...], problem: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(*options: object) -> World:
        raise problem

    monkeypatch.setattr(World, "start", start)
    status, output = command(*words)
    assert status == 1
    assert output == f"error: {problem}"


def test_the_doctor_limits_the_time_for_ranks_to_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rank that waits too long is ended; the limit is removed once all ranks have started."""
    calls: list[object] = []
    world = World.start()

    def start() -> World:
        calls.append("start")
        return world

    def end_later(seconds: float, exit: bool) -> None:
        calls.append((seconds > 60, exit))

    monkeypatch.setattr(World, "start", start)
    monkeypatch.setattr("faulthandler.dump_traceback_later", end_later)
    monkeypatch.setattr("faulthandler.cancel_dump_traceback_later", lambda: calls.append("cancel"))
    monkeypatch.setattr("pipepar.comm.group.launcher.launched", lambda: True)
    assert pipepar("doctor")[0] in (0, 1)
    assert calls == [(True, True), "start", "cancel"]
