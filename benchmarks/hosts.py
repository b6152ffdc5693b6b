"""Two hosts on one machine: network namespaces, joined by a link of a chosen speed.

Each has an address, a host name and an interface of its own and nothing but the link between them;
the machine's own network is not touched. Needs root, and Linux's `ip` and `tc`.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.ranks import mpirun

INTERFACE: Final = "eth0"
"""The link's end on each host."""
_PREFIX: Final = "pipepar-bench"
_ADDRESSES: Final = ("10.77.0.1", "10.77.0.2")


class HostsError(RuntimeError):
    """Two hosts cannot be had here; the message says what is missing."""


@dataclass(frozen=True, slots=True)
class Hosts:
    """Two hosts that are up."""

    names: tuple[str, str]
    """Their namespaces, which are their host names too."""
    addresses: tuple[str, str]
    """Theirs on the link."""
    agent: Path
    """What mpirun starts its daemons with, instead of ssh."""

    def mpirun(self, command: Sequence[str], ranks: tuple[int, int] = (1, 1)) -> list[str]:
        """The command that starts ranks of a command on each host, over TCP. *Local.*

        Args:
            command: of one rank.
            ranks: how many on the first host, and on the second.
        """
        counted = zip(self.addresses, ranks, strict=True)
        places = ",".join(f"{address}:{count}" for address, count in counted)
        # In mpirun's own words, not its defaults: no shared memory, and only this one link.
        options = ["--prtemca", "plm_ssh_agent", str(self.agent), "--host", places]
        options += ["--mca", "pml", "ob1", "--mca", "btl", "self,tcp"]
        options += ["--mca", "btl_tcp_if_include", INTERFACE, "-x", "PATH"]
        return _on(self.names[0], [*mpirun(sum(ranks), *options), *command])


def obstacle() -> str | None:
    """Why two hosts cannot be had here, else None. *Local.*"""
    if os.geteuid() != 0:
        return "network namespaces need root: run this as root"
    missing = [tool for tool in ("ip", "tc", "unshare") if shutil.which(tool) is None]
    if missing:
        return f"no {' and no '.join(missing)} on PATH: install iproute2 and util-linux"
    return None


@contextlib.contextmanager
def two_hosts(mbit: int) -> Iterator[Hosts]:
    """Two hosts joined by a link of that speed each way; gone again afterwards. *Local.*

    A signal must end the process by an exception for that, see `launch.signals_unwind`. What a
    killed run left behind is removed by the next.

    Args:
        mbit: speed of the link, Mbit/s.

    Raises:
        HostsError: not root, a tool is missing, or the kernel refuses.
    """
    reason = obstacle()
    if reason:
        raise HostsError(reason)
    _remove_stale()
    first, second = names = tuple(f"{_PREFIX}-{os.getpid()}-{end}" for end in (0, 1))
    try:
        with tempfile.TemporaryDirectory() as folder:
            agent = Path(folder) / "agent.sh"
            _write_agent(agent, dict(zip(_ADDRESSES, names, strict=True)))
            for name in names:
                _ip("netns", "add", name)
            ends = ("type", "veth", "peer", "name", INTERFACE, "netns", second)
            _ip("link", "add", INTERFACE, "netns", first, *ends)
            for name, address in zip(names, _ADDRESSES, strict=True):
                _ip("-n", name, "address", "add", f"{address}/24", "dev", INTERFACE)
                for interface in ("lo", INTERFACE):
                    _ip("-n", name, "link", "set", interface, "up")
                shape = f"dev {INTERFACE} root tbf rate {mbit}mbit burst 512kb latency 50ms"
                _call("tc", "-n", name, "qdisc", "add", *shape.split())
            yield Hosts((first, second), _ADDRESSES, agent)
    finally:
        for name in names:
            _remove(name)


def _write_agent(agent: Path, hosts: dict[str, str]) -> None:
    """A stand-in for ssh: agent ADDRESS COMMAND... runs the command on the host of the address."""
    cases = "\n".join(f"{address}) name={name} ;;" for address, name in hosts.items())
    # mpirun puts options before the address as it would for ssh; the rest is for a shell.
    agent.write_text(
        "#!/bin/sh\n"
        'while [ "${1#-}" != "$1" ]; do shift; done\n'
        f'case "$1" in\n{cases}\n*) echo "no host $1" >&2; exit 1 ;;\nesac\n'
        "shift\n"
        'exec ip netns exec "$name" unshare --uts sh -c "hostname $name; $*"\n',
        encoding="utf-8",
    )
    agent.chmod(0o755)


def _on(name: str, command: Sequence[str]) -> list[str]:
    path = f"{Path(sys.executable).parent}:{os.environ.get('PATH', os.defpath)}"
    script = 'hostname "$0"; exec "$@"'
    shell = ["sh", "-c", script, name, "env", f"PATH={path}", *command]
    return ["ip", "netns", "exec", name, "unshare", "--uts", *shell]


def _remove_stale() -> None:
    listing = subprocess.run(
        ["ip", "netns", "list"], check=False, capture_output=True, text=True
    ).stdout
    for line in listing.splitlines():
        name = line.split()[0] if line.strip() else ""
        owner = name.removeprefix(f"{_PREFIX}-").split("-")[0]
        if name.startswith(_PREFIX) and not Path(f"/proc/{owner}").exists():
            _remove(name)


def _remove(name: str) -> None:
    """End what still runs on a host, which can only be ours, and remove it, if it exists."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        found = subprocess.run(
            ["ip", "netns", "pids", name], check=False, capture_output=True, text=True
        ).stdout.split()
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), number)
        if found:
            time.sleep(0.5)
    subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)


def _ip(*arguments: str) -> None:
    _call("ip", *arguments)


def _call(*command: str) -> None:
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode != 0:
        raise HostsError(f"{' '.join(command)}: {done.stderr.strip()}")
