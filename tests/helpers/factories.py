"""Models that tests name as tests.helpers.factories:NAME, among them some that fail on purpose.

A Sequential is cut at its children and runs them as they are, so a child may misbehave while the
pipeline runs. When it does, it first writes the time to the file that PIPEPAR_TEST_CLOCK names.
"""

import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from pipepar.comm.group.launcher import launcher_rank


class Trap(nn.Module):
    """Does something unkind to the fifth micro-batch it sees."""

    def __init__(self, spring: Callable[[torch.Tensor], torch.Tensor], armed: bool = True) -> None:
        super().__init__()
        self._spring = spring
        self._armed = armed
        self._seen = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if isinstance(x, torch._subclasses.FakeTensor):
            return x.clone()
        self._seen += 1
        if self._seen != 5 or not self._armed:
            return x.clone()
        _mark()
        return self._spring(x)


def _mark() -> None:
    if clock := os.environ.get("PIPEPAR_TEST_CLOCK"):
        Path(clock).write_text(str(time.time()))


def _raise(x: torch.Tensor) -> torch.Tensor:
    raise ValueError("sprung")


def _kill(x: torch.Tensor) -> torch.Tensor:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("unreachable")


def _stay(x: torch.Tensor) -> torch.Tensor:
    time.sleep(600)
    return x


def _stop(x: torch.Tensor) -> torch.Tensor:
    os.kill(os.getpid(), signal.SIGSTOP)
    time.sleep(600)
    return x


def _hold(x: torch.Tensor) -> torch.Tensor:
    """Keeps the GIL for ever."""
    ctypes.PyDLL(None).sleep(600)
    return x


def _pause(x: torch.Tensor) -> torch.Tensor:
    """Is away for a while, and a while later slow."""
    subprocess.Popen(["sh", "-c", f"sleep 1.2; kill -CONT {os.getpid()}"])
    os.kill(os.getpid(), signal.SIGSTOP)
    time.sleep(1.2)
    return x.clone()


def _narrow(x: torch.Tensor) -> torch.Tensor:
    return x[:, :2]


def _hoard(x: torch.Tensor) -> torch.Tensor:
    torch.empty(2**50, dtype=torch.uint8, device=x.device)
    return x


def _model(*children: nn.Module) -> nn.Module:
    """Two stages' worth of linear layers with the children first, last, or around them."""
    return nn.Sequential(*children).eval()


def mlp() -> nn.Module:
    torch.manual_seed(0)
    return _model(*(nn.Linear(4, 4) for _ in range(4)))


def wide() -> nn.Module:
    """Enough crosses between its stages for a link to matter."""
    torch.manual_seed(0)
    return _model(*(nn.Linear(512, 512) for _ in range(4)))


def one_layer() -> nn.Module:
    return _model(nn.Linear(4, 4))


def one_score() -> nn.Module:
    return _model(nn.Linear(4, 4), nn.Linear(4, 1))


def raises_first() -> nn.Module:
    return _model(Trap(_raise), nn.Linear(4, 4), nn.Linear(4, 4))


def raises_last() -> nn.Module:
    torch.manual_seed(0)
    return _model(nn.Linear(4, 4), nn.Linear(4, 4), Trap(_raise))


def kills_first() -> nn.Module:
    return _model(Trap(_kill), nn.Linear(4, 4), nn.Linear(4, 4))


def kills_last() -> nn.Module:
    torch.manual_seed(0)
    return _model(nn.Linear(4, 4), nn.Linear(4, 4), Trap(_kill))


def stays() -> nn.Module:
    return _model(nn.Linear(4, 4), nn.Linear(4, 4), Trap(_stay))


def narrows() -> nn.Module:
    """The sink finds rows of another shape."""
    return _model(nn.Linear(4, 4), nn.Linear(4, 4), Trap(_narrow))


def hoards_last() -> nn.Module:
    """Asks for a petabyte."""
    return _model(nn.Linear(4, 4), nn.Linear(4, 4), Trap(_hoard))


class SlowGpu(nn.Module):
    """Keeps a GPU busy for some milliseconds, but not the host that tells it to."""

    cycles = 10_000_000

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.is_cuda and not isinstance(x, torch._subclasses.FakeTensor):
            torch.cuda._sleep(self.cycles)  # type: ignore[no-untyped-call]
        return x.clone()


