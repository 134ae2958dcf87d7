"""Hosts on one machine: network namespaces on a bridge, each with its own processes and /tmp/ray.

Nothing is added to the machine's own network: the bridge is in a namespace too. It takes root,
Debian's iproute2 and util-linux, and a kernel that allows it; ``why_not`` says what is missing.
"""

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

LINK = Path(__file__).with_name("lossy_link.py")
PROGRAMS = ("ip", "nsenter", "unshare", "ss")
REAPER = """
import os, time
while True:
    try:
        os.wait()
    except ChildProcessError:
        time.sleep(0.1)
"""
# A root of its own: this machine's, with what the host writes kept apart. What every user may not
# read here, the host's users may not read either, so the way to its Python is opened.
OWN_ROOT = """
set -e
mount -t tmpfs disk "$0"
mkdir "$0/upper" "$0/work" "$0/root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$0/upper,workdir=$0/work" "$0/root"
mount -t proc proc "$0/root/proc"
mount --rbind /dev "$0/root/dev"
mount --bind /sys "$0/root/sys"
mount --bind "$3" "$0/root$3"
exec chroot "$0/root" "$1" -I -S -c "$2"
"""
RESTART_SECONDS = 1.0  # of a process that is kept alive, as a service manager does it


def why_not() -> str | None:
    """Why hosts cannot be made here; None if they can."""
    if os.geteuid() != 0:
        return "namespaces take root"
    if missing := [name for name in PROGRAMS if shutil.which(name) is None]:
        return f"there is no {missing[0]}: install iproute2 and util-linux"
    if not os.access("/dev/net/tun", os.R_OK | os.W_OK):
        return "there is no /dev/net/tun"
    tried = subprocess.run(["unshare", "-n", "-m", "-p", "-f", "true"], capture_output=True)
    return None if tried.returncode == 0 else "this kernel or container allows no namespaces"


def wait_until(condition: Callable[[], object], what: str, seconds: float = 120.0) -> float:
    """Wait for a condition; returns how many seconds it took."""
    began = time.monotonic()
    while not condition():
        if time.monotonic() > began + seconds:
            raise TimeoutError(f"{what}: not within {seconds:g} s")
        time.sleep(0.1)
    return time.monotonic() - began


