"""Random requests, made from the API's own description and beyond it: none is a failure inside.

Ten seconds in every test run; ``make fuzz`` goes on for an hour.
"""

import contextlib
import json
import os
import random
import socket
import time
from collections import Counter
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest
import schemathesis
from harness import gateway_process, png, post
from hypothesis import HealthCheck, Phase, Verbosity, given, seed, settings
from hypothesis.errors import Unsatisfiable
from schemathesis.generation import GenerationMode

SECONDS = float(os.environ.get("FARM_FUZZ_SECONDS", "10"))
EXAMPLES = 20  # of an address before the next one has its turn
MOST_GROWTH = 100 * 2**20  # bytes of the gateway's memory, however long it goes on
STREAMS = "/events"  # of a job that goes on they do not end

PIECES = [
    b"GET", b"POST", b"PUT", b"HEAD", b"DELETE", b"OPTIONS", b"X" * 40, b"/", b"/v1/jobs",
    b"/v1/assets", b"/v1/objects/a", b"/healthz", b"//[", b"/%ff%00", b"/../..", b"?limit=1e9",
    b"?before=j0-", b"?open", b"?" + b"a=b&" * 500, b" HTTP/1.1", b" HTTP/1.0",
    b"\r\n", b"\r\n\r\n",
    b"Host: localhost", b"Host: [", b"Host: ", b"Host: localhost:99999", b"Origin: http://[",
    b"Origin: null", b"Content-Length: 5", b"Content-Length: -1", b"Transfer-Encoding: chunked",
    b"Content-Type: application/json", b"Content-Type: application/x-ndjson", b"Content-Type: \xff",
    b"Authorization: Bearer x", b"Authorization: \xff", b"Range: bytes=9-", b"Expect: 100-continue",
    b"Idempotency-Key: \xe9", b"Connection: Upgrade\r\nUpgrade: websocket", b"5\r\nhello\r\n",
    b"0\r\n\r\n", b'{"renders": [{}]}', b'{"prompt": "x"}\n', b"\x00", b"\xff\xfe",
]  # fmt: skip


@schemathesis.serializer("application/x-ndjson")
def lines(_: schemathesis.SerializationContext, value: Any) -> bytes:
    """A list as one line of JSON for each; whatever else it is, as one line."""
    texts = [json.dumps(one) for one in (value if isinstance(value, list) else [value])]
    return "\n".join(texts).encode(errors="replace")


def describe(
    schema: schemathesis.BaseSchema,
    url: str,
    moment: int,
    told: Counter[int],
    asked: set[str],
    end: float,
) -> None:
    """A round over every address of the API's description; after the first one, until the end."""
    operations = [found.ok() for found in schema.get_all_operations()]
    random.Random(moment).shuffle(operations)
    for operation in operations:
        if moment and time.monotonic() > end:
            return
        if operation.path.endswith(STREAMS):
            continue
        # Whatever stands in a path is text: only a query or a body can be wrong.
        can_be_wrong = operation.query or operation.body
        for mode in list(GenerationMode) if can_be_wrong else [GenerationMode.POSITIVE]:

            @seed(moment)
            @settings(
                max_examples=EXAMPLES, database=None, phases=[Phase.generate],
                suppress_health_check=list(HealthCheck), verbosity=Verbosity.quiet,
            )  # fmt: skip
            @given(case=operation.as_strategy(generation_mode=mode))
            def ask(case: schemathesis.Case) -> None:
                answer = case.call(base_url=url, timeout=30)
                told[answer.status_code] += 1
                asked.add(case.operation.label)
                known = answer.status_code == 503 and case.path == "/readyz"  # no worker is there
                assert answer.status_code < 500 or known, (case.as_curl_command(), answer.text)

            with contextlib.suppress(Unsatisfiable, schemathesis.errors.SchemathesisError):
                ask()  # some cannot be made, or not be sent


def scribble(url: str, chance: random.Random, told: Counter[int]) -> None:
    """What a stranger might write into a socket."""
    parts = urlsplit(url)
    text = b"".join(chance.choice(PIECES) for _ in range(chance.randrange(1, 12)))
    if chance.random() < 0.7:
        method, path, *rest = (chance.choice(PIECES) for _ in range(chance.randrange(2, 10)))
        text = method + b" " + path + b" HTTP/1.1\r\n" + b"\r\n".join(rest) + b"\r\n\r\n"
    with socket.create_connection((parts.hostname, parts.port), timeout=10) as raw:
        raw.sendall(text)
        with contextlib.suppress(OSError):
            raw.shutdown(socket.SHUT_WR)
        raw.settimeout(0.05)
        said = b""
        with contextlib.suppress(OSError):
            said = raw.recv(4096)
    if said.startswith(b"HTTP/1.1 "):
        status = int(said[9:12])
        told[status] += 1
        assert status < 500, (text, said)


@pytest.mark.slow
@pytest.mark.timeout(SECONDS + 240)
def test_no_request_whatever_makes_the_gateway_fail(redis_url: str, tmp_path: Path) -> None:
    chance = random.Random(1)
    told: Counter[int] = Counter()
    asked: set[str] = set()
    with gateway_process(redis_url, tmp_path) as (url, process):
        with httpx2.Client(base_url=url) as http:
            api = http.get("/openapi.json").json()
            for methods in api["paths"].values():
                for operation in methods.values():
                    operation.pop("security", None)  # invented keys would be all that is refused
            schema = schemathesis.openapi.from_dict(api)
            post(http, {"prompt": "x"})
            http.put("/v1/assets", content=png())
        end, rounds, held = time.monotonic() + SECONDS, 0, 0
        while time.monotonic() < end:
            describe(schema, url, rounds, told, asked, end)
            for _ in range(300):
                scribble(url, chance, told)
            rounds += 1
            held = held or process.memory_info().rss  # after the first round all is loaded
        grown = process.memory_info().rss - held
        print(f"{told.total():,} requests in {rounds} rounds, {dict(told)}, {grown >> 20} MiB more")
    operations = (found.ok() for found in schema.get_all_operations())
    missed = {one.label for one in operations if not one.path.endswith(STREAMS)} - asked
    assert not missed
    assert told.total() > 200
    assert grown < MOST_GROWTH
    assert "Traceback" not in (tmp_path / "gateway.log").read_text()
