"""``_SUCCESS``, the object that says that a job is complete."""

import hashlib
from collections.abc import Iterable, Mapping

from farm.job import Receipt
from farm.spec import canonical_json
from farm.store import Store


def success_document(
    job: str, generation: int, parts: Iterable[tuple[str, str]], counts: Mapping[str, int]
) -> bytes:
    """The object's bytes, JSON.

    Args:
        parts: key and sha256 of each manifest part, in any order.
        counts: whatever else was counted.
    """
    ordered = sorted(parts)
    document = {
        "v": 1,
        "job": job,
        "generation": generation,
        "counts": {"parts": len(ordered), **counts},
        "parts": [{"key": key, "sha256": sha256} for key, sha256 in ordered],
    }
    return canonical_json(document).encode()


def store_success(store: Store, key: str, document: bytes) -> Receipt:
    """Write the object; the first one counts."""
    if not store.put(key, document, content_type="application/json"):
        document = store.get(key)
    return Receipt(
        done=0,
        failed=0,
        size=len(document),
        part=key,
        part_sha256=hashlib.sha256(document).hexdigest(),
        numerics="",
    )
