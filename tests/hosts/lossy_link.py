"""A cable that loses and delays, between two network namespaces: not every kernel has netem.

    python lossy_link.py HOST SWITCH

makes the tap ``eth0`` in the namespace HOST and ``p-HOST`` in SWITCH and carries frames between
them. A line "LOSS SECONDS" on standard input sets the share of frames that is lost and the delay,
each way; the end of the input ends it.
"""

import collections
import ctypes
import fcntl
import os
import random
import struct
import sys
import threading
import time

TUNSETIFF = 0x400454CA  # linux/if_tun.h, as the next two
IFF_TAP, IFF_NO_PI = 0x0002, 0x1000
CLONE_NEWNET = 0x40000000
MAX_FRAME = 70_000


class Fault:
    """What happens to frames now."""

    loss = 0.0
    seconds = 0.0


def tap(namespace: str, name: str) -> int:
    """A new tap in a namespace, which this thread enters."""
    libc = ctypes.CDLL(None, use_errno=True)
    file = os.open(f"/var/run/netns/{namespace}", os.O_RDONLY)
    if libc.setns(file, CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), f"cannot enter the namespace {namespace}")
    os.close(file)
    device = os.open("/dev/net/tun", os.O_RDWR)
    request = struct.pack("16sH22x", name.encode(), IFF_TAP | IFF_NO_PI)
    fcntl.ioctl(device, TUNSETIFF, request)
    return device


def carry(source: int, target: int, fault: Fault) -> None:
    """Frames keep their order."""
    frames: collections.deque[tuple[float, bytes]] = collections.deque()
    arrived = threading.Condition()

    def deliver() -> None:
        while True:
            with arrived:
                while not frames:
                    arrived.wait()
                due, frame = frames.popleft()
            time.sleep(max(due - time.monotonic(), 0))
            write(target, frame)

    threading.Thread(target=deliver, daemon=True).start()
    while True:
        try:
            frame = os.read(source, MAX_FRAME)
        except OSError:  # the link is down
            time.sleep(0.01)
            continue
        if random.random() >= fault.loss:
            with arrived:
                frames.append((time.monotonic() + fault.seconds, frame))
                arrived.notify()


def write(target: int, frame: bytes) -> None:
    try:
        os.write(target, frame)
    except OSError:  # the link is down: the frame is lost
        return


def main() -> None:
    host, switch = sys.argv[1:3]
    ends = tap(host, "eth0"), tap(switch, f"p-{host}"[:15])
    fault = Fault()
    for source, target in (ends, ends[::-1]):
        threading.Thread(target=carry, args=(source, target, fault), daemon=True).start()
    print("ready", flush=True)
    for line in sys.stdin:
        loss, seconds = line.split()
        fault.loss, fault.seconds = float(loss), float(seconds)


if __name__ == "__main__":
    main()
