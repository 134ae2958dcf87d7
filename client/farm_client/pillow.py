"""Pictures as Pillow has them, for those who have it; the SDK does not need it."""

import io
from typing import TYPE_CHECKING, TypeAlias

from farm.errors import InvalidInput

if TYPE_CHECKING:
    import PIL.Image

PillowImage: TypeAlias = "PIL.Image.Image"


def open_picture(data: bytes) -> PillowImage:
    """The picture of a file."""
    try:
        import PIL.Image
    except ImportError:
        raise InvalidInput("Pillow is not installed", hint="pip install pillow") from None
    try:
        return PIL.Image.open(io.BytesIO(data))
    except PIL.UnidentifiedImageError:
        raise InvalidInput("it has tokens, not a picture", hint="read() gives the file") from None
