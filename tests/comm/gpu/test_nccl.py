"""The binding of NCCL: the arguments of its calls, and the handling of results.

A fake library takes the place of NCCL. See test_nccl_library.py for NCCL itself.
"""

import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pipepar.comm.gpu.nccl import Communicator
from pipepar.comm.gpu.nccl_h import Result
from pipepar.errors import WireError
from tests.helpers.gpu.fake_nccl import EDGE, HANDLE, SOURCE, UNIQUE_ID, Fake, run_compiler


@pytest.fixture(scope="session")
def fake_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("nccl") / "libfake.so"
    run_compiler("-shared", "-fPIC", "-o", str(path), str(SOURCE))
    return path


@pytest.fixture
def fake(fake_library: Path, tmp_path: Path) -> Fake:
    return Fake(Path(shutil.copy(fake_library, tmp_path)))


# --- Arguments.


def test_unique_id_returns_the_bytes_of_nccl(fake: Fake) -> None:
    assert fake.nccl.unique_id() == bytes(range(255, 127, -1))


@pytest.mark.parametrize(("rank", "size"), [(0, 2), (1, 2), (0, 1)])
def test_start_passes_rank_size_id_and_config(fake: Fake, rank: int, size: int) -> None:
    Communicator.start(fake.nccl, UNIQUE_ID, rank, size, EDGE)
    assert fake.calls() == [
        f"ncclCommInitRankConfig {size} {rank} size=40 magic=cafebeef version=21700 "
        "blocking=1 cga=-2147483648 ctas=1-4 net=(nil)"
    ]
    assert fake.text("joined").raw == UNIQUE_ID


@pytest.mark.parametrize(("rank", "size", "peer"), [(0, 2, 1), (1, 2, 0), (0, 1, 0)])
def test_transfers_pass_the_peer_and_64_bit_values(
    fake: Fake, rank: int, size: int, peer: int
) -> None:
    communicator = fake.start(rank, size)
    # Values of more than 32 bits, and the default stream.
    communicator.send(0x7F0123456789, 2**33 + 1, 0x7E0123456789)
    communicator.receive(0x7D0123456789, 0, 0)
    assert fake.calls() == [
        f"ncclSend 0x7f0123456789 {2**33 + 1} 1 {peer} {HANDLE} 0x7e0123456789",
        f"ncclRecv 0x7d0123456789 0 1 {peer} {HANDLE} (nil)",
    ]


def test_a_group_also_ends_after_an_error(fake: Fake) -> None:
    communicator = fake.start()
    with fake.nccl.group():
        communicator.send(1, 1, 1)
    assert [line.split()[0] for line in fake.calls()] == [
        "ncclGroupStart",
        "ncclSend",
        "ncclGroupEnd",
    ]
    with pytest.raises(KeyError), fake.nccl.group():
        raise KeyError
    assert fake.calls() == ["ncclGroupStart", "ncclGroupEnd"]


# --- Results.


def grouped(fake: Fake) -> None:
    with fake.nccl.group():
        pass


CALLS: dict[str, Callable[[Fake, Communicator], object]] = {
    "ncclGetUniqueId": lambda fake, _: fake.nccl.unique_id(),
    "ncclCommInitRankConfig": lambda fake, _: fake.start(),
    "ncclSend": lambda _, communicator: communicator.send(1, 1, 1),
    "ncclRecv": lambda _, communicator: communicator.receive(1, 1, 1),
    "ncclCommGetAsyncError": lambda _, communicator: communicator.problem(),
    "ncclCommFinalize": lambda _, communicator: communicator.close(),
    "ncclCommDestroy": lambda _, communicator: communicator.close(),
    "ncclCommAbort": lambda _, communicator: communicator.abort(),
    "ncclGroupStart": lambda fake, _: grouped(fake),
    "ncclGroupEnd": lambda fake, _: grouped(fake),
}


@pytest.mark.parametrize("function", CALLS)
def test_every_result_is_checked(fake: Fake, function: str) -> None:
    communicator = fake.start()
    fake.fail(function, Result.INTERNAL_ERROR, "the cable is out")
    with pytest.raises(WireError) as found:
        CALLS[function](fake, communicator)
    name = EDGE if "Comm" in function or function in ("ncclSend", "ncclRecv") else "a "
    assert str(found.value).startswith(name)
    facts = (
        f": {function} returned 3, text of 3; its last warning: the cable is out; run with NCCL_"
    )
    assert facts in str(found.value)


