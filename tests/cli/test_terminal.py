"""Progress: lines in a file, a bar on a terminal, and the choice between them."""

import io
import os
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
from rich.console import Console
from rich.text import Text

from pipepar.cli.terminal import loading, open_console, progress
from tests.helpers.cluster.mpirun import environment

MIB = 2**20


class Clock:
    """A clock that a test advances."""

    now = 100.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    clock = Clock()
    with monkeypatch.context() as patch:
        patch.setattr(time, "monotonic", lambda: clock.now)
        yield clock


def console(terminal: bool = False) -> tuple[Console, io.StringIO]:
    text = io.StringIO()
    return Console(file=text, width=100, force_terminal=terminal, highlight=False), text


def test_samples_are_shown_every_five_seconds_and_at_the_end(clock: Clock) -> None:
    shown, text = console()
    with progress(shown, 1100) as advance:
        for seconds, samples in ((4, 100), (1, 150), (4, 50), (0, 0), (1, 200), (1, 600)):
            clock.now += seconds
            advance(samples)
    assert text.getvalue().splitlines() == [
        "pipepar: 250 of 1,100 samples (23%), 50.0 samples/s, 17 s left",
        "pipepar: 500 of 1,100 samples (45%), 50.0 samples/s, 12 s left",
        "pipepar: 1,100 of 1,100 samples (100%), 100.0 samples/s, 0 s left",
    ]


def test_weights_are_shown_in_mib(clock: Clock) -> None:
    shown, text = console()
    with loading(shown, 3000 * MIB) as advance:
        for seconds, size in ((2, 1000), (4, 200), (1, 1800)):
            clock.now += seconds
            advance(size * MIB)
    assert text.getvalue().splitlines() == [
        "pipepar: 1,200.0 of 3,000.0 MiB of weights (40%), 200 MiB/s, 9 s left",
        "pipepar: 3,000.0 of 3,000.0 MiB of weights (100%), 429 MiB/s, 0 s left",
    ]


@pytest.mark.parametrize("show", [progress, loading])
def test_no_work_prints_nothing(show: object) -> None:
    shown, text = console()
    with show(shown, 0) as advance:  # type: ignore[operator]
        advance(0)
    assert text.getvalue() == ""


def test_a_progress_bar_of_samples() -> None:
    shown, text = console(terminal=True)
    with progress(shown, 200) as advance:
        for samples in (50, 100):
            advance(samples)
    last = Text.from_ansi(text.getvalue()).plain.splitlines()[-1]
    assert "pipepar" in last
    assert "150/200" in last
    assert "samples/s" in last
    assert "━" in last


def test_a_progress_bar_shows_the_mean_speed(clock: Clock) -> None:
    shown, text = console(terminal=True)
    with progress(shown, 200) as advance:
        clock.now += 1
        advance(150)
        clock.now += 1
        advance(50)
    assert " 100 samples/s" in Text.from_ansi(text.getvalue()).plain.splitlines()[-1]


def test_the_progress_bar_of_weights_is_erased_at_the_end() -> None:
    shown, text = console(terminal=True)
    with loading(shown, 200 * MIB) as advance:
        advance(50 * MIB)
        advance(100 * MIB)
    plain = Text.from_ansi(text.getvalue()).plain
    assert "pipepar weights" in plain
    assert "150.0/200.0 MiB" in plain
    assert text.getvalue().endswith("\x1b[2K")  # the line is wiped


def test_a_file_gets_the_given_width_and_no_colours(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for stdout in (False, True):
        opened = open_console(stdout=stdout, width=70)
        assert (opened.width, opened.is_terminal) == (70, False)
        opened.print("[red]" + "word " * 30)
    out, err = capsys.readouterr()
    assert out == err
    assert max(map(len, out.splitlines())) <= 70
    assert len(out.splitlines()) > 1
    assert open_console().width == 100


PRINT = """
import sys
from pipepar.cli.terminal import open_console
found = [open_console(stdout=stdout, width=70) for stdout in (True, False)]
print(*[(each.width, each.is_terminal) for each in found], file=open(sys.argv[1], "w"))
"""


@pytest.mark.parametrize(
    ("command", "launched", "expected"),
    [
        # In a pipe of a shell, the parent of the command is the shell, which has the terminal.
        ('"$@" 2>&1 | cat', True, "(61, True) (61, True)"),
        ('exec 1>/dev/null; "$@" 2>&1 | cat', True, "(70, False) (61, True)"),
        ('exec 2>/dev/null; "$@" 2>&1 | cat', True, "(61, True) (70, False)"),
        ('"$@" 2>&1 | cat', False, "(70, False) (70, False)"),
        ('"$@"; true', False, "(61, True) (61, True)"),
        ('"$@" >/dev/null; true', False, "(70, False) (61, True)"),
    ],
    ids=["both", "stderr", "stdout", "a pipe", "no launcher", "stdout in a file"],
)
def test_a_rank_has_a_terminal_if_its_launcher_has_one(
    command: str, launched: bool, expected: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    result = tmp_path_factory.mktemp("result") / "result"
    ours, theirs = os.openpty()
    os.set_blocking(ours, False)
    subprocess.run(["stty", "cols", "61", "rows", "24"], stdin=theirs, check=True)
    rank = {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "0"} if launched else {}
    env = {name: value for name, value in environment(rank).items() if name != "COLUMNS"}
    words = ["bash", "-c", command, "bash", sys.executable, "-c", PRINT, str(result)]
    subprocess.run(
        words, env=env, stdin=theirs, stdout=theirs, stderr=theirs, timeout=60, check=True
    )
    os.close(theirs)
    os.close(ours)
    assert result.read_text().strip() == expected
