"""A fake NCCL, compiled from fake_nccl.cpp."""

import ctypes
import subprocess
from pathlib import Path

from pipepar.comm.gpu.nccl import Communicator, Nccl

SOURCE = Path(__file__).with_suffix(".cpp")
EDGE = "edge rank 0 -> rank 1"
UNIQUE_ID = bytes(range(128))
HANDLE = "0x7fff12345678"


def run_compiler(*options: str) -> None:
    """Run the C++ compiler, which must succeed."""
    command = ["c++", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}:\n{done.stderr}"


class Fake:
    """A loaded copy of the library, with its own state."""

    def __init__(self, path: Path) -> None:
        self.library = ctypes.CDLL(str(path))
        self.nccl = Nccl(self.library)

    def text(self, name: str) -> ctypes.Array[ctypes.c_char]:
        return (ctypes.c_char * 128).in_dll(self.library, name)

    def number(self, name: str) -> ctypes.c_int:
        return ctypes.c_int.in_dll(self.library, name)

    def fail(self, function: str, result: int, warning: str = "") -> None:
        """Make a function return an error."""
        self.text("failing").value = function.encode()
        self.number("failure").value = result
        self.text("warning").value = warning.encode()

    def calls(self) -> list[str]:
        """Return the calls since the last use of this method, one line each."""
        calls = (ctypes.c_char * 4096).in_dll(self.library, "calls")
        lines = calls.value.decode().splitlines()
        calls.value = b""
        return lines

    def start(self, rank: int = 0, size: int = 2) -> Communicator:
        """Return a communicator, and forget the calls so far."""
        communicator = Communicator.start(self.nccl, UNIQUE_ID, rank, size, EDGE)
        self.calls()
        return communicator
