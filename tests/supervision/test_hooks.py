"""A failure anywhere in a rank ends the job: what is caught, reported, or left alone."""

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from pipepar.comm.world import World
from pipepar.data.writers.journal import journal_of
from pipepar.errors import InputError, PeerError, StageError
from pipepar.supervision.failure import FailTogether, report
from tests.helpers.jobs.threads import Aborted, in_threads

RESUME = "what is done is kept: run again with --resume"


def raised(error: BaseException) -> BaseException:
    """With a traceback that leads here."""
    try:
        raise error
    except BaseException as caught:
        return caught


def failing(error: BaseException) -> Callable[[World], str]:
    """A body that fails on rank 1 of those that run it, and what that rank tells."""

    def work(world: World) -> str:
        with FailTogether(world):
            if world.rank == 1:
                raise error
        return ""

    return work


def told(error: BaseException) -> str:
    """The block that ends a job of two ranks."""
    with pytest.raises(Aborted) as ended:
        in_threads(2, failing(error))
    return str(ended.value)


def test_an_error_that_explains_itself_needs_no_traceback() -> None:
    block = told(InputError("no such file"))
    first, *rest = block.splitlines()
    assert first.startswith("### pipepar: rank 1 of 2 on ")
    assert first.endswith(" failed")
    assert rest == ["error: no such file"]


def test_any_other_shows_where_it_came_from() -> None:
    lines = told(KeyError("x")).splitlines()
    assert lines[1] == "  Traceback (most recent call last):"
    assert lines[-1] == "  KeyError: 'x'"
    assert any("in work" in line for line in lines)
    assert all(line.startswith("  ") for line in lines[1:])


def test_a_stage_s_error_shows_its_cause() -> None:
    error = StageError("stage 1 failed on micro-batch 4")
    error.__cause__ = raised(ValueError("sprung"))
    lines = report(World.start(), error).splitlines()
    assert lines[1] == "error: stage 1 failed on micro-batch 4"
    assert lines[-1] == "  ValueError: sprung"
    assert any("in raised" in line for line in lines)
    error.__cause__ = InputError("explains itself")
    assert "Traceback" not in report(World.start(), error)


def test_ctrl_c_is_no_error() -> None:
    lines = report(World.start(), raised(KeyboardInterrupt())).splitlines()
    assert lines[1:] == ["interrupted from the keyboard"]


def test_the_problem_of_another_rank_is_told_by_that_rank() -> None:
    assert report(World.start(), PeerError("rank 1 on x: no room")) == ""

    def work(world: World) -> None:
        with FailTogether(world):
            world.together(lambda: refuse() if world.rank == 1 else None)

    def refuse() -> None:
        raise InputError("no room")

    with pytest.raises(Aborted, match=r"### pipepar: rank 1 of 3 on .* failed\nerror: no room$"):
        in_threads(3, work)


@pytest.mark.parametrize(("code", "shown"), [(0, "sys.exit(0)"), (None, "sys.exit(None)")])
def test_who_leaves_early_leaves_the_others_in_the_lurch(code: int | None, shown: str) -> None:
    block = told(SystemExit(code))
    assert f"error: it left early, by {shown}, while others still work" in block
    assert "Traceback" not in block


def test_who_leaves_with_a_status_has_a_reason() -> None:
    assert "SystemExit: 3" in told(SystemExit(3))


def in_a_thread(error: BaseException) -> Callable[[World], str]:
    """A body that goes well, but for a thread of rank 1's."""

    def fail() -> None:
        raise error

    def work(world: World) -> str:
        with FailTogether(world) as together:
            if world.rank == 1:
                args = (type(error), error, None, threading.current_thread())
                together._in_thread(threading.ExceptHookArgs(args))
        return "went on"

    return work


def test_an_exception_in_a_thread_ends_the_job_of_several_ranks() -> None:
    with pytest.raises(Aborted, match="ValueError: in a thread"):
        in_threads(2, in_a_thread(ValueError("in a thread")))


def test_a_thread_may_end_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading, "excepthook", lambda args: None)
    assert in_threads(2, in_a_thread(SystemExit(0))) == ["went on"] * 2


def test_one_process_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception in the body goes on to the caller, one in a thread is shown as ever."""
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


def test_what_is_kept_is_told_once(tmp_path: Path) -> None:
    output = tmp_path / "o.npy"
    together = FailTogether(World.start(), output)
    assert RESUME not in together.report(InputError("no room"))
    journal_of(output).write_text("a line\n")
    assert together.report(InputError("no room")).endswith(f"error: no room\n{RESUME}")
    assert together.report(InputError("give --resume")).count("--resume") == 1
    assert together.report(PeerError("told by another")) == ""
    # What an earlier run has left is not this one's.
    assert RESUME not in FailTogether(World.start(), output).report(InputError("no room"))
    assert RESUME not in FailTogether(World.start()).report(InputError("no room"))