class Picky(nn.Module):
    """Cannot bear a value above 100."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not isinstance(x, torch._subclasses.FakeTensor) and x.max() > 100:
            raise ValueError("too much")
        return x.clone()


def picky_first() -> nn.Module:
    """The first of its stages fails on values above 100."""
    torch.manual_seed(0)
    return _model(Picky(), *(nn.Linear(4, 4) for _ in range(3)))


def picky_last() -> nn.Module:
    """The last of its stages fails on values above 100."""
    torch.manual_seed(0)
    return _model(*(nn.Linear(4, 4) for _ in range(3)), Picky(), nn.Linear(4, 4))


def slow_last() -> nn.Module:
    """[b, 1024] to [b, 1024]; nearly all of the time goes into the last layer."""
    torch.manual_seed(0)
    return _model(*(nn.Linear(1024, 1024) for _ in range(6)), SlowGpu())


_SPRINGS = {"kill": _kill, "stop": _stop, "stay": _stay, "hold": _hold, "pause": _pause}


def trapped() -> nn.Module:
    """Springs what the first word of PIPEPAR_TEST_TRAP says, on the rank that the second says."""
    what, where = os.environ.get("PIPEPAR_TEST_TRAP", "stay -1").split()
    here = launcher_rank() == int(where)
    if here and what == "load":
        _mark()
        time.sleep(600)
    return _model(*(Trap(_SPRINGS.get(what, torch.clone), here) for _ in range(3)))


class Two(nn.Module):
    """Two outputs by name, from two inputs by name."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> dict[str, torch.Tensor]:
        hidden = self.first(x) + y
        return {"hidden": hidden, "logits": self.second(hidden)}


def two() -> nn.Module:
    torch.manual_seed(0)
    return Two().eval()


class Total(nn.Module):
    """One number for a whole batch."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.sum()


def total() -> nn.Module:
    return Total()


class Halves(nn.Module):
    """Rows of a dtype that NumPy lacks."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.bfloat16()


def halves() -> nn.Module:
    return Halves()


class Undecided(nn.Module):
    """Goes one way or the other by what is in its input."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 1 if x.sum() > 0 else x - 1


def undecided() -> nn.Module:
    return Undecided()


def no_module() -> int:
    return 3


class Slow(nn.Module):
    """Takes its time for each micro-batch, so that a job can be met at work."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not isinstance(x, torch._subclasses.FakeTensor):
            time.sleep(float(os.environ.get("PIPEPAR_TEST_PAUSE", "0.02")))
            if clock := os.environ.get("PIPEPAR_TEST_CLOCK"):
                Path(clock).write_text(str(time.time()))
        return x.clone()


def slow() -> nn.Module:
    torch.manual_seed(0)
    return _model(Slow(), nn.Linear(4, 4), Slow(), nn.Linear(4, 4), Slow())


class Hours(nn.Module):
    """Takes hours, but for a Slurm job's third start, and appends what it has seen to a file.

    Only where PIPEPAR_TEST_SEEN names the file.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        seen = os.environ.get("PIPEPAR_TEST_SEEN")
        if seen and not isinstance(x, torch._subclasses.FakeTensor):
            with open(seen, "ab") as file:
                file.write(x.numpy().tobytes())
            if int(os.environ.get("SLURM_RESTART_COUNT", "0")) < 2:
                time.sleep(0.2)
        return x.clone()


def hours() -> nn.Module:
    torch.manual_seed(0)
    return _model(Hours(), nn.Linear(4, 4), nn.Linear(4, 4))


class Told(nn.Module):
    """Sends its own process a signal with the third micro-batch."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self._number = number
        self._seen = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not isinstance(x, torch._subclasses.FakeTensor):
            self._seen += 1
            if self._seen == 3:
                os.kill(os.getpid(), self._number)
                time.sleep(0.2)  # for the thread that hears it; an interrupt comes at once
        return x.clone()


def interrupted() -> nn.Module:
    """Somebody presses Ctrl-C."""
    torch.manual_seed(0)
    return _model(nn.Linear(4, 4), Told(signal.SIGINT))


def terminated() -> nn.Module:
    torch.manual_seed(0)
    return _model(nn.Linear(4, 4), Told(signal.SIGTERM))


def warned() -> nn.Module:
    """Slurm says that time is nearly up."""
    torch.manual_seed(0)
    return _model(nn.Linear(4, 4), Told(signal.SIGUSR1))