class Host:
    """One machine: kill its first process and it is dead; ``boot`` starts it again.

    Args:
        own_root: it may change any file, and nothing of that is seen elsewhere or outlives it,
            but what is below ``folder``'s parent.
    """

    def __init__(
        self, name: str, namespace: str, address: str, folder: Path, *, own_root: bool = False
    ) -> None:
        self.name, self.namespace, self.address, self.folder = name, namespace, address, folder
        self._own_root = own_root
        self._init: subprocess.Popen[bytes] | None = None
        (folder / "ray").mkdir(parents=True)

    def boot(self) -> None:
        script, disk = 'mount --bind "$0" /tmp/ray && exec "$1" -I -S -c "$2"', self.folder / "ray"
        Path("/tmp/ray").mkdir(exist_ok=True)  # something to mount over
        if self._own_root:
            script, disk = OWN_ROOT, self.folder / "disk"
            disk.mkdir(exist_ok=True)
        self._init = subprocess.Popen(
            ["ip", "netns", "exec", self.namespace, "unshare", "-m", "-p", "-f", "--mount-proc",
             "--kill-child", "sh", "-c", script, str(disk), sys.executable, REAPER,
             str(self.folder.parent)],
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
        wait_until(self._pid, f"{self.name} boots", 20)

    def _pid(self) -> int | None:
        """Of its first process."""
        assert self._init is not None
        children = Path(f"/proc/{self._init.pid}/task/{self._init.pid}/children").read_text()
        return int(children.split()[0]) if children else None

    def command(self, words: Sequence[str]) -> list[str]:
        """The command line that runs another one on this host, in the environment of the caller:
        what is in arguments, every user could read."""
        nsenter = shutil.which("nsenter") or "nsenter"
        root = ["-r", "--wd=/"] if self._own_root else []
        return [nsenter, "-t", str(self._pid()), "-n", "-m", "-p", *root, *words]

    def run(
        self, words: Sequence[str], environment: Mapping[str, str], seconds: float = 600.0
    ) -> str:
        """Run a command to its end; returns what it printed.

        Raises:
            RuntimeError: it failed.
            subprocess.TimeoutExpired: it took longer than that.
        """
        ended = subprocess.run(
            self.command(words),
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=seconds,
        )
        if ended.returncode:
            raise RuntimeError(f"{words[0]} on {self.name}: {ended.stderr.strip()}")
        return ended.stdout

    def keep(self, name: str, words: Sequence[str], environment: Mapping[str, str]) -> None:
        """Start a process, and start it again whenever it ends, as a service manager would."""
        loop = f'while :; do "$@"; sleep {RESTART_SECONDS}; done'
        with (self.folder / f"{name}.log").open("ab") as log:
            subprocess.Popen(
                self.command(["setsid", "sh", "-c", loop, f"keep-{name}", *words]),
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def pids(self, part: str) -> list[int]:
        """Processes here with this text in their command line, those that keep others excepted."""
        found = []
        listed = subprocess.run(
            ["ip", "netns", "pids", self.namespace], capture_output=True, text=True
        ).stdout
        for pid in map(int, listed.split()):
            with contextlib.suppress(OSError):
                line = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
                if part in line and "keep-" not in line and "nsenter" not in line:
                    found.append(pid)
        return found

    def kill_process(self, part: str) -> int:
        """SIGKILL them; returns how many they were."""
        pids = self.pids(part)
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return len(pids)

    def kill(self) -> None:
        """The host loses its power."""
        if self._init is not None and self._init.poll() is None:
            if pid := self._pid():
                os.kill(pid, signal.SIGKILL)
            self._init.wait(30)

    def ports(self) -> list[tuple[str, int, str]]:
        """Address, port and program of everything that listens on TCP."""
        listed = subprocess.run(
            ["ip", "netns", "exec", self.namespace, "ss", "-Hltnp"],
            capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
        found = []
        for line in listed.splitlines():
            words = line.split()
            address, _, port = words[3].rpartition(":")
            program = line.split('(("')[1].split('"')[0] if '(("' in line else "?"
            found.append((address, int(port), program))
        return found

    def listens(self, port: int) -> bool:
        return any(listening == port for _, listening, _ in self.ports())


class Network:
    """Hosts by name. The links of those in ``lossy`` can be made to lose and delay."""

    def __init__(
        self,
        folder: Path,
        addresses: Mapping[str, str],
        lossy: Sequence[str] = (),
        *,
        own_roots: bool = False,
    ) -> None:
        self._mark = secrets.token_hex(2)
        self._switch = f"f{self._mark}-sw"
        self._links: dict[str, subprocess.Popen[str]] = {}
        self._lossy = lossy
        self.hosts = {
            name: Host(name, f"f{self._mark}-{name}", address, folder / name, own_root=own_roots)
            for name, address in addresses.items()
        }

    @contextlib.contextmanager
    def up(self) -> Iterator[dict[str, Host]]:
        try:
            _ip("netns", "add", self._switch)
            _ip("-n", self._switch, "link", "add", "br0", "type", "bridge")
            _ip("-n", self._switch, "link", "set", "br0", "up")
            for host in self.hosts.values():
                self._connect(host)
                host.boot()
            yield self.hosts
        finally:
            for host in self.hosts.values():
                with contextlib.suppress(OSError, subprocess.TimeoutExpired):
                    host.kill()
            for link in self._links.values():
                link.kill()
                link.wait()
            for namespace in (*(host.namespace for host in self.hosts.values()), self._switch):
                subprocess.run(["ip", "netns", "del", namespace], capture_output=True)

    def _connect(self, host: Host) -> None:
        name, port = host.namespace, self._port(host)
        _ip("netns", "add", name)
        _ip("-n", name, "link", "set", "lo", "up")
        if host.name in self._lossy:
            link = subprocess.Popen(
                [sys.executable, "-I", "-S", str(LINK), name, self._switch],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            )  # fmt: skip
            self._links[host.name] = link
            assert link.stdout is not None
            if link.stdout.readline() != "ready\n":
                raise OSError(f"the link of {host.name} did not come up")
        else:
            _ip("-n", self._switch, "link", "add", port, "type", "veth",
                "peer", "name", "eth0", "netns", name)  # fmt: skip
        _ip("-n", self._switch, "link", "set", port, "master", "br0", "up")
        _ip("-n", name, "addr", "add", f"{host.address}/24", "dev", "eth0")
        _ip("-n", name, "link", "set", "eth0", "up")
        # Ray learns its address from the way to a public one.
        _ip("-n", name, "route", "add", "default", "dev", "eth0")

    def _port(self, host: Host) -> str:
        return f"p-{host.namespace}"[:15]

    def cut(self, host: Host) -> None:
        """Pull its cable."""
        _ip("-n", self._switch, "link", "set", self._port(host), "down")

    def mend(self, host: Host) -> None:
        _ip("-n", self._switch, "link", "set", self._port(host), "up")

    def disturb(self, host: Host, loss: float, seconds: float) -> None:
        """Let a share of its frames be lost and the others be late, each way."""
        pipe = self._links[host.name].stdin
        assert pipe is not None
        pipe.write(f"{loss} {seconds}\n")
        pipe.flush()


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)
