"""A worker that paints plain colours: what the gateway and the SDK need to see jobs end."""

import hashlib
import secrets
import threading
from pathlib import Path

import numpy as np
from picture_key import picture_key

from farm.formats.encoding import encode
from farm.formats.manifest import ManifestRow, write_part
from farm.formats.picture_file import Facts, token_bytes
from farm.job import Chunk, Format, Lease, Receipt
from farm.queue import Queue
from farm.sinks.images import Images
from farm.sinks.parts import pictures_to_make
from farm.spec import CheckpointInfo, Row
from farm.store import Store, keys

BAD_PROMPT = "please fail"
LOST_PROMPT = "please crash"


class FakeWorker:
    def __init__(self, queue: Queue, store: Store, info: CheckpointInfo) -> None:
        self.queue = queue
        self.store = store
        self.info = info
        self.session = secrets.token_hex(16)
        self.healed = False  # then it draws the bad prompts too
        self.older = False  # then it writes manifest parts as earlier versions did
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        self.queue.register(
            self.session, "fake", [self.info.name], {"checkpoints": [self.info.model_dump()]}
        )
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self.queue.end(self.session, "drain")

    def _run(self) -> None:
        while not self._stop.is_set():
            self.queue.heartbeat(self.session, 1000, {}, {}, 10_000)
            self.queue.tick()
            self.queue.lease(self.session, None, 1000, 10_000)
            for lease in self.queue.held(self.session):
                self.do(lease)
            self._stop.wait(0.02)

    def do(self, lease: Lease) -> None:
        if lease.finalise:
            self.store.put(keys.success(lease.job, lease.generation), b"{}")
            receipt = Receipt(done=0, failed=0, size=0, part="", part_sha256="", numerics="fake")
            self.queue.complete(self.session, lease, receipt)
            return
        text = lease.inline or self.store.get(keys.chunk(lease.job, lease.number)).decode()
        chunk = Chunk.model_validate_json(text)
        if not self.healed and any(one.spec.prompt == LOST_PROMPT for one in chunk.renders):
            self.queue.fail(self.session, lease, "row", "the picture cannot be drawn")
            return
        wanted = pictures_to_make(self.store, Images(self.store, Path()), chunk, lease.generation)
        rows = [
            self._paint(chunk, lease, numbered.render, row)._replace(metadata=numbered.metadata)
            for numbered in chunk.renders
            for row in numbered.spec.rows()
            if (numbered.render, row.index) in wanted
        ]
        part = write_part(rows, as_before=self.older)
        key = keys.part(chunk.job, lease.generation, chunk.number)
        self.store.put(key, part)
        failed = sum(row.error is not None for row in rows)
        self.queue.complete(
            self.session,
            lease,
            Receipt(
                done=len(rows) - failed,
                failed=failed,
                size=sum(row.size or 0 for row in rows),
                part=key,
                part_sha256=hashlib.sha256(part).hexdigest(),
                numerics="fake",
            ),
        )

    def _paint(self, chunk: Chunk, lease: Lease, render: int, row: Row) -> ManifestRow:
        spec = row.spec
        common = {
            "job": chunk.job, "generation": lease.generation, "render": render,
            "image": row.index, "width": spec.width, "height": spec.height, "seed": row.seed,
            "spec_sha256": spec.sha256, "spec": spec.canonical(), "numerics": "fake",
        }  # fmt: skip
        if spec.prompt == BAD_PROMPT and not self.healed:
            error = '{"code": "render", "message": "the logits are not finite"}'
            return ManifestRow(
                **common, file=None, sha256=None, size=None, tokens=None, tokens_sha256=None,
                error=error,
            )  # fmt: skip
        colour = hashlib.sha256(f"{spec.prompt}{row.seed}".encode()).digest()[:3]
        facts = Facts(spec, row.index, "fake", np.array([[*colour]], np.uint16))
        pixels = np.full((spec.height, spec.width, 3), [*colour], np.uint8)
        data = encode(pixels, facts, Format(chunk.format))
        file = picture_key(chunk.job, lease.generation, render, row.index, Format(chunk.format))
        self.store.put(file, data)
        tokens = token_bytes(facts.tokens)
        return ManifestRow(
            **common, file=file, sha256=hashlib.sha256(data).hexdigest(), size=len(data),
            tokens=tokens, tokens_sha256=hashlib.sha256(tokens).hexdigest(),
        )  # fmt: skip
