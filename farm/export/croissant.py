"""A data set's description as Croissant 1.1, a vocabulary of MLCommons.

The specification: https://docs.mlcommons.org/croissant/docs/croissant-spec-1.1.html. Records are
the rows of the manifest, whatever the pictures are stored as.
"""

import json
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

CONFORMS_TO = "http://mlcommons.org/croissant/1.1"
_CR = (
    "citeAs", "column", "equivalentProperty", "extract", "field", "fileProperty", "fileObject",
    "fileSet", "format", "includes", "isLiveDataset", "jsonPath", "key", "md5", "parentField",
    "path", "recordSet", "references", "regex", "repeated", "replace", "samplingRate", "separator",
    "source", "subField", "transform",
)  # fmt: skip
CONTEXT: Mapping[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "dct": "http://purl.org/dc/terms/",
    "sc": "https://schema.org/",
    "conformsTo": "dct:conformsTo",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "examples": {"@id": "cr:examples", "@type": "@json"},
    **{name: f"cr:{name}" for name in _CR},
}


def croissant(
    *,
    title: str,
    description: str,
    license_name: str,
    manifest: str,
    manifest_sha256: str,
    patterns: Mapping[str, str],
    columns: Mapping[str, tuple[pa.DataType, str]],
) -> str:
    """The document's text.

    Args:
        title: of the data set.
        description: one paragraph.
        license_name: an SPDX or Hugging Face id.
        manifest: its file name.
        manifest_sha256: of the file.
        patterns: of the files with the pictures, by split.
        columns: the manifest's, each with its type and what it means.
    """
    files: list[dict[str, Any]] = [
        {
            "@type": "cr:FileObject",
            "@id": manifest,
            "name": manifest,
            "contentUrl": manifest,
            "encodingFormat": "application/x-parquet",
            "sha256": manifest_sha256,
        }
    ]
    files += [
        {
            "@type": "cr:FileSet",
            "@id": f"files-{split}",
            "name": f"files-{split}",
            "encodingFormat": "application/octet-stream",
            "includes": pattern,
        }
        for split, pattern in patterns.items()
    ]
    fields = [
        {
            "@type": "cr:Field",
            "@id": f"pictures/{name.replace(' ', '%20')}",  # an id has no spaces
            "name": name,
            "description": meaning or name,
            **_data_type(kind),
            "source": {"fileObject": {"@id": manifest}, "extract": {"column": name}},
        }
        for name, (kind, meaning) in columns.items()
    ]
    records = {"@type": "cr:RecordSet", "@id": "pictures", "name": "pictures", "field": fields}
    document = {
        "@context": CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": CONFORMS_TO,
        "name": title,
        "description": description,
        "license": license_name,
        "distribution": files,
        "recordSet": [records],
    }
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


def _data_type(kind: pa.DataType) -> dict[str, Any]:
    if pa.types.is_list(kind):
        return {**_data_type(kind.value_type), "repeated": True}
    if pa.types.is_boolean(kind):
        return {"dataType": "sc:Boolean"}
    if pa.types.is_integer(kind):
        return {"dataType": "sc:Integer"}
    return {"dataType": "sc:Float" if pa.types.is_floating(kind) else "sc:Text"}
