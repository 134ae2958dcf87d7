"""Run a program that holds a lock: ``python -I -S locked.py FILE PROGRAM ARGUMENTS…``.

The lock is a POSIX record lock. It survives exec, its holder's children do not inherit it, and the
kernel drops it with the process, however that ends. So its holder is the program itself, and
a lock file that is left over locks nothing. Standard library only: it starts in a few milliseconds.
"""

import fcntl
import os
import struct
import sys

HELD = 75  # exit status where another process holds the lock (EX_TEMPFAIL)
_FLOCK = "hhqqi"  # l_type, l_whence, l_start, l_len, l_pid on Linux


def holder(file: int) -> int:
    """The process that locks an open file; 0 if it cannot be told."""
    if sys.platform != "linux":
        return 0
    asked = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    return int(struct.unpack(_FLOCK, fcntl.fcntl(file, fcntl.F_GETLK, asked))[-1])


def main() -> None:
    path, program, *arguments = sys.argv[1:]
    # Not opened by the program again: closing any descriptor of the file would drop the lock.
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        who = holder(file)
        print(f"process {who or '?'} holds {path}: it runs already", file=sys.stderr)
        sys.exit(HELD)
    os.set_inheritable(file, True)
    os.execv(program, [program, *arguments])


if __name__ == "__main__":
    main()