@pytest.mark.parametrize(
    ("result", "remedy"),
    [
        (Result.UNHANDLED_CUDA_ERROR, "nvidia-smi"),
        (Result.SYSTEM_ERROR, "NCCL_SOCKET_IFNAME"),
        (Result.INTERNAL_ERROR, "NCCL_DEBUG=INFO"),
        (Result.INVALID_ARGUMENT, "bug in pipepar"),
        (Result.INVALID_USAGE, "a GPU of its own"),
        (Result.REMOTE_ERROR, "the other rank's first error"),
        (Result.IN_PROGRESS, "unset NCCL_COMM_BLOCKING"),
        (8, "NCCL_DEBUG=INFO"),
    ],
)
def test_errors_contain_a_remedy(fake: Fake, result: int, remedy: str) -> None:
    communicator = fake.start()
    fake.fail("ncclSend", result)
    with pytest.raises(WireError, match=remedy) as found:
        communicator.send(1, 1, 1)
    assert str(found.value).startswith(f"{EDGE}: ncclSend returned {result}, text of {result}; ")
    assert "last warning" not in str(found.value)


@pytest.mark.parametrize(
    "warning",
    [
        "Duplicate GPU detected : rank 0 and rank 1 both on CUDA device 1000",
        "Multiple Ranks are using the same GPU/Partition. Set NCCL_MULTI_RANK_GPU_ENABLE=1",
    ],
)
def test_ranks_that_share_a_gpu_get_the_remedy_for_that(fake: Fake, warning: str) -> None:
    fake.fail("ncclCommInitRankConfig", Result.INVALID_USAGE, warning)
    with pytest.raises(WireError, match=r"one rank a GPU, or, with NCCL 2\.30\.3 or newer"):
        fake.start()


def test_problem_returns_the_text_of_nccl(fake: Fake) -> None:
    communicator = fake.start()
    for fine in (Result.SUCCESS, Result.IN_PROGRESS):
        fake.number("async_error").value = fine
        assert communicator.problem() == ""
    fake.number("async_error").value = Result.REMOTE_ERROR
    assert communicator.problem() == "text of 6"
    fake.text("warning").value = b"peer \xff is gone"
    assert communicator.problem() == "text of 6; its last warning: peer \ufffd is gone"


# --- Close and abort.


def test_close_twice_frees_once(fake: Fake) -> None:
    communicator = fake.start()
    for _ in range(2):
        communicator.close()
    communicator.abort()
    assert communicator.problem() == ""
    assert fake.calls() == [f"ncclCommFinalize {HANDLE}", f"ncclCommDestroy {HANDLE}"]
    with pytest.raises(WireError, match="ncclSend on a communicator that is closed"):
        communicator.send(1, 1, 1)


def test_abort_after_a_failed_close(fake: Fake) -> None:
    communicator = fake.start()
    fake.fail("ncclCommFinalize", Result.REMOTE_ERROR)
    with pytest.raises(WireError, match="ncclCommFinalize"):
        communicator.close()
    fake.calls()
    for _ in range(2):
        communicator.abort()
    communicator.close()
    assert communicator.problem() == ""
    assert fake.calls() == [f"ncclCommAbort {HANDLE}"]


@pytest.mark.parametrize("function", ["ncclRecv", "ncclCommFinalize"])
def test_another_thread_may_abort_a_blocked_call(fake: Fake, function: str) -> None:
    communicator = fake.start()
    fake.text("blocking").value = function.encode()
    problems: list[BaseException] = []

    def use() -> None:
        try:
            CALLS[function](fake, communicator)
        except WireError as problem:
            problems.append(problem)

    thread = threading.Thread(target=use)
    thread.start()
    # A call that holds the GIL would end with an error after ten seconds.
    while thread.is_alive() and not fake.number("blocked").value:
        time.sleep(0.001)
    assert communicator.problem() == ""
    communicator.abort()
    thread.join(20)
    assert not thread.is_alive()
    assert not problems
    assert [line.split()[0] for line in fake.calls()] == [
        function,
        "ncclCommGetAsyncError",
        "ncclCommAbort",
    ]
