"""Records of a newer farm are refused with what to do, those of an older one are read."""

import json
from datetime import UTC, datetime

import pytest

from farm.errors import Conflict
from farm.ingest.ingest import ClosedRecord, JobRecord
from farm.job import Chunk
from farm.renders import Renders
from farm.stored_record import STORE_SCHEMA, StoredRecord

RECORDS: list[StoredRecord] = [
    Chunk(
        job="j", number=0, tenant="t", sink="images", format="png", lane="c@r/text2img/8x8",
        renders=Renders.of(()),
    ),
    JobRecord(
        job="j", tenant="t", options={}, seed=1, sink="images", format="png", fingerprint="f",
        created_at=datetime.now(UTC), paces={},
    ),
    ClosedRecord(pieces=1, rejected=0),
]  # fmt: skip


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: type(record).__name__)
def test_a_record_says_its_schema_and_one_of_a_newer_schema_is_refused(
    record: StoredRecord,
) -> None:
    kept = json.loads(record.model_dump_json())
    assert kept["v"] == STORE_SCHEMA
    newer = {**kept, "v": STORE_SCHEMA + 1, "of_the_future": [1]}
    with pytest.raises(Conflict, match="newer version of the farm wrote this") as caught:
        type(record).model_validate_json(json.dumps(newer))
    assert "install" in str(caught.value.hint)


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: type(record).__name__)
def test_a_record_from_before_there_were_schemas_is_read(record: StoredRecord) -> None:
    kept = json.loads(record.model_dump_json())
    del kept["v"]
    assert type(record).model_validate_json(json.dumps(kept)) == record
