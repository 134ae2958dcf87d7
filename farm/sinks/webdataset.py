"""``webdataset``: a tar file per task, as https://github.com/webdataset/webdataset reads it.

Each picture is two members, ``00000731-02.png`` and ``00000731-02.json``; the second has the
columns of ``farm.formats.columns`` and, as ``metadata``, the user's own. A third one,
``00000731-02.txt``, may hold the prompt alone, where programs that train on captions look for it.
"""

import io
import json
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from farm.formats.columns import fixed_values, user_values
from farm.formats.manifest import ManifestRow
from farm.formats.picture_file import file_name, read_facts
from farm.job import Format
from farm.sinks.layout import Packed, Unpacked, check_content, refuse_damage
from farm.spec import canonical_json


class Webdataset:
    suffix = ".tar"
    content_type = "application/x-tar"
    tokens_alone = False

    def __init__(self, *, captions: bool = False) -> None:
        self._captions = captions  # a member with the prompt; a sink's shards have none

    def file_name(self, render: int, image: int, picture_format: Format) -> str:
        return file_name(render, image, picture_format)

    def pack(self, rows: Sequence[ManifestRow], contents: Sequence[bytes]) -> Packed:
        out = io.BytesIO()
        offsets = []
        with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as archive:
            for row, content, fixed in zip(rows, contents, fixed_values(rows), strict=True):
                assert row.file is not None
                offsets.append(out.tell() + tarfile.BLOCKSIZE)
                name = row.file.partition(".")[0]
                _add(archive, row.file, content)
                _add(archive, f"{name}.json", _sidecar(row, fixed))
                if self._captions:
                    _add(archive, f"{name}.txt", fixed["prompt"].encode())
        return Packed(out.getvalue(), offsets)

    def unpack(self, data: bytes) -> Iterator[Unpacked]:
        try:
            with refuse_damage(), tarfile.open(fileobj=io.BytesIO(data), mode="r:") as archive:
                members = archive.getmembers()
                each = 3 if self._captions else 2
                for picture, beside in zip(members[::each], members[1::each], strict=True):
                    render, image = map(int, picture.name.partition(".")[0].split("-"))
                    content = _of(picture, data)
                    check_content(content, json.loads(_of(beside, data))["sha256"])
                    offset = picture.offset_data
                    yield Unpacked((render, image), offset, content, read_facts(content))
        except tarfile.TarError as error:
            raise ValueError("the shard is damaged") from error


def _of(member: tarfile.TarInfo, data: bytes) -> bytes:
    return data[member.offset_data : member.offset_data + member.size]


def _sidecar(row: ManifestRow, fixed: Mapping[str, Any]) -> bytes:
    """The JSON that stands beside a picture."""
    return canonical_json({**fixed, "metadata": user_values(row.metadata)}).encode()


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)  # no owner and no time
    member.size = len(data)
    archive.addfile(member, io.BytesIO(data))
