"""The process that looks at strangers' pictures."""

import os
import resource
import threading
import time
from collections.abc import Iterator

import pytest
from bombs import BOMBS
from PIL import Image
from test_picture import COLOUR, save

from farm.errors import InvalidInput, TooLarge, Unavailable
from farm.formats import sandbox
from farm.formats.decoding import probe
from farm.formats.sandbox import Limits, Sandbox


@pytest.fixture(scope="module")
def box() -> Iterator[Sandbox]:
    box = Sandbox(1)
    yield box
    box.close()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_it_says_of_a_picture_what_the_decoder_says(box: Sandbox, kind: str) -> None:
    data = save(COLOUR, kind)
    assert box.probe(data, "image") == probe(data, "image")
    assert box.probe(data, "mask") == probe(data, "mask")


@pytest.mark.parametrize("data", [b"", b"<svg>", save(COLOUR, "PNG")[:200], b"8BPS" + bytes(40)])
def test_what_is_wrong_with_a_picture_is_told(box: Sandbox, data: bytes) -> None:
    with pytest.raises(InvalidInput) as there:
        box.probe(data, "mask")
    with pytest.raises(InvalidInput) as here:
        probe(data, "mask")
    assert str(there.value) == str(here.value)
    assert type(there.value) is type(here.value)


@pytest.mark.parametrize("name", list(BOMBS))
def test_a_bomb_gets_the_answer_that_it_should(box: Sandbox, name: str) -> None:
    if BOMBS[name].refused:
        with pytest.raises(InvalidInput):
            box.probe(BOMBS[name].make(), "image")
    else:
        box.probe(BOMBS[name].make(), "image")


def test_a_picture_that_takes_too_much_memory_is_refused_and_the_next_one_is_read() -> None:
    box = Sandbox(1, Limits(memory_bytes=64 * 2**20))
    with pytest.raises(TooLarge, match="memory"):
        box.probe(BOMBS["rgba of 8192 x 4096"].make(), "image")
    assert box.probe(save(COLOUR, "PNG"), "image").width == 96
    box.close()


def test_what_takes_too_much_processor_time_is_ended_and_refused() -> None:
    child = os.fork()
    if child == 0:
        sandbox._confine(2**30, 1)
        while True:
            pass
    _, status = os.waitpid(child, 0)
    verdict = sandbox._verdict(status, "mask")
    assert isinstance(verdict, TooLarge)
    assert "too long" in verdict.message
    assert verdict.field == "mask_image"


def test_a_process_that_does_not_answer_is_ended_and_replaced() -> None:
    box = Sandbox(1)
    box.probe(save(COLOUR, "PNG"), "image")
    process = box._free.get()
    assert process is not None
    box._free.put(process)
    process._limits = Limits(wall_seconds=0.2)
    os.kill(process._process.pid, 19)  # SIGSTOP
    with pytest.raises(Unavailable, match="in time"):
        box.probe(save(COLOUR, "PNG"), "image")
    assert box.probe(save(COLOUR, "PNG"), "image").width == 96
    box.close()


def test_a_caller_does_not_wait_for_ever_for_a_free_process() -> None:
    box = Sandbox(1, Limits(wait_seconds=0.2))
    data = BOMBS["jpeg with as many scans as are allowed"].make()
    busy = threading.Thread(target=lambda: box.probe(data, "image"))
    busy.start()
    time.sleep(0.1)
    with pytest.raises(Unavailable, match="too many"):
        box.probe(save(COLOUR, "PNG"), "image")
    busy.join()
    box.close()


def test_a_machine_without_room_for_a_process_is_busy_and_later_is_not() -> None:
    box = Sandbox(1)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    picture = save(COLOUR, "PNG")
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
        with pytest.raises(Unavailable, match="no process to check pictures can be started"):
            box.probe(picture, "image")
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert box.probe(picture, "image") == probe(picture, "image")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        box.close()


def test_the_process_knows_none_of_the_gateways_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
    assert "hunter2" not in str(sandbox._environment())


def test_a_decoder_can_open_no_file_and_no_socket() -> None:
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        os.dup2(write_end, 1)
        os.closerange(3, 4096)
        sandbox._confine(2**30, 4)
        refused = 0
        for reach in (lambda: os.open("/etc/hostname", os.O_RDONLY), lambda: os.pipe()):
            try:
                reach()
            except OSError:
                refused += 1
        os.write(1, str(refused).encode())
        os._exit(0)
    os.close(write_end)
    os.waitpid(child, 0)
    assert os.read(read_end, 16) == b"2"
    os.close(read_end)


def test_large_photographs_are_still_taken(box: Sandbox) -> None:
    data = save(Image.new("RGB", (9504, 6336), (90, 120, 40)), "JPEG")
    assert box.probe(data, "image")[:2] == (9504, 6336)
