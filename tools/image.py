"""Builds the images of ``infra/Dockerfile`` and runs them, without Docker: ``make image``.

    python tools/image.py BASE [--folder build/image] [--targets gateway,scheduler,worker-cpu]

As root. BASE is a folder with what stands for the image that ``FROM`` names, made by

    debootstrap --variant=minbase --include=python3-venv,python-is-python3 bookworm BASE

Each target's steps (RUN, COPY, ENV, WORKDIR, USER) are done in a root of its own over BASE, without
a network: the wheels that they install are fetched before. Then a farm runs from the three images,
each as its own user on a root that is read-only, and renders a picture. The target worker-cuda is
the same but for a compiler and CUDA's wheels.
"""

import argparse
import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from farm.local.embedded import free_port
from farm.local.valkey import ServerProcess
from farm_client import Farm

ROOT = Path(__file__).parents[1]
DOCKERFILE = ROOT / "infra" / "Dockerfile"
TARGETS = ("gateway", "scheduler", "worker-cpu")
WHEELS = "/wheels"
READY_SECONDS = 180.0
# In a mount namespace: $1 is the lower folder, $2 the upper one, $3 "ro" or "rw"; then a command.
ENTER = """
set -e
lower=$1 upper=$2 mode=$3 user=$4; shift 4
mkdir -p "$upper/diff" "$upper/work" "$upper/root"
mount -t overlay overlay -o "lowerdir=$lower,upperdir=$upper/diff,workdir=$upper/work" "$upper/root"
cd "$upper/root"
mount --rbind /dev dev
mount -t proc proc proc
if [ "$mode" = ro ]; then
  mount -t tmpfs -o mode=1777 tmp tmp
  mount --bind "$STATE" var/lib/farm
  mount -o remount,bind,ro .
else
  mkdir -p ./wheels
  mount --bind "$WHEELHOUSE" ./wheels
fi
exec chroot --userspec="$user" . env --ignore-environment "$@"
"""


class Step(NamedTuple):
    instruction: str
    text: str


class Stage(NamedTuple):
    name: str
    source: str
    steps: list[Step]


class Image(NamedTuple):
    """What is known of a target when its steps are done."""

    lower: Path
    environment: dict[str, str]
    folder: str
    user: str
    command: list[str]


def stages() -> dict[str, Stage]:
    """Of the Dockerfile, by name."""
    text = re.sub(r"\\\n\s*", " ", DOCKERFILE.read_text(encoding="utf-8"))
    found: dict[str, Stage] = {}
    for line in text.splitlines():
        instruction, _, rest = line.partition(" ")
        if instruction == "FROM":
            source, _, name = rest.partition(" AS ")
            found[name] = Stage(name, source, [])
        elif instruction and not line.startswith("#"):
            list(found.values())[-1].steps.append(Step(instruction, rest.strip()))
    return found


class Builder:
    """Makes images below a folder."""

    def __init__(self, base: Path, folder: Path) -> None:
        self._base, self._folder = base.absolute(), folder.absolute()
        self._wheels = self._folder / "wheels"
        self._stages = stages()
        self._built: dict[str, Image] = {}

    def fetch(self) -> None:
        """The wheels of all targets, by this environment's pip and its settings."""
        extras = "gateway,cluster,worker"
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--dest", str(self._wheels)]
        # The last one is for Debian 12, whose Python 3.11.2 redis helps with it.
        command += ["--constraint", "constraints.txt", f".[{extras}]", "hatchling", "async-timeout"]
        subprocess.run(command, cwd=ROOT, check=True)

    def build(self, name: str) -> Image:
        """A target's steps over those of the stage that it is made from."""
        if name in self._built:
            return self._built[name]
        stage = self._stages.get(name)
        if stage is None:  # the name of an image elsewhere: that is BASE
            return Image(self._base, {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}, "/", "0", [])
        image = self.build(stage.source)
        upper = self._folder / name
        shutil.rmtree(upper, ignore_errors=True)
        for step in stage.steps:
            print(f"{name}: {step.instruction} {step.text[:80]}", flush=True)
            image = self._do(step, image, upper)
        (upper / "work").mkdir(parents=True, exist_ok=True)
        lower = f"{upper / 'diff'}:{image.lower}"
        self._built[name] = image._replace(lower=Path(lower))
        return self._built[name]

    def _do(self, step: Step, image: Image, upper: Path) -> Image:
        match step.instruction:
            case "RUN":
                self._run(step.text, image, upper)
            case "COPY":
                self._copy(step.text.split(), image, upper)
            case "ENV":
                pairs = dict(pair.split("=", 1) for pair in step.text.split())
                old = image.environment
                told = {key: text.replace("$PATH", old["PATH"]) for key, text in pairs.items()}
                return image._replace(environment={**old, **told})
            case "ARG":
                key, _, text = step.text.partition("=")
                told = {**image.environment, key: text.strip('"')}
                return image._replace(environment=told)
            case "WORKDIR":
                return image._replace(folder=step.text)
            case "USER":
                return image._replace(user=step.text)
            case "CMD":
                return image._replace(command=re.findall(r'"([^"]+)"', step.text))
            case "EXPOSE":
                pass
            case other:
                raise ValueError(f"{other} is an instruction that tools/image.py does not know")
        return image

    def _run(self, text: str, image: Image, upper: Path) -> None:
        offline = {
            "PIP_NO_INDEX": "1",
            "PIP_FIND_LINKS": WHEELS,
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            "PIP_QUIET": "1",
        }
        command = ["sh", "-ec", f"mkdir -p {image.folder} && cd {image.folder} && {text}"]
        outside = {"WHEELHOUSE": str(self._wheels), "PATH": os.environ["PATH"]}
        subprocess.run(
            entering(image, upper, "rw", {**image.environment, **offline}, command),
            env=outside,
            check=True,
        )

    def _copy(self, words: Sequence[str], image: Image, upper: Path) -> None:
        *sources, target = words
        into = upper / "diff" / image.folder.strip("/") / target
        into.mkdir(parents=True, exist_ok=True)
        for source in sources:
            path = ROOT / source
            if path.is_dir():
                shutil.copytree(path, into, dirs_exist_ok=True)
            else:
                shutil.copy(path, into)


