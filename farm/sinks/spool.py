"""Pictures that wait for their shard: files to which one process after another appends.

One file for each picture costs more than everything else that is done for a small one. A write
that is cut off leaves a torn record at the end of its file, to which nothing is appended any more.
It was not acknowledged, so the picture comes again.
"""

import errno
import shutil
import struct
import tempfile
import threading
from pathlib import Path
from typing import BinaryIO

_LENGTHS = struct.Struct("<II")  # bytes of the name and of the content


class Spool:
    """The contents of one task; thread-safe.

    Args:
        folder: of this task alone; made when the first content comes.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._adding = threading.Lock()
        self._file: BinaryIO | None = None  # this process's own
        self._removed = False

    def add(self, name: str, content: bytes) -> None:
        """Keep one so that it survives this process. Raises ``OSError``; once the task's contents
        were removed, always."""
        encoded = name.encode()
        record = _LENGTHS.pack(len(encoded), len(content)) + encoded + content
        with self._adding:
            if self._removed:
                raise OSError(errno.ENOENT, "their task is over")
            file = self._file or self._open()
            self._file = None  # for good, if the next line fails or writes less
            if file.write(record) != len(record):
                file.close()
                raise OSError("the disk took a part of it")
            self._file = file

    def read(self) -> dict[str, bytes]:
        """All of them by name. Raises ``OSError``."""
        found: dict[str, bytes] = {}
        for path in sorted(self._folder.glob("*")):
            data, end = path.read_bytes(), 0
            while end + _LENGTHS.size <= len(data):
                name, content = _LENGTHS.unpack_from(data, end)
                start = end + _LENGTHS.size + name
                end = start + content
                if end > len(data):
                    break
                found[data[start - name : start].decode()] = data[start:end]
        return found

    def remove(self) -> None:
        """Whatever of it is there, and whatever another thread is about to add."""
        with self._adding:
            self._removed = True
            if self._file is not None:
                self._file.close()
                self._file = None
            shutil.rmtree(self._folder, ignore_errors=True)

    def _open(self) -> BinaryIO:
        self._folder.mkdir(parents=True, exist_ok=True)
        descriptor, _ = tempfile.mkstemp(dir=self._folder)
        return open(descriptor, "wb", buffering=0)
