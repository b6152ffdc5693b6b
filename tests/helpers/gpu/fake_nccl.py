"""A library that stands in for NCCL, made of fake_nccl.cpp."""

import ctypes
import subprocess
from pathlib import Path

from pipepar.comm.gpu.nccl import Communicator, Nccl

SOURCE = Path(__file__).with_suffix(".cpp")
EDGE = "edge rank 0 -> rank 1"
UNIQUE_ID = bytes(range(128))
HANDLE = "0x7fff12345678"


def compiled(*options: str) -> None:
    command = ["c++", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}:\n{done.stderr}"


class Fake:
    """One copy of it, with a state of its own."""

    def __init__(self, path: Path) -> None:
        self.library = ctypes.CDLL(str(path))
        self.nccl = Nccl.load(str(path))

    def text(self, name: str) -> ctypes.Array[ctypes.c_char]:
        return (ctypes.c_char * 128).in_dll(self.library, name)

    def number(self, name: str) -> ctypes.c_int:
        return ctypes.c_int.in_dll(self.library, name)

    def fail(self, function: str, result: int, warning: str = "") -> None:
        self.text("failing").value = function.encode()
        self.number("failure").value = result
        self.text("warning").value = warning.encode()

    def calls(self) -> list[str]:
        """What was called since this was last asked."""
        calls = (ctypes.c_char * 4096).in_dll(self.library, "calls")
        lines = calls.value.decode().splitlines()
        calls.value = b""
        return lines

    def start(self, rank: int = 0, size: int = 2) -> Communicator:
        communicator = Communicator.start(self.nccl, UNIQUE_ID, rank, size, EDGE)
        self.calls()
        return communicator
