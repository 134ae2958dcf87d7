"""A disk that takes no file is told in one line, with what to do."""

import errno
import os
import resource
from pathlib import Path

import pytest

from farm.disk import writing_to
from farm.errors import InvalidInput
from farm.paths import make_private


@pytest.mark.parametrize("place", [None, ".", "out", "out/data/.x.part"])
@pytest.mark.parametrize(
    ("code", "hint"),
    [
        (errno.ENOSPC, "the disk is full"),
        (errno.EDQUOT, "quota is used up"),
        (errno.EROFS, "read-only"),
        (errno.EACCES, "permissions"),
    ],
)
def test_what_a_disk_refuses_has_a_hint(code: int, hint: str, place: str | None) -> None:
    with pytest.raises(InvalidInput, match="out cannot be written to") as caught:
        refuse(code, place)
    assert hint in str(caught.value.hint)


@pytest.mark.parametrize(
    ("code", "place"), [(errno.EACCES, "elsewhere/weights"), (errno.ENAMETOOLONG, "out/x")]
)
def test_other_refusals_stay_what_they_are(code: int, place: str) -> None:
    with pytest.raises(OSError, match=place):
        refuse(code, place)


def refuse(code: int, place: str | None) -> None:
    with writing_to("out", "--output"):
        raise OSError(code, os.strerror(code), place)


def test_a_farms_folder_on_a_full_disk_is_refused_before_anything_starts(tmp_path: Path) -> None:
    mask = os.umask(0)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        with pytest.raises(InvalidInput, match="cannot be used"):
            make_private(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        os.umask(mask)
