"""Two machines in one, joined by a link that can be taken down; and runs over both."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from .runs import LIMIT, ROOT, SHORT, Ended, Runs
from .supervised import TIMEOUT, Fault, write_plan


@dataclass(frozen=True)
class Node:
    address: str
    interface: str
    namespace: str | None = None
    """A network namespace; None is that of this process."""

    def link(self, state: str) -> None:
        """Set the node's end of the link `up` or `down`."""
        _ip("-n", str(self.namespace), "link", "set", self.interface, state)


@dataclass(frozen=True)
class Nodes:
    pair: tuple[Node, Node]
    meet: str
    """HOST:PORT of the first."""


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


@contextmanager
def in_namespaces() -> Iterator[Nodes]:
    """Two network namespaces for the length of a `with` block. Raises OSError where that is not permitted."""
    first, second = (Node(f"10.77.0.{n}", f"th{os.getpid()}n{n}", f"thimble-{os.getpid()}-{n}") for n in (1, 2))
    try:
        try:
            for node in (first, second):
                _ip("netns", "add", str(node.namespace))
            peer = ("peer", "name", second.interface, "netns", str(second.namespace))
            _ip("link", "add", first.interface, "netns", str(first.namespace), "type", "veth", *peer)
            for node in (first, second):
                inside = ("-n", str(node.namespace))
                _ip(*inside, "address", "add", f"{node.address}/24", "dev", node.interface)
                _ip(*inside, "link", "set", "lo", "up")
                node.link("up")
        except subprocess.CalledProcessError as error:
            raise PermissionError(error.stderr.strip()) from None
        yield Nodes((first, second), f"{first.address}:29500")
    finally:
        for node in (first, second):
            subprocess.run(["ip", "netns", "delete", str(node.namespace)], capture_output=True, check=False)


def on_localhost() -> Nodes:
    """Two addresses of this machine."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    return Nodes((Node("127.0.0.1", "lo"), Node("127.0.0.2", "lo")), f"localhost:{port}")


def launch_on(
    runs: Runs,
    nodes: Nodes,
    name: str,
    faults: Sequence[Fault] = (),
    *overrides: str,
    act: Callable[[Path], None] = lambda log: None,
) -> list[Ended]:
    """Launch a run of one rank on each node, `act` when given the log of its faults, and see both launchers end."""
    log, plan = write_plan(runs, name, {"faults": faults})
    _, config, *settings = runs.arguments(name, *SHORT, f"train.timeout={TIMEOUT}", *overrides)
    told = [runs.runs / f"{name}.node{number}.txt" for number in (0, 1)]
    began, launchers = time.monotonic(), []
    for node, file in zip(nodes.pair, told, strict=True):
        inside = ["ip", "netns", "exec", node.namespace] if node.namespace else []
        options = ["--nnodes", "2", "--rdzv", nodes.meet, "--address", node.address, "--backoff", "0"]
        driver = [sys.executable, str(Path(__file__).with_name("faulty.py")), "launch", str(plan)]
        environment = {"OMP_NUM_THREADS": "1", **os.environ, "GLOO_SOCKET_IFNAME": node.interface}
        with file.open("w") as output:
            command = [*inside, *driver, *options, config, *settings]
            launchers.append(subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=output))
    ended = []
    try:
        act(log)
        for launcher, file in zip(launchers, told, strict=True):
            code = launcher.wait(LIMIT)
            ended.append(Ended(code, file.read_text(), began, time.monotonic() - began))
    finally:
        for launcher in launchers:
            launcher.kill()
    return ended
