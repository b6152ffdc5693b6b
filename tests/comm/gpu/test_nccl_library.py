"""Loading of NCCL's library, the declarations of its header, and its functions without a GPU.

A library stays loaded, so each test loads it in its own process.
"""

import ctypes
import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipepar.comm.gpu.nccl_h import UINT8, Config, Result, UniqueId
from tests.helpers.gpu.fake_nccl import SOURCE, run_compiler


def python(code: str, **environ: str) -> str:
    """Return what a new Python process prints; it must end with status 0."""
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
    """Return the folder of the installed NCCL package."""
    try:
        package = importlib.metadata.distribution("nvidia-nccl-cu13")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("nvidia-nccl-cu13 is not installed: pip install --group nccl")
    return Path(str(package.locate_file("nvidia/nccl")))


def fake_library(path: Path) -> str:
    """Compile the fake NCCL to a file, with the library name of the real one."""
    run_compiler("-shared", "-fPIC", "-Wl,-soname,libnccl.so.2", "-o", str(path), str(SOURCE))
    return str(path)


def test_importing_loads_nothing_and_a_missing_library_is_an_error(tmp_path: Path) -> None:
    fake_library(tmp_path / "libnccl.so.2")
    printed = python(
        "import sys\n"
        "from pipepar.comm.gpu.nccl import Nccl, WireError\n"
        "assert 'torch' not in sys.modules\n"
        "try: Nccl.load()\n"
        "except WireError as error: print(error)",
        LD_LIBRARY_PATH=str(tmp_path),  # the library could be found, but is not loaded
    )
    assert printed.startswith("no libnccl.so.2 is loaded; ")
    assert "a torch built for CUDA" in printed
    assert "--device cpu" in printed


def test_load_uses_the_library_of_the_process(tmp_path: Path) -> None:
    code = "from pipepar.comm.gpu.nccl import Nccl; print(Nccl.load().version)"
    assert python(code, LD_PRELOAD=fake_library(tmp_path / "libother.so")) == "(2, 30, 4)"


@pytest.fixture
def header(real: Path, tmp_path: Path) -> tuple[str, ...]:
    """Return the compiler options to include nccl.h without CUDA."""
    for name in ("cuda_fp16", "cuda_bf16", "cuda_fp8"):
        (tmp_path / f"{name}.h").touch()
    (tmp_path / "cuda_runtime.h").write_text(
        "#include <stddef.h>\n"
        "#define CUDART_VERSION 13000\n"
        "typedef struct CUstream_st* cudaStream_t;\n"
        "typedef struct CUevent_st* cudaEvent_t;\n"
    )
    return ("-I", str(tmp_path), "-I", str(real / "include"), "-include", "nccl.h")


def test_the_fake_declares_the_functions_of_nccl_h(header: tuple[str, ...]) -> None:
    run_compiler(*header, "-fsyntax-only", str(SOURCE))


def test_types_and_constants_are_those_of_nccl_h(header: tuple[str, ...], tmp_path: Path) -> None:
    config = Config.default()
    names = [name for name, _ in Config._fields_]
    facts = {f"offsetof(ncclConfig_t, {name})": getattr(Config, name).offset for name in names}
    facts |= {f"sizeof(ncclConfig_t::{name})": getattr(Config, name).size for name in names}
    facts |= {
        # The first field of 2.18 follows directly, so no earlier field is missing.
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
    run_compiler(*header, "-Wno-invalid-offsetof", "-o", str(tmp_path / "probe"), str(probe))
    printed = subprocess.run([tmp_path / "probe"], capture_output=True, text=True, check=True)
    assert dict(zip(facts, map(int, printed.stdout.split()), strict=True)) == facts


def test_the_real_library_has_a_version_and_creates_ids(real: Path) -> None:
    printed = python(
        "import ctypes\n"
        "from pipepar.comm.gpu.nccl import Nccl\n"
        f"nccl = Nccl(ctypes.CDLL('{real}/lib/libnccl.so.2'))\n"
        "ids = {nccl.unique_id() for _ in range(3)}\n"
        "print(*nccl.version, len(ids), {len(unique_id) for unique_id in ids})\n"
        "assert Nccl.load().version == nccl.version"
    )
    version = importlib.metadata.version("nvidia-nccl-cu13").split(".")
    assert printed.split() == [*version[:3], "3", "{128}"]


def test_the_real_library_reports_a_missing_gpu(real: Path) -> None:
    printed = python(
        "import ctypes\n"
        "from pipepar.comm.gpu.nccl import Communicator, Nccl, WireError\n"
        f"nccl = Nccl(ctypes.CDLL('{real}/lib/libnccl.so.2'))\n"
        "try: Communicator.start(nccl, nccl.unique_id(), 0, 1, 'edge rank 3 -> rank 4')\n"
        "except WireError as error: print(error)",
        CUDA_VISIBLE_DEVICES="",
    )
    head = "edge rank 3 -> rank 4: ncclCommInitRankConfig returned 1, unhandled cuda error"
    assert printed.startswith(head)
    assert "Cuda failure" in printed
    assert "nvidia-smi" in printed
