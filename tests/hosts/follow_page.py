"""Does what ``docs/several-machines.md`` says: ``python tests/hosts/follow_page.py``, a part of
``make cluster``.

Every block is run on the hosts that its heading names, as a person would paste it. What a person
brings is here: a copy of the repository, a store, a server for the queue, systemd in the shape of
``systemctl.py``, and a way to copy files between hosts. Only ``pip install`` is not run: the
packages are those that this is run with; ``make image`` installs them.
"""

import logging
import os
import re
import signal
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from cluster import HOSTS, WORKER_HOSTS
from data_host import KEYS, S3_PORT, SERVER, ceph_is_installed, server_speaks_tls, start_store
from network import Host, Network, why_not

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "several-machines.md"
SYSTEMCTL = Path(__file__).with_name("systemctl.py")
PLACES = {
    "Every host": tuple(HOSTS),
    "Each worker host": WORKER_HOSTS,
    "The head": ("head",),
    "The data host": ("data",),
}
# Bash takes functions with such names, and calls them before programs.
PERSON = """
set -e
/opt/farm/bin/pip() {{
  cd /opt/farm/lib/*/site-packages
  echo 'import site; site.addsitedir("{packages}")' > farm.pth
  cd {root}
  for name in farm ray; do
    sed "1s#.*#\\#!/opt/farm/bin/python#" {programs}/$name > /opt/farm/bin/$name
    chmod 0755 /opt/farm/bin/$name
  done
}}
systemctl() {{ {python} -I -S {systemctl} "$@"; }}
scp() {{
  to=${{3#root@}}
  mkdir -p {files}/${{to%%:*}}
  cp -r "$2" {files}/${{to%%:*}}/${{to##*/}}
}}
fetch() {{ [ -d /etc/farm ] || cp -r {files}/{address}/farm /etc/farm; }}
cd {root}
"""

log = logging.getLogger("page")


class Block(NamedTuple):
    heading: str
    hosts: tuple[str, ...]
    text: str


def blocks() -> list[Block]:
    """In the page's order."""
    found = []
    for section in re.split(r"^## ", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]:
        heading = section.splitlines()[0]
        for text in re.findall(r"^```\n(.*?)^```$", section, flags=re.MULTILINE | re.DOTALL):
            found.append(Block(heading, PLACES[heading.partition(":")[0]], text))
    return found


class Person:
    """Pastes blocks into the hosts' shells."""

    def __init__(self, folder: Path, network: Network) -> None:
        self._files, self._network = folder / "copied", network

    def paste(self, block: Block) -> str:
        """Returns what the last host printed."""
        told = ""
        for name in block.hosts:
            log.info("%s, %s: %s", block.heading, name, block.text.splitlines()[-1])
            host = self._network.hosts[name]
            told = self.shell(host, block.text)
        return told

    def shell(self, host: Host, text: str) -> str:
        packages = next(path for path in sys.path if path.endswith("site-packages"))
        before = PERSON.format(
            packages=packages,
            programs=Path(sys.executable).parent,
            python=sys.executable,
            systemctl=SYSTEMCTL,
            files=self._files,
            address=host.address,
            root=ROOT,
        )
        arrived = "fetch\n" if (self._files / host.address).exists() else ""
        keys = (
            f"AWS_ACCESS_KEY_ID={KEYS['AWS_ACCESS_KEY_ID']} "
            f"AWS_SECRET_ACCESS_KEY={KEYS['AWS_SECRET_ACCESS_KEY']}"
        )
        brought = text.replace("AWS_ACCESS_KEY_ID=… AWS_SECRET_ACCESS_KEY=…", keys)
        environment = {
            "PATH": f"{Path(sys.base_prefix) / 'bin'}:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": "/root",
            "LANG": "C.UTF-8",
            "FARM_WORKER_GPUS": "0",
            "FARM_WORKER_CPUS": str(os.cpu_count()),
        }
        return host.run(["bash", "-c", before + arrived + brought], environment)


def prepare(host: Host) -> None:
    """A machine with a server for the queue, and with programs that every user may run."""
    server = os.environ[SERVER]
    shown = {Path(sys.base_prefix), ROOT, Path(sys.executable).parent}
    parents = {str(parent) for path in shown for parent in (path, *path.resolve().parents)}
    # Where a unit sees it, which has a /tmp of its own.
    home = "/usr/local/lib/queue"
    program = f'#!/bin/sh\nLD_LIBRARY_PATH={home} exec {home}/server "$@"\n'
    libraries = os.environ.get("LD_LIBRARY_PATH", "")
    script = (
        f"chmod a+rx {' '.join(sorted(parents))}; mkdir -p /etc/systemd/system {home}; "
        f"cp {server} {home}/server; "
        f"[ -z '{libraries}' ] || cp -L {libraries}/*.so* {home}; "
        f"printf '%s' '{program}' > /usr/local/bin/valkey-server; "
        "chmod 0755 /usr/local/bin/valkey-server"
    )
    host.run(["sh", "-c", script], {"PATH": "/usr/bin:/bin"})


def follow(folder: Path, network: Network) -> None:
    """Raises ``RuntimeError`` or ``TimeoutError`` where the page does not work."""
    person, data = Person(folder, network), network.hosts["data"]
    for host in network.hosts.values():
        prepare(host)
    told = ""
    for block in blocks():
        told = person.paste(block)
        if "make-secrets.sh" in block.text:
            secrets = folder / "copied" / data.address / "farm"
            environment = {
                **KEYS,
                "PATH": "/usr/sbin:/usr/bin:/bin",
                "AWS_CA_BUNDLE": str(secrets / "ca.pem"),
            }
            endpoint = f"https://{data.address}:{S3_PORT}"
            start_store(data, secrets, environment, endpoint, ceph=True)
    log.info("the page's end: %s", told.strip())
    pictures = person.shell(network.hosts["head"], "ls out/*.png").split()
    if len(pictures) != 1:
        raise RuntimeError(f"the page's last block leaves {pictures} in out/")


def main() -> int:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    if reason := why_not():
        log.error("no hosts: %s", reason)
        return 1
    if not (server_speaks_tls() and ceph_is_installed()):
        log.warning("skipped: %s names no server, or there is no Ceph (tools/ceph.sh)", SERVER)
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # the hosts go as well
    with tempfile.TemporaryDirectory(prefix="farm-page-") as name:
        network = Network(Path(name), HOSTS, own_roots=True)
        with network.up():
            follow(Path(name), network)
    return 0


if __name__ == "__main__":
    sys.exit(main())
