"""Where the sink ``images`` puts a picture."""

from farm.formats.picture_file import file_name
from farm.job import Format
from farm.store import keys


def picture_key(job: str, generation: int, render: int, image: int, file_format: Format) -> str:
    return keys.data(job, generation) + file_name(render, image, file_format)
