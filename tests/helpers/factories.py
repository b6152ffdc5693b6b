"""Models that tests name as tests.helpers.factories:NAME; some of them fail on purpose.

A Sequential is cut at its children and runs them unchanged, so a child can misbehave while the
pipeline runs. Before that, it writes the time to the file that PIPEPAR_TEST_CLOCK names.
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
    """Returns its input, except for the fifth micro-batch: then it calls a function."""

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
        _write_time()
        return self._spring(x)


def _write_time() -> None:
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
    """Sleep without releasing the GIL."""
    ctypes.PyDLL(None).sleep(600)
    return x


def _pause(x: torch.Tensor) -> torch.Tensor:
    """Stop the process for a while, then sleep for a while."""
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
    return nn.Sequential(*children).eval()


def _linears(count: int, width: int = 4) -> list[nn.Module]:
    """Return linear layers with the same weights in every process."""
    torch.manual_seed(0)
    return [nn.Linear(width, width) for _ in range(count)]


def mlp() -> nn.Module:
    return _model(*_linears(4))


def wide() -> nn.Module:
    """Return a model whose stages exchange enough bytes for the speed of a link to matter."""
    return _model(*_linears(4, 512))


def one_layer() -> nn.Module:
    return _model(nn.Linear(4, 4))


def one_score() -> nn.Module:
    return _model(nn.Linear(4, 4), nn.Linear(4, 1))


def raises_first() -> nn.Module:
    return _model(Trap(_raise), *_linears(2))


def raises_last() -> nn.Module:
    return _model(*_linears(2), Trap(_raise))


def kills_first() -> nn.Module:
    return _model(Trap(_kill), *_linears(2))


def kills_last() -> nn.Module:
    return _model(*_linears(2), Trap(_kill))


def stays() -> nn.Module:
    return _model(*_linears(2), Trap(_stay))


def narrows() -> nn.Module:
    """Return a model that gives the sink rows of another shape."""
    return _model(*_linears(2), Trap(_narrow))


def hoards_last() -> nn.Module:
    """Return a model that allocates a petabyte."""
    return _model(*_linears(2), Trap(_hoard))


class SlowGpu(nn.Module):
    """Keeps a GPU busy for some milliseconds, without blocking the host."""

    cycles = 10_000_000

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.is_cuda and not isinstance(x, torch._subclasses.FakeTensor):
            torch.cuda._sleep(self.cycles)  # type: ignore[no-untyped-call]
        return x.clone()


class Picky(nn.Module):
    """Fails on values above 100."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not isinstance(x, torch._subclasses.FakeTensor) and x.max() > 100:
            raise ValueError("too much")
        return x.clone()


def picky_first() -> nn.Module:
    """Return a model whose first layer fails on values above 100."""
    return _model(Picky(), *_linears(3))


def picky_last() -> nn.Module:
    """Return a model whose last layer but one fails on values above 100."""
    *layers, last = _linears(4)
    return _model(*layers, Picky(), last)


def slow_last() -> nn.Module:
    """Return a model, [b, 1024] to [b, 1024], whose last layer takes nearly all of the time."""
    return _model(*_linears(6, 1024), SlowGpu())


_SPRINGS = {"kill": _kill, "stop": _stop, "stay": _stay, "hold": _hold, "pause": _pause}


def trapped() -> nn.Module:
    """Return a model that does what PIPEPAR_TEST_TRAP names, as "ACTION RANK", on that rank."""
    action, rank = os.environ.get("PIPEPAR_TEST_TRAP", "stay -1").split()
    here = launcher_rank() == int(rank)
    if here and action == "load":
        _write_time()
        time.sleep(600)
    return _model(*(Trap(_SPRINGS.get(action, torch.clone), here) for _ in range(3)))


class Two(nn.Module):
    """Two named outputs from two named inputs."""

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
    """Returns a single number for the whole batch."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.sum()


class Halves(nn.Module):
    """Returns a dtype that NumPy does not have."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.bfloat16()


class Undecided(nn.Module):
    """Has a branch that depends on the values of its input."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 1 if x.sum() > 0 else x - 1


total, halves, undecided = Total, Halves, Undecided


def no_module() -> int:
    return 3


class Slow(nn.Module):
    """Takes some time for each micro-batch, so that a test can interrupt the job."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not isinstance(x, torch._subclasses.FakeTensor):
            time.sleep(float(os.environ.get("PIPEPAR_TEST_PAUSE", "0.02")))
            _write_time()
        return x.clone()


def slow() -> nn.Module:
    first, second = _linears(2)
    return _model(Slow(), first, Slow(), second, Slow())


class Hours(nn.Module):
    """Appends its input to the file PIPEPAR_TEST_SEEN, and is slow before a job's third start."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        seen = os.environ.get("PIPEPAR_TEST_SEEN")
        if seen and not isinstance(x, torch._subclasses.FakeTensor):
            with open(seen, "ab") as file:
                file.write(x.numpy().tobytes())
            if int(os.environ.get("SLURM_RESTART_COUNT", "0")) < 2:
                time.sleep(0.2)
        return x.clone()


def hours() -> nn.Module:
    return _model(Hours(), *_linears(2))


class Signals(nn.Module):
    """Sends a signal to its own process with the third micro-batch."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self._number = number
        self._seen = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not isinstance(x, torch._subclasses.FakeTensor):
            self._seen += 1
            if self._seen == 3:
                os.kill(os.getpid(), self._number)
                time.sleep(0.2)  # until the thread that reads signals has received it
        return x.clone()


def interrupted() -> nn.Module:
    """Return a model during whose work Ctrl-C is pressed."""
    return _model(*_linears(1), Signals(signal.SIGINT))


def terminated() -> nn.Module:
    return _model(*_linears(1), Signals(signal.SIGTERM))


def warned() -> nn.Module:
    """Return a model during whose work SIGUSR1 arrives, as before a time limit of Slurm."""
    return _model(*_linears(1), Signals(signal.SIGUSR1))
