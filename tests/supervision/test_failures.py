"""Jobs of several ranks that fail: all ranks end within seconds, and one reports the cause."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from pipepar.comm.world import World
from pipepar.jobs.run import Job, run_job
from pipepar.pipeline import Pipeline
from pipepar.supervision.failure import FailTogether
from tests.helpers.cluster.mpirun import Finished, environment, finish, mpirun, run_ranks, start
from tests.helpers.jobs.command import MLP
from tests.helpers.jobs.threads import Aborted, in_threads
from tests.helpers.jobs.traps import LIMIT, with_plan

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*they will slow each other"),
    pytest.mark.long(100),
]
ROOT = Path(__file__).parents[2]
PATIENCE = 120.0
full = partial(pytest.param, marks=pytest.mark.full)


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.npy"
    np.save(path, np.zeros((40, 4), np.float32))
    return path


def job(
    model: str, rows: Path, tmp_path: Path, ranks: int = 2, output: str = "out.npy"
) -> tuple[Finished, float]:
    """Run a job; return its result and the seconds from the failure to its end."""
    clock = tmp_path / "clock"
    command = ["-m", "pipepar", "run", f"tests.helpers.factories:{model}", str(rows)]
    command += [str(tmp_path / output), *with_plan(model, ranks, tmp_path)]
    ended = run_ranks(ranks, command, PATIENCE, {"PIPEPAR_TEST_CLOCK": str(clock)})
    seconds = time.time() - float(clock.read_text()) if clock.exists() else 0.0
    return ended, seconds


def block_of(
    model: str, rows: Path, tmp_path: Path, ranks: int = 2, output: str = "out.npy"
) -> str:
    """Return the block that ends a job whose ranks are threads."""
    new_job = Job(f"tests.helpers.factories:{model}", rows, tmp_path / output, micro_batch=2)

    def work(world: World) -> None:
        with FailTogether(world, new_job.output):
            run_job(world, new_job)

    with pytest.raises(Aborted) as ended:
        in_threads(ranks, work)
    return str(ended.value)


STAGES = [
    ("raises_first", 2, 0),
    ("raises_last", 2, 1),
    ("raises_last", 3, 2),
    ("raises_first", 3, 0),
]


def assert_reports_the_stage(output: str, ranks: int, rank: int) -> None:
    expected = f"stage {rank} failed on micro-batch 4, samples 8, 9: ValueError: sprung"
    assert expected in output
    assert output.count("### pipepar: rank") == 1
    assert f"### pipepar: rank {rank} of {ranks} on " in output


@pytest.mark.parametrize(("model", "ranks", "rank"), STAGES)
def test_an_exception_in_a_stage(
    model: str, ranks: int, rank: int, rows: Path, tmp_path: Path
) -> None:
    assert_reports_the_stage(block_of(model, rows, tmp_path, ranks), ranks, rank)
    assert not (tmp_path / "out.npy").exists()


@pytest.mark.parametrize(("model", "ranks", "rank"), STAGES[::2])
def test_an_exception_in_a_stage_ends_all_processes(
    model: str, ranks: int, rank: int, rows: Path, tmp_path: Path
) -> None:
    ended, seconds = job(model, rows, tmp_path, ranks)
    assert ended.status not in (0, -signal.SIGTERM), ended.output
    assert seconds < LIMIT
    assert_reports_the_stage(ended.output, ranks, rank)
    assert not (tmp_path / "out.npy").exists()


@pytest.mark.parametrize("model", ["kills_first", "kills_last"])
def test_a_killed_rank(model: str, rows: Path, tmp_path: Path) -> None:
    ended, seconds = job(model, rows, tmp_path)
    assert ended.status not in (0, -signal.SIGTERM), ended.output
    assert seconds < LIMIT
    assert "signal 9" in ended.output  # the launcher names the rank
    assert not (tmp_path / "out.npy").exists()


def test_an_exception_in_the_sink(rows: Path, tmp_path: Path) -> None:
    block = block_of("narrows", rows, tmp_path)
    assert "### pipepar: rank 1 of 2" in block
    assert "sample 8" in block
    assert not (tmp_path / "out.npy").exists()


@pytest.mark.full
@pytest.mark.parametrize(
    ("model", "output", "message"),
    [("narrows", "out.npy", "sample 8"), ("mlp", "no/such/out.npy", "does not exist")],
    ids=["sink", "no folder"],
)
def test_a_failure_at_the_sink_ends_all_processes(
    model: str, output: str, message: str, rows: Path, tmp_path: Path
) -> None:
    ended, seconds = job(model, rows, tmp_path, output=output)
    assert ended.status not in (0, -signal.SIGTERM), ended.output
    assert seconds < LIMIT
    assert "### pipepar: rank 1 of 2" in ended.output
    assert message in ended.output
    assert not (tmp_path / output).exists()


SCRIPT = """
import sys, threading, time
import torch
from torch import nn
from pipepar import Pipeline

def fail(seconds):
    time.sleep(seconds)
    open({clock!r}, "w").write(str(time.time()))
    raise ValueError("sprung")

def source():
    yield torch.zeros(2, 4)
    fail(0)

model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(4)))
with Pipeline(model, example_args=(torch.zeros(2, 4),)) as pipe:
    {body}
