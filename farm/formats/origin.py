"""The mark of origin: an XMP packet that says that a picture was generated.

It is the same bytes in every picture, so that it changes nothing about what is reproducible. What
made a picture in particular stands beside it, see ``farm.formats.picture_file``.
"""

import io
import struct
import zlib

from PIL import Image

# IPTC NewsCodes, Digital Source Type: https://cv.iptc.org/newscodes/digitalsourcetype
GENERATED = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"

# XMP specification part 1 (ISO 16684-1); the property is IPTC Photo Metadata 2025.1's.
XMP = (
    '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
    '<x:xmpmeta xmlns:x="adobe:ns:meta/">'
    '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    '<rdf:Description rdf:about=""'
    ' xmlns:xmp="http://ns.adobe.com/xap/1.0/"'
    ' xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"'
    ' xmp:CreatorTool="amused-farm"'
    f' Iptc4xmpExt:DigitalSourceType="{GENERATED}"/>'
    "</rdf:RDF></x:xmpmeta>"
    '<?xpacket end="r"?>'
).encode()

PNG_KEYWORD = b"XML:com.adobe.xmp"  # XMP specification part 3, section 1.1.5


def png_chunk(keyword: bytes, text: bytes) -> bytes:
    """An international text of PNG: not compressed, no language, no translated keyword."""
    body = b"iTXt" + keyword + b"\0\0\0\0\0" + text
    return struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))


def digital_source_type(data: bytes) -> str | None:
    """What a picture file says of its origin; None if that is not what the farm writes, or the
    file is not a picture."""
    try:
        with Image.open(io.BytesIO(data), formats=["PNG", "JPEG", "WEBP"]) as image:
            packet = image.info.get("xmp", b"")
    except Exception:  # whatever a file that is not a picture leads Pillow to
        return None
    return GENERATED if GENERATED.encode() in packet else None
