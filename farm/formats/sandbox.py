"""Pictures of strangers are decoded in a process that may use little and reach nothing.

A decoder is the largest piece of C code that reads a stranger's bytes, and a small file can unfold
to gigabytes or minutes. So each picture has a process of its own, forked from one that has Pillow
loaded: it may open no file and no socket, has limits of memory and of processor time, and is ended
when its time is over. Only its answer about the picture comes back.
"""

import contextlib
import io
import json
import os
import queue
import resource
import signal
import struct
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from farm.errors import FarmError, InvalidInput, TooLarge, Unavailable, from_dict
from farm.formats.decoding import InputKind, Picture, probe

PROCESSES = 2
MEMORY_BYTES = 768 * 2**20  # of one picture
CPU_SECONDS = 4  # of one picture; 8192 x 8192 pixels take one
WALL_SECONDS = 20.0  # the machine may be busy
WAIT_SECONDS = 15.0  # for a free process
MAX_ANSWER_BYTES = 2**16
NICENESS = 5  # the gateway's own answers come first

_KINDS: tuple[InputKind, ...] = ("image", "mask")
_REQUEST = struct.Struct(">BQ")  # kind, bytes of the picture
_ANSWER = struct.Struct(">I")  # bytes of JSON


class Limits(NamedTuple):
    memory_bytes: int = MEMORY_BYTES
    cpu_seconds: int = CPU_SECONDS
    wall_seconds: float = WALL_SECONDS
    wait_seconds: float = WAIT_SECONDS


class Sandbox:
    """A few processes that look at pictures; safe to call from many threads."""

    def __init__(self, processes: int = PROCESSES, limits: Limits | None = None) -> None:
        self._limits = limits or Limits()
        self._free: queue.LifoQueue[_Process | None] = queue.LifoQueue()
        for _ in range(processes):
            self._free.put(None)  # started when it is needed

    def probe(self, data: bytes, kind: InputKind) -> Picture:
        """As ``decoding.probe``.

        Raises:
            InvalidInput: it is not a picture, or takes more memory or time than a picture may.
            Unavailable: all processes are busy, or the machine has no room for one.
        """
        try:
            process = self._free.get(timeout=self._limits.wait_seconds)
        except queue.Empty:
            raise Unavailable(
                "too many pictures are being checked", hint="try again in a moment"
            ) from None
        try:
            if process is None or not process.alive:
                process = _Process(self._limits)
            answer = process.ask(data, kind)
        except OSError as error:  # too many files or processes, or no memory
            raise Unavailable(
                f"no process to check pictures can be started: {error.strerror}",
                hint="try again in a moment",
            ) from error
        finally:
            self._free.put(process)
        if "error" in answer:
            raise from_dict(answer["error"])
        return Picture(
            int(answer["width"]), int(answer["height"]), tuple(map(str, answer["notes"]))
        )

    def close(self) -> None:
        """End the processes that are free."""
        while True:
            try:
                process = self._free.get_nowait()
            except queue.Empty:
                return
            if process is not None:
                process.end()


class _Process:
    """The gateway's end of one process that forks for each picture."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        arguments = [str(limits.memory_bytes), str(limits.cpu_seconds)]
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "farm.formats.sandbox", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd="/",
            env=_environment(),
            start_new_session=True,  # so that it can be ended with what it forked
        )

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def ask(self, data: bytes, kind: InputKind) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        late = threading.Event()

        def expire() -> None:
            late.set()
            self.end()

        timer = threading.Timer(self._limits.wall_seconds, expire)
        timer.daemon = True
        timer.start()
        try:
            self._process.stdin.write(_REQUEST.pack(_KINDS.index(kind), len(data)))
            self._process.stdin.write(data)
            self._process.stdin.flush()
            answer = _read_answer(self._process.stdout)
        except OSError:
            answer = None
        finally:
            timer.cancel()
        if answer is None:
            self.end()
            if late.is_set():
                raise Unavailable(
                    "the picture could not be checked in time", hint="try again in a moment"
                )
            raise Unavailable("the process that checks pictures ended", hint="try again")
        return answer

    def end(self) -> None:
        if self.alive:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()


def _environment() -> dict[str, str]:
    """None of the gateway's secrets, and one thread for numpy."""
    root = str(Path(__file__).parents[2])
    return {"PYTHONPATH": root, "OPENBLAS_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}


def _read_answer(pipe: Any) -> dict[str, Any] | None:
    head = pipe.read(_ANSWER.size)
    if len(head) < _ANSWER.size:
        return None
    text = pipe.read(_ANSWER.unpack(head)[0])
    answer: dict[str, Any] = json.loads(text)
    return answer


def serve(source: BinaryIO, out: BinaryIO, memory_bytes: int, cpu_seconds: int) -> None:
    """Answer one request after another until the input ends."""
    _warm_up()
    os.nice(NICENESS)
    while len(head := source.read(_REQUEST.size)) == _REQUEST.size:
        number, size = _REQUEST.unpack(head)
        data = source.read(size)
        inner, outer = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                os.dup2(outer, 1)
                os.closerange(3, max(inner, outer) + 1)
                os.close(0)
                _confine(memory_bytes, cpu_seconds)
                os.write(1, json.dumps(_look(data, _KINDS[number])).encode())
                os._exit(0)
            finally:
                os._exit(1)
        del data
        os.close(outer)
        with open(inner, "rb") as pipe:
            text = pipe.read(MAX_ANSWER_BYTES)
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status) or os.WEXITSTATUS(status) or not text:
            text = json.dumps({"error": _verdict(status, _KINDS[number]).to_dict()}).encode()
        out.write(_ANSWER.pack(len(text)) + text)
        out.flush()


def _look(data: bytes, kind: InputKind) -> dict[str, Any]:
    try:
        return dict(probe(data, kind)._asdict())
    except FarmError as error:
        return {"error": error.to_dict()}
    except MemoryError:
        return {"error": _needs_memory(kind).to_dict()}


def _verdict(status: int, kind: InputKind) -> InvalidInput:
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) in (signal.SIGXCPU, signal.SIGKILL):
        return TooLarge(
            "takes too long to decode",
            field="mask_image" if kind == "mask" else kind,
            hint="open it and save it again, or scale it down",
        )
    return _needs_memory(kind)


def _needs_memory(kind: InputKind) -> InvalidInput:
    return TooLarge(
        "takes too much memory to decode",
        field="mask_image" if kind == "mask" else kind,
        hint="scale it down; a render has at most 4096 x 4096",
    )


def _confine(memory_bytes: int, cpu_seconds: int) -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0]) if _PROC else 0
    for name, limit in (
        (resource.RLIMIT_AS, pages * resource.getpagesize() + memory_bytes),
        (resource.RLIMIT_CPU, cpu_seconds),
        (resource.RLIMIT_NOFILE, 3),  # those that are open; no file, no socket
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(name, (limit, limit))


_PROC = Path("/proc/self/statm").exists()


def _warm_up() -> None:
    """Have everything imported that a decoder imports when it first meets a format."""
    from PIL import Image

    for form in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"):
        for mode in ("RGB", "L"):
            out = io.BytesIO()
            Image.new(mode, (8, 8)).save(out, form)
            for kind in _KINDS:
                probe(out.getvalue(), kind)
    for broken in (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"II*\0\x08\0\0\0"):
        try:
            probe(broken, "image")
        except InvalidInput:
            continue


if __name__ == "__main__":
    serve(sys.stdin.buffer, sys.stdout.buffer, int(sys.argv[1]), int(sys.argv[2]))