def entering(
    image: Image, upper: Path, mode: str, environment: Mapping[str, str], command: Sequence[str]
) -> list[str]:
    pairs = [f"{key}={text}" for key, text in environment.items()]
    user = f"{image.user}:{image.user}"
    return ["unshare", "-m", "sh", "-c", ENTER, "enter", str(image.lower), str(upper), mode, user,
            *pairs, *command]  # fmt: skip


class Container:
    """A process from an image, on a read-only root."""

    def __init__(self, name: str, image: Image, folder: Path, state: Path) -> None:
        self._name, self._image = name, image
        self._folder, self._state = folder / f"run-{name}", state
        shutil.rmtree(self._folder, ignore_errors=True)

    def arguments(self, command: Sequence[str], environment: Mapping[str, str]) -> list[str]:
        told = {"HOME": "/var/lib/farm", **self._image.environment, **environment}
        return entering(self._image, self._folder, "ro", told, command)

    def run(self, command: Sequence[str], environment: Mapping[str, str]) -> str:
        return subprocess.run(
            self.arguments(command, environment),
            env=self._outside,
            check=True,
            capture_output=True,
            text=True,
        ).stdout

    @contextlib.contextmanager
    def running(self, environment: Mapping[str, str], *words: str) -> Iterator[Path]:
        """The image's own command, with more words; the path of its log."""
        path = self._folder.with_suffix(".log")
        with path.open("wb") as log:
            process = subprocess.Popen(
                self.arguments([*self._image.command, *words], environment),
                env=self._outside,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
            )
        try:
            yield path
        finally:
            process.terminate()
            process.wait(60)

    @property
    def _outside(self) -> dict[str, str]:
        return {"STATE": str(self._state), "PATH": os.environ["PATH"]}


def try_out(images: Mapping[str, Image], folder: Path) -> None:
    """Raises where a farm of these images does not render."""
    state = folder / "state"
    shutil.rmtree(state, ignore_errors=True)
    state.mkdir()
    os.chown(state, 10001, 10001)
    made = {name: Container(name, image, folder, state) for name, image in images.items()}
    for name, container in made.items():
        told = container.run(
            ["sh", "-c", "id -u; farm --help | head -3; touch /opt/x 2>&1 || true"], {}
        )
        print(f"{name}: {' | '.join(told.split(chr(10)))}", flush=True)
        assert told.startswith("10001\n"), told
        assert "Read-only file system" in told, told
    port = free_port()
    with tempfile.TemporaryDirectory() as data, contextlib.ExitStack() as stack:
        server = ServerProcess(Path(data), port=free_port())
        stack.enter_context(server.serving())
        environment = {
            "REDIS_URL": server.url,
            "FARM_STORE": "/var/lib/farm/store",
            "FARM_CHECKPOINTS": "shapes-64",
            "FARM_PORT": str(port),
            "FARM_OPEN": "1",
        }
        logs = [stack.enter_context(made["gateway"].running(environment))]
        logs.append(stack.enter_context(made["scheduler"].running(environment)))
        logs.append(stack.enter_context(made["worker-cpu"].running(environment, "--name", "one")))
        try:
            _render(f"http://127.0.0.1:{port}", folder)
        except BaseException:
            for log in logs:
                print(f"--- {log}\n{log.read_text(errors='replace')[-3000:]}", file=sys.stderr)
            raise


def _render(url: str, folder: Path) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while True:
        try:
            urllib.request.urlopen(f"{url}/readyz", timeout=5).close()
            break
        except OSError:
            if time.monotonic() > deadline:
                raise TimeoutError("the images' farm is not ready") from None
            time.sleep(0.5)
    (folder / "out").mkdir(exist_ok=True)
    with Farm(url) as farm:
        job = farm.submit("a large red circle on a blue background", seed=7)
        paths = [image.save(folder / "out") for image in job.images()]
    print(f"rendered {paths[0]}: gateway, scheduler and worker-cpu run", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("base", type=Path, help="a folder with a Debian and its Python")
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "image")
    parser.add_argument("--targets", default=",".join(TARGETS))
    options = parser.parse_args()
    if os.geteuid() != 0 or not (options.base / "usr").is_dir():
        parser.error("it takes root, and a BASE as debootstrap makes it (see the top of this file)")
    options.folder.mkdir(parents=True, exist_ok=True)
    builder = Builder(options.base, options.folder)
    builder.fetch()
    images = {name: builder.build(name) for name in options.targets.split(",")}
    if set(images) == set(TARGETS):
        try_out(images, options.folder.absolute())


if __name__ == "__main__":
    main()