"""


@pytest.mark.parametrize(
    ("body", "message", "rank"),
    [
        (
            "if pipe.rank == 1: threading.Thread(target=fail, args=(0.2,)).start()\n"
            "    while True: pipe(torch.zeros(2, 4))",
            "ValueError: sprung",
            1,
        ),
        ("if pipe.rank == 1: sys.exit(0)\n    pipe(torch.zeros(2, 4))", "left early", 1),
        full("list(pipe.stream(source()))", "ValueError: sprung", 0),
        full("if pipe.rank == 1: fail(0)\n    pipe(torch.zeros(2, 4))", "ValueError: sprung", 1),
        full("pipe(torch.zeros(2, 4, dtype=torch.int64))", "expected", 0),
    ],
    ids=["thread", "exit", "source", "script", "input"],
)
def test_the_processes_of_a_script_end_together(
    body: str, message: str, rank: int, tmp_path: Path
) -> None:
    clock, script = tmp_path / "clock", tmp_path / "script.py"
    script.write_text(SCRIPT.format(clock=str(clock), body=body))
    ended = run_ranks(2, [str(script)], PATIENCE)
    assert ended.status not in (0, -signal.SIGTERM), ended.output
    assert message in ended.output
    assert f"### pipepar: rank {rank} of 2 on " in ended.output
    if clock.exists():
        assert time.time() - float(clock.read_text()) < LIMIT


def fail(rank: int = 1) -> None:
    if rank == 1:
        raise ValueError("sprung")


def failing_source() -> Iterator[torch.Tensor]:
    yield torch.zeros(2, 4)
    fail()


@pytest.mark.parametrize(
    ("body", "message", "rank"),
    [
        (lambda pipe: list(pipe.stream(failing_source())), "ValueError: sprung", 0),
        (lambda pipe: fail(pipe.rank), "ValueError: sprung", 1),
        (lambda pipe: pipe(torch.zeros(2, 4, dtype=torch.int64)), "expected", 0),
    ],
    ids=["source", "script", "input"],
)
def test_a_pipeline_in_a_script_with_threads_as_ranks(
    body: Callable[[Pipeline], object], message: str, rank: int
) -> None:
    def work(world: World) -> None:
        model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(4)))
        with Pipeline(model, example_args=(torch.zeros(2, 4),)) as pipe:
            body(pipe)
            pipe(torch.zeros(2, 4))

    with pytest.raises(Aborted) as ended:
        in_threads(2, work)
    assert message in str(ended.value)
    assert f"### pipepar: rank {rank} of 2 on " in str(ended.value)


def test_an_error_before_the_start_is_reported_once(rows: Path, tmp_path: Path) -> None:
    ended, _ = job("one_layer", rows, tmp_path)
    assert ended.status not in (0, -signal.SIGTERM), ended.output
    assert ended.output.count("### pipepar: rank") == 1
    assert "at most 1 rank" in ended.output
    assert "Traceback" not in ended.output


def test_the_last_rank_reports_a_missing_output_folder(rows: Path, tmp_path: Path) -> None:
    block = block_of("mlp", rows, tmp_path, output="no/such/out.npy")
    assert "### pipepar: rank 1 of 2" in block
    assert "does not exist" in block


@pytest.fixture
def at_a_terminal() -> Iterator[None]:
    """Restore SIGINT: a shell makes background processes and their children ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("at_a_terminal")
@pytest.mark.parametrize("ranks", [1, 2])
def test_ctrl_c(ranks: int, rows: Path, tmp_path: Path) -> None:
    clock = tmp_path / "clock"
    command = [sys.executable, "-m", "pipepar", "run", "tests.helpers.factories:stays", str(rows)]
    command += [str(tmp_path / "out.npy"), *with_plan("stays", ranks, tmp_path)]
    launched = command if ranks == 1 else [*mpirun(ranks), *command]
    running = start(launched, {"PIPEPAR_TEST_CLOCK": str(clock)})
    deadline = time.monotonic() + PATIENCE
    while not clock.exists():
        assert running.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    begin = time.monotonic()
    running.send_signal(signal.SIGINT)
    ended = finish(running, PATIENCE)
    assert time.monotonic() - begin < LIMIT
    assert ended.status not in (0, -signal.SIGTERM), ended.output
    assert ended.status == 130 or ranks > 1
    assert not (tmp_path / "out.npy").exists()


def test_one_process_starts_neither_mpi_nor_cuda(rows: Path, tmp_path: Path) -> None:
    script = (
        "import sys, pipepar, pipepar.pipeline, pipepar.jobs.run, pipepar.cli.app, torch;"
        "assert 'mpi4py.MPI' not in sys.modules;"
        "assert not torch.cuda.is_initialized();"
        "sys.modules['mpi4py'] = None; sys.argv[0] = 'pipepar';"
        "pipepar.cli.app.main()"
    )
    command = [sys.executable, "-c", script, "run", MLP, str(rows)]
    env = {k: v for k, v in environment().items() if not k.startswith("OMPI_")}
    subprocess.run([*command, str(tmp_path / "o.npy")], check=True, env=env, cwd=ROOT)
    assert (tmp_path / "o.npy").exists()
