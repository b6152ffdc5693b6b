"""The binding of NCCL: what it tells NCCL, and what it makes of the answers.

NCCL itself is not needed: a library stands in for it. See test_nccl_library.py.
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
from tests.helpers.gpu.fake_nccl import EDGE, HANDLE, SOURCE, UNIQUE_ID, Fake, compiled


@pytest.fixture(scope="session")
def fake_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("nccl") / "libfake.so"
    compiled("-shared", "-fPIC", "-o", str(path), str(SOURCE))
    return path


@pytest.fixture
def fake(fake_library: Path, tmp_path: Path) -> Fake:
    return Fake(Path(shutil.copy(fake_library, tmp_path)))


# --- What NCCL is told.


def test_an_id_is_what_nccl_made(fake: Fake) -> None:
    assert fake.nccl.unique_id() == bytes(range(255, 127, -1))


@pytest.mark.parametrize(("rank", "size"), [(0, 2), (1, 2), (0, 1)])
def test_a_communicator_is_started_as_asked(fake: Fake, rank: int, size: int) -> None:
    Communicator.start(fake.nccl, UNIQUE_ID, rank, size, EDGE)
    assert fake.calls() == [
        f"ncclCommInitRankConfig {size} {rank} size=40 magic=cafebeef version=21700 "
        "blocking=1 cga=-2147483648 ctas=1-4 net=(nil)"
    ]
    assert fake.text("joined").raw == UNIQUE_ID


def test_a_transfer_takes_no_more_of_the_gpu_than_allowed(fake: Fake) -> None:
    Communicator.start(fake.nccl, UNIQUE_ID, 0, 2, EDGE, max_ctas=9)
    assert "ctas=1-9" in fake.calls()[0]


@pytest.mark.parametrize(("rank", "size", "peer"), [(0, 2, 1), (1, 2, 0), (0, 1, 0)])
def test_bytes_go_to_the_other_rank(fake: Fake, rank: int, size: int, peer: int) -> None:
    communicator = fake.start(rank, size)
    # Wider than 32 bits, all of them, and the default stream.
    communicator.send(0x7F0123456789, 2**33 + 1, 0x7E0123456789)
    communicator.receive(0x7D0123456789, 0, 0)
    assert fake.calls() == [
        f"ncclSend 0x7f0123456789 {2**33 + 1} 1 {peer} {HANDLE} 0x7e0123456789",
        f"ncclRecv 0x7d0123456789 0 1 {peer} {HANDLE} (nil)",
    ]


def test_a_group_ends_also_after_an_error(fake: Fake) -> None:
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


# --- What becomes of its answers.


def grouped(fake: Fake) -> None:
    with fake.nccl.group():
        pass


USES: dict[str, Callable[[Fake, Communicator], object]] = {
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


@pytest.mark.parametrize("function", USES)
def test_every_answer_is_checked(fake: Fake, function: str) -> None:
    communicator = fake.start()
    fake.fail(function, Result.INTERNAL_ERROR, "the cable is out")
    with pytest.raises(WireError) as found:
        USES[function](fake, communicator)
    what = EDGE if "Comm" in function or function in ("ncclSend", "ncclRecv") else "a "
    assert str(found.value).startswith(what)
    said = f": {function} gave 3, words for 3; its last warning: the cable is out; run with NCCL_"
    assert said in str(found.value)


@pytest.mark.parametrize(
    ("result", "remedy"),
    [
        (Result.UNHANDLED_CUDA_ERROR, "nvidia-smi"),
        (Result.SYSTEM_ERROR, "NCCL_SOCKET_IFNAME"),
        (Result.INTERNAL_ERROR, "NCCL_DEBUG=INFO"),
        (Result.INVALID_ARGUMENT, "mistake of pipepar"),
        (Result.INVALID_USAGE, "a GPU of its own"),
        (Result.REMOTE_ERROR, "the other rank's first error"),
        (Result.IN_PROGRESS, "unset NCCL_COMM_BLOCKING"),
        (8, "NCCL_DEBUG=INFO"),
    ],
)
def test_an_error_says_what_to_do(fake: Fake, result: int, remedy: str) -> None:
    communicator = fake.start()
    fake.fail("ncclSend", result)
    with pytest.raises(WireError, match=remedy) as found:
        communicator.send(1, 1, 1)
    assert str(found.value).startswith(f"{EDGE}: ncclSend gave {result}, words for {result}; ")
    assert "last warning" not in str(found.value)


@pytest.mark.parametrize(
    "warning",
    [
        "Duplicate GPU detected : rank 0 and rank 1 both on CUDA device 1000",
        "Multiple Ranks are using the same GPU/Partition. Set NCCL_MULTI_RANK_GPU_ENABLE=1",
    ],
)
def test_ranks_that_may_not_share_a_gpu(fake: Fake, warning: str) -> None:
    fake.fail("ncclCommInitRankConfig", Result.INVALID_USAGE, warning)
    with pytest.raises(WireError, match=r"one rank a GPU, or, with NCCL 2\.30\.3 or newer"):
        fake.start()


def test_a_problem_is_told_in_nccls_words(fake: Fake) -> None:
    communicator = fake.start()
    for fine in (Result.SUCCESS, Result.IN_PROGRESS):
        fake.number("trouble").value = fine
        assert communicator.problem() == ""
    fake.number("trouble").value = Result.REMOTE_ERROR
    assert communicator.problem() == "words for 6"
    fake.text("warning").value = b"peer \xff is gone"
    assert communicator.problem() == "words for 6; its last warning: peer \ufffd is gone"


# --- The end.


def test_it_is_closed_once(fake: Fake) -> None:
    communicator = fake.start()
    for _ in range(2):
        communicator.close()
    communicator.abort()
    assert communicator.problem() == ""
    assert fake.calls() == [f"ncclCommFinalize {HANDLE}", f"ncclCommDestroy {HANDLE}"]
    with pytest.raises(WireError, match="ncclSend on a communicator that is closed"):
        communicator.send(1, 1, 1)


def test_what_cannot_be_closed_can_be_aborted_and_is_left_alone_then(fake: Fake) -> None:
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
def test_another_thread_runs_meanwhile_and_may_abort(fake: Fake, function: str) -> None:
    communicator = fake.start()
    fake.text("stuck").value = function.encode()
    problems: list[BaseException] = []

    def use() -> None:
        try:
            USES[function](fake, communicator)
        except WireError as problem:
            problems.append(problem)

    thread = threading.Thread(target=use)
    thread.start()
    # A call that kept Python to itself would give up by itself, with an error.
    while thread.is_alive() and not fake.number("waiting").value:
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
