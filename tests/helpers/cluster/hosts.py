"""Simulated hosts: network namespaces on one host, connected by a switch over shaped links.

Each has its own address, host name and network interface, which leads only to the switch. The
network of the real host does not change. Requires root, and `ip` and `tc` of Linux.
"""

from __future__ import annotations

import contextlib
import json
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

from tests.helpers.cluster.mpirun import mpirun

INTERFACE: Final = "eth0"
"""The network interface of each host."""
_PREFIX: Final = "pipepar-host"
_SWITCH: Final = "switch"


class HostsError(RuntimeError):
    """Hosts cannot be created; the message has the reason."""


@dataclass(frozen=True, slots=True)
class Hosts:
    """Running hosts."""

    names: Sequence[str]
    """Their namespaces, which are also their host names."""
    addresses: Sequence[str]
    """Their IP addresses."""
    agent: Path
    """The script by which mpirun starts its daemons, instead of ssh."""

    def mpirun(self, command: Sequence[str], ranks: Sequence[int] = ()) -> list[str]:
        """Return the command that starts ranks on all hosts, with MPI over TCP.

        Args:
            command: the command of each rank.
            ranks: the number of ranks on each host; one each if empty.
        """
        counts = ranks or [1] * len(self.names)
        counted = zip(self.addresses, counts, strict=True)
        places = ",".join(f"{address}:{count}" for address, count in counted)
        # Without shared memory, and over this interface only.
        options = ["--prtemca", "plm_ssh_agent", str(self.agent), "--host", places]
        options += ["--mca", "pml", "ob1", "--mca", "btl", "self,tcp"]
        options += ["--mca", "btl_tcp_if_include", INTERFACE, "-x", "PATH"]
        return self.on(0, [*mpirun(sum(counts), *options), *command])

    def on(self, host: int, command: Sequence[str]) -> list[str]:
        """Return the command that runs a command on one host, with this Python first on PATH."""
        name = self.names[host]
        path = f"{Path(sys.executable).parent}:{os.environ.get('PATH', os.defpath)}"
        script = f'{_moved_in(self.agent.parent, name)}; exec "$@"'
        # Session files that ranks leave behind are removed with the hosts.
        places = [f"PATH={path}", f"TMPDIR={self.agent.parent}"]
        shell = ["sh", "-c", script, "sh", "env", *places, *command]
        return ["ip", "netns", "exec", name, "unshare", "--uts", *shell]

    def dropped(self) -> int:
        """Return the number of packets that the links have dropped so far."""
        shown = [_call("tc", "-n", name, "-s", "-j", "qdisc", "show") for name in self.names]
        return sum(qdisc.get("drops", 0) for text in shown for qdisc in json.loads(text))


def obstacle() -> str | None:
    """Return why hosts cannot be created, or None if they can."""
    if os.geteuid() != 0:
        return "network namespaces need root: run this as root"
    missing = [tool for tool in ("ip", "tc", "unshare") if shutil.which(tool) is None]
    if missing:
        return f"no {' and no '.join(missing)} on PATH: install iproute2 and util-linux"
    return None


def two_hosts(mbit: int) -> contextlib.AbstractContextManager[Hosts]:
    """Start two `hosts` connected by a link with a speed in Mbit/s in each direction."""
    return hosts([f"tbf rate {mbit}mbit burst 512kb latency 50ms"] * 2)


def set_link(host: str, state: str) -> None:
    """Set the network interface of a host "up" or "down"."""
    _call("ip", "-n", host, "link", "set", INTERFACE, state)


@contextlib.contextmanager
def hosts(shapes: Sequence[str]) -> Iterator[Hosts]:
    """Start hosts connected by a switch; remove them and their processes after the body.

    For that, signals must raise exceptions, as in `signals_unwind` of the benchmarks. The next call
    removes the hosts of a killed process.

    Args:
        shapes: for each host, the queueing discipline of its output, in the syntax of tc; empty
            for an unlimited link.

    Yields:
        The running hosts.

    Raises:
        HostsError: the user is not root, a tool is missing, or the kernel refuses.
    """
    reason = obstacle()
    if reason:
        raise HostsError(reason)
    _remove_stale()
    names = [f"{_PREFIX}-{os.getpid()}-{index}" for index in range(len(shapes))]
    addresses = [f"10.77.0.{index + 1}" for index in range(len(shapes))]
    switch = f"{_PREFIX}-{os.getpid()}-{_SWITCH}"
    with tempfile.TemporaryDirectory() as folder:
        agent = Path(folder) / "agent.sh"
        _write_agent(agent, dict(zip(addresses, names, strict=True)))
        known = [f"{address} {name}\n" for address, name in zip(addresses, names, strict=True)]
        agent.with_name("hosts").write_text("127.0.0.1 localhost\n" + "".join(known))
        try:
            _call("ip", "netns", "add", switch)
            _call("ip", "-n", switch, *"link add bridge type bridge".split())
            _call("ip", "-n", switch, *"link set bridge up".split())
            for name, address, shape in zip(names, addresses, shapes, strict=True):
                _add(name, address, switch)
                if shape:
                    words = f"qdisc add dev {INTERFACE} root {shape}"
                    _call("tc", "-n", name, *words.split())
            yield Hosts(names, addresses, agent)
        finally:
            for name in (*names, switch):
                _remove(name)


def _add(name: str, address: str, switch: str) -> None:
    port = f"port{address.rpartition('.')[2]}"
    _call("ip", "netns", "add", name)
    ends = f"link add {INTERFACE} type veth peer name {port} netns {switch}"
    _call("ip", "-n", name, *ends.split())
    _call("ip", "-n", switch, *f"link set {port} master bridge up".split())
    _call("ip", "-n", name, *f"address add {address}/24 dev {INTERFACE}".split())
    for interface in ("lo", INTERFACE):
        _call("ip", "-n", name, *f"link set {interface} up".split())


def _moved_in(folder: Path, name: str) -> str:
    """Return the shell commands that set up a process on a host; its mounts are private."""
    return f"hostname {name} && mount --bind {folder}/hosts /etc/hosts"


def _write_agent(agent: Path, names: dict[str, str]) -> None:
    """Write a replacement of ssh: agent ADDRESS COMMAND... runs the command on that host."""
    begin = _moved_in(agent.parent, "$name")
    cases = "\n".join(f"{address}) name={name} ;;" for address, name in names.items())
    # As for ssh, mpirun puts options before the address, and a shell command after it.
    agent.write_text(
        "#!/bin/sh\n"
        'while [ "${1#-}" != "$1" ]; do shift; done\n'
        f'case "$1" in\n{cases}\n*) echo "no host $1" >&2; exit 1 ;;\nesac\n'
        "shift\n"
        f'exec ip netns exec "$name" unshare --uts sh -c "{begin}; $*"\n',
        encoding="utf-8",
    )
    agent.chmod(0o755)


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
    """End the processes of a host and remove it, if it exists."""
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


def _call(*command: str) -> str:
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode != 0:
        raise HostsError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout
