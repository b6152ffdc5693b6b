"""Finding NCCL's library, and NCCL itself: its header, and what can be asked of it without a GPU.

A library that is loaded stays loaded, so each test loads it in a process of its own.
"""

import ctypes
import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipepar.comm.gpu.nccl import Nccl
from pipepar.comm.gpu.nccl_h import UINT8, Config, Result, UniqueId
from pipepar.errors import WireError
from tests.helpers.gpu.fake_nccl import SOURCE, compiled


def python(code: str, **environ: str) -> str:
    """What a fresh Python prints, and that it ends well."""
    inherited = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    command = [sys.executable, "-c", code]
    environ = {**inherited, "NCCL_SOCKET_IFNAME": "lo", **environ}
    done = subprocess.run(
        command, env=environ, capture_output=True, text=True, check=False, timeout=100
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="session")
def real() -> Path:
    """The folder of the NCCL that is installed as a package."""
    try:
        package = importlib.metadata.distribution("nvidia-nccl-cu13")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("no nvidia-nccl-cu13 is installed: pip install --group nccl")
    return Path(str(package.locate_file("nvidia/nccl")))


def another(path: Path) -> str:
    """A file that a process takes for NCCL's library."""
    compiled("-shared", "-fPIC", "-Wl,-soname,libnccl.so.2", "-o", str(path), str(SOURCE))
    return str(path)


def test_importing_loads_nothing_and_no_library_is_an_error(tmp_path: Path) -> None:
    another(tmp_path / "libnccl.so.2")
    said = python(
        "import sys\n"
        "from pipepar.comm.gpu.nccl import Nccl, WireError\n"
        "assert 'torch' not in sys.modules\n"
        "try: Nccl.load()\n"
        "except WireError as error: print(error)",
        LD_LIBRARY_PATH=str(tmp_path),  # it could be found; but torch has not loaded it
    )
    assert said.startswith("no libnccl.so.2 is loaded; ")
    assert "a torch built for CUDA" in said
    assert "--device cpu" in said


def test_the_library_that_the_process_has_is_the_one(tmp_path: Path) -> None:
    code = "from pipepar.comm.gpu.nccl import Nccl; print(Nccl.load().version)"
    assert python(code, LD_PRELOAD=another(tmp_path / "libother.so")) == "(2, 30, 4)"


def test_a_file_that_is_no_library(tmp_path: Path) -> None:
    with pytest.raises(WireError, match=r"libnone.so cannot be loaded, .*No such file"):
        Nccl.load(str(tmp_path / "libnone.so"))


@pytest.fixture
def header(real: Path, tmp_path: Path) -> tuple[str, ...]:
    """Options for a compiler to read nccl.h without CUDA."""
    for name in ("cuda_fp16", "cuda_bf16", "cuda_fp8"):
        (tmp_path / f"{name}.h").touch()
    (tmp_path / "cuda_runtime.h").write_text(
        "#include <stddef.h>\n"
        "#define CUDART_VERSION 13000\n"
        "typedef struct CUstream_st* cudaStream_t;\n"
        "typedef struct CUevent_st* cudaEvent_t;\n"
    )
    return ("-I", str(tmp_path), "-I", str(real / "include"), "-include", "nccl.h")


def test_the_library_that_stands_in_has_nccls_functions(header: tuple[str, ...]) -> None:
    compiled(*header, "-fsyntax-only", str(SOURCE))


def test_types_and_values_are_those_of_nccl_h(header: tuple[str, ...], tmp_path: Path) -> None:
    config = Config.of(4)
    names = [name for name, _ in Config._fields_]
    facts = {f"offsetof(ncclConfig_t, {name})": getattr(Config, name).offset for name in names}
    facts |= {f"sizeof(ncclConfig_t::{name})": getattr(Config, name).size for name in names}
    facts |= {
        # What 2.18 added comes right behind: nothing before it is missing here.
        "offsetof(ncclConfig_t, splitShare)": ctypes.sizeof(Config),
        "sizeof(ncclUniqueId)": ctypes.sizeof(UniqueId),
        "ncclUint8": UINT8,
        "NCCL_VERSION(2, 17, 0)": config.version,
        "initial.magic": config.magic,
        "initial.cgaClusterSize": config.cgaClusterSize,
        "sizeof(ncclResult_t)": ctypes.sizeof(ctypes.c_int),
        "sizeof(ncclDataType_t)": ctypes.sizeof(ctypes.c_int),
    }
    for result in Result:
        facts["nccl" + result.name.title().replace("_", "")] = result.value
    lines = [f'    printf("%lld\\n", (long long)({fact}));\n' for fact in facts]
    probe = tmp_path / "probe.cpp"
    probe.write_text(
        "#include <cstddef>\n#include <cstdio>\n"
        f"int main() {{\n    ncclConfig_t initial = NCCL_CONFIG_INITIALIZER;\n{''.join(lines)}}}\n"
    )
    compiled(*header, "-Wno-invalid-offsetof", "-o", str(tmp_path / "probe"), str(probe))
    printed = subprocess.run([tmp_path / "probe"], capture_output=True, text=True, check=True)
    assert dict(zip(facts, map(int, printed.stdout.split()), strict=True)) == facts


def test_nccl_says_its_version_and_makes_ids(real: Path) -> None:
    said = python(
        "from pipepar.comm.gpu.nccl import Nccl\n"
        f"nccl = Nccl.load('{real}/lib/libnccl.so.2')\n"
        "ids = {nccl.unique_id() for _ in range(3)}\n"
        "print(*nccl.version, len(ids), {len(unique_id) for unique_id in ids})\n"
        "assert Nccl.load().version == nccl.version"
    )
    version = importlib.metadata.version("nvidia-nccl-cu13").split(".")
    assert said.split() == [*version[:3], "3", "{128}"]


def test_without_a_gpu_nccl_says_so(real: Path) -> None:
    said = python(
        "from pipepar.comm.gpu.nccl import Communicator, Nccl, WireError\n"
        f"nccl = Nccl.load('{real}/lib/libnccl.so.2')\n"
        "try: Communicator.start(nccl, nccl.unique_id(), 0, 1, 'edge rank 3 -> rank 4')\n"
        "except WireError as error: print(error)",
        CUDA_VISIBLE_DEVICES="",
    )
    head = "edge rank 3 -> rank 4: ncclCommInitRankConfig gave 1, unhandled cuda error"
    assert said.startswith(head)
    assert "Cuda failure" in said
    assert "nvidia-smi" in said
