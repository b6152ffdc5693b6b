"""`FailTogether`: which exceptions abort the job, and the block of text that reports them."""

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from pipepar.comm.world import World
from pipepar.data.writers.journal import journal_of
from pipepar.errors import InputError, PeerError, StageError
from pipepar.supervision.failure import FailTogether, report
from tests.helpers.jobs.threads import Aborted, in_threads

RESUME = "finished samples are saved: run again with --resume"


def with_traceback(error: BaseException) -> BaseException:
    """Return the error with a traceback."""
    try:
        raise error
    except BaseException as caught:
        return caught


def failing(error: BaseException) -> Callable[[World], str]:
    """Return a function that raises the error in `FailTogether` on rank 1."""

    def work(world: World) -> str:
        with FailTogether(world):
            if world.rank == 1:
                raise error
        return ""

    return work


def block_of(error: BaseException) -> str:
    """Return the block that ends a job of two ranks, where rank 1 raises the error."""
    with pytest.raises(Aborted) as ended:
        in_threads(2, failing(error))
    return str(ended.value)


def test_an_error_of_pipepar_is_reported_without_traceback() -> None:
    block = block_of(InputError("no such file"))
    first, *rest = block.splitlines()
    assert first.startswith("### pipepar: rank 1 of 2 on ")
    assert first.endswith(" failed")
    assert rest == ["error: no such file"]


def test_any_other_exception_is_reported_with_its_traceback() -> None:
    lines = block_of(KeyError("x")).splitlines()
    assert lines[1] == "  Traceback (most recent call last):"
    assert lines[-1] == "  KeyError: 'x'"
    assert any("in work" in line for line in lines)
    assert all(line.startswith("  ") for line in lines[1:])


def test_an_error_of_a_stage_is_reported_with_its_cause() -> None:
    error = StageError("stage 1 failed on micro-batch 4")
    error.__cause__ = with_traceback(ValueError("sprung"))
    lines = report(World.start(), error).splitlines()
    assert lines[1] == "error: stage 1 failed on micro-batch 4"
    assert lines[-1] == "  ValueError: sprung"
    assert any("in with_traceback" in line for line in lines)
    error.__cause__ = InputError("no such file")
    assert "Traceback" not in report(World.start(), error)


def test_ctrl_c_is_reported_without_traceback() -> None:
    lines = report(World.start(), with_traceback(KeyboardInterrupt())).splitlines()
    assert lines[1:] == ["interrupted from the keyboard"]


def test_an_error_of_another_rank_is_reported_by_that_rank_only() -> None:
    assert report(World.start(), PeerError("rank 1 on x: no room")) == ""

    def work(world: World) -> None:
        with FailTogether(world):
            world.together(lambda: refuse() if world.rank == 1 else None)

    def refuse() -> None:
        raise InputError("no room")

    with pytest.raises(Aborted, match=r"### pipepar: rank 1 of 3 on .* failed\nerror: no room$"):
        in_threads(3, work)


@pytest.mark.parametrize(("code", "shown"), [(0, "sys.exit(0)"), (None, "sys.exit(None)")])
def test_a_rank_that_exits_early_aborts_the_job(code: int | None, shown: str) -> None:
    block = block_of(SystemExit(code))
    assert f"error: this rank has left early, by {shown}, while others still work" in block
    assert "Traceback" not in block


def test_an_exit_with_a_status_is_reported_as_an_exception() -> None:
    assert "SystemExit: 3" in block_of(SystemExit(3))


def in_a_thread(error: BaseException) -> Callable[[World], str]:
    """Return a function that succeeds, while a thread of rank 1 raises the error."""

    def fail() -> None:
        raise error

    def work(world: World) -> str:
        with FailTogether(world) as together:
            if world.rank == 1:
                args = (type(error), error, None, threading.current_thread())
                together._in_thread(threading.ExceptHookArgs(args))
        return "continued"

    return work


def test_an_exception_in_a_thread_ends_the_job_of_several_ranks() -> None:
    with pytest.raises(Aborted, match="ValueError: in a thread"):
        in_threads(2, in_a_thread(ValueError("in a thread")))


def test_a_thread_may_exit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading, "excepthook", lambda args: None)
    assert in_threads(2, in_a_thread(SystemExit(0))) == ["continued"] * 2


def test_a_single_process_keeps_the_behaviour_of_python(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exceptions of the body propagate, and those of threads reach the usual hook."""
    seen: list[object] = []

    def hook(args: threading.ExceptHookArgs) -> None:
        seen.append(args.exc_value)

    monkeypatch.setattr(threading, "excepthook", hook)
    error = ValueError("in a thread")

    def fail() -> None:
        raise error

    def body() -> None:
        with FailTogether(World.start()):
            thread = threading.Thread(target=fail)
            thread.start()
            thread.join()
            raise KeyError("in the body")

    with pytest.raises(KeyError):
        body()
    assert seen == [error]
    assert threading.excepthook is hook


def test_the_hint_to_resume_is_added_once(tmp_path: Path) -> None:
    output = tmp_path / "o.npy"
    together = FailTogether(World.start(), output)
    assert RESUME not in together.report(InputError("no room"))
    journal_of(output).write_text("a line\n")
    assert together.report(InputError("no room")).endswith(f"error: no room\n{RESUME}")
    assert together.report(InputError("give --resume")).count("--resume") == 1
    assert together.report(PeerError("reported by rank 1")) == ""
    # The journal of an earlier run does not count.
    assert RESUME not in FailTogether(World.start(), output).report(InputError("no room"))
    assert RESUME not in FailTogether(World.start()).report(InputError("no room"))
