"""What people throw at the API: each gets one clear answer and leaves nothing behind."""

import base64
import hashlib
import json
import socket
import zlib
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest
from harness import Gateway, latents, ndjson, png, post, post_lines, safetensors

OK = {"prompt": "a red bicycle"}

WRONG_RENDERS: list[tuple[Any, str | None, str]] = [
    # render, field of the error, words of its text
    ({}, "prompt", "is missing"),
    ({"prompt": None}, "prompt", "is missing"),
    ({"prompt": 7}, "prompt", "string"),
    ({"prompt": ""}, "prompt", "empty"),
    ({"prompt": " \t\n "}, "prompt", "empty"),
    ({"prompt": "x" * 2001}, "prompt", "2,000"),
    ({"prompt": "x" * 9000}, "prompt", "2,000"),
    ({"prompt": "a\0b"}, "prompt", "U+0000"),
    ({"prompt": "a\x1b[31mb"}, "prompt", "U+001B"),
    ({"prompt": "half \ud800"}, "prompt", "surrogate"),
    ({"prompt": ["a", "b"]}, "prompt", "not a list"),
    (OK | {"half \ud800": 1}, "half \\ud800", "known parameter"),
    ({"half \ud800": 1}, "half \\ud800", "known parameter"),
    (OK | {"num_inference_steps": 0}, "num_inference_steps", "got 0"),
    (OK | {"num_inference_steps": -3}, "num_inference_steps", "got -3"),
    (OK | {"num_inference_steps": 2.5}, "num_inference_steps", "2.5"),
    (OK | {"num_inference_steps": "12"}, "num_inference_steps", "'12'"),
    (OK | {"num_inference_steps": 10**9}, "num_inference_steps", "1,000"),
    (OK | {"guidance_scale": 1e39}, "guidance_scale", ""),
    (OK | {"guidance_scale": -5}, "guidance_scale", "-5"),
    (OK | {"guidance_scale": "7"}, "guidance_scale", "'7'"),
    (OK | {"temperature": -1}, "temperature", "pair"),
    (OK | {"temperature": [1]}, "temperature", "pair"),
    (OK | {"temperature": [1, 2, 3]}, "temperature", "pair"),
    (OK | {"seed": -1}, "seed", "-1"),
    (OK | {"seed": 2**64}, "seed", ""),
    (OK | {"seed": "abc"}, "seed", "'abc'"),
    (OK | {"seed": True}, "seed", "True"),
    (OK | {"width": 0}, "width", ""),
    (OK | {"width": -8}, "width", ""),
    (OK | {"width": 7}, "width", ""),
    (OK | {"height": 100}, "height", "multiple"),
    (OK | {"height": 100000}, "height", ""),
    (OK | {"height": "256"}, "height", "'256'"),
    (OK | {"num_images": 0}, "num_images", ""),
    (OK | {"num_images": 10**6}, "num_images", "64"),
    (OK | {"strength": 0.5}, "strength", "text2img"),
    (OK | {"micro_conditioning_crop_coord": [10**9, 0]}, "micro_conditioning_crop_coord", ""),
    (OK | {"promt": "x"}, "promt", ""),
    (OK | {"mode": "txt2img"}, "mode", "text2img"),
    (OK | {"mode": "img2img"}, "image", "needs one"),
    (OK | {"checkpoint": "amused-9000"}, "checkpoint", "shapes-64"),
    (OK | {"image": "https://example.com/a.png"}, "image", "not fetched"),
    (OK | {"image": "file:///etc/passwd"}, "image", "not fetched"),
    *(
        (OK | {"image": address}, "image", "not fetched")
        for address in (
            "http://localhost/x.png",
            "http://127.1/x",
            "http://0x7f000001/",
            "http://2130706433/",
            "http://[::1]/",
            "http://[::ffff:10.0.0.1]/",
            "http://169.254.169.254/",
            "http://user@host/",
            "http://host:22/",
            "gopher://x",
        )
    ),
    (OK | {"image": "data:image/png;base64,%%%"}, "image", "base64"),
    (OK | {"image": "photo.png"}, "image", "asset"),
    (OK | {"image": "0" * 64}, "image", "unknown asset"),
    (OK | {"tenant": "other"}, "tenant", "not a known"),
    (OK | {"webhook": "http://169.254.169.254/"}, "webhook", "not a known"),
    ("just text", "render", "object"),
    (None, "render", "object"),
]


@pytest.mark.parametrize(("render", "field", "words"), WRONG_RENDERS)
def test_a_wrong_render_is_refused_with_its_field(
    http: httpx2.Client, render: Any, field: str | None, words: str
) -> None:
    answer = post(http, render)
    assert answer.status_code in (404, 422)
    error = answer.json()["error"]
    assert error.get("field") == field or field is None
    assert words in error["message"] + str(error.get("hint"))
    assert "Traceback" not in answer.text
    assert http.get("/v1/jobs").json()["jobs"] == []


WRONG_OPTIONS = [
    ({"priority": 99}, "priority"),
    ({"priority": "soon"}, "priority"),
    ({"deadline": "2020-01-01T00:00:00Z"}, "deadline"),
    ({"deadline": "tomorrow"}, "deadline"),
    ({"deadline": "2999-01-01T00:00:00"}, "deadline"),
    ({"ttl": -1}, "ttl"),
    ({"idempotency_key": ""}, "idempotency_key"),
    ({"idempotency_key": "k" * 300}, "idempotency_key"),
    ({"name": "n" * 300}, "name"),
    ({"name": "line\nbreak"}, "name"),
    ({"max_failed": -1}, "max_failed"),
    ({"format": "gif"}, "format"),
    ({"tenant": "other"}, "tenant"),
]


@pytest.mark.parametrize(("options", "field"), WRONG_OPTIONS)
def test_a_wrong_option_is_refused_with_its_name(
    http: httpx2.Client, options: dict[str, Any], field: str
) -> None:
    answer = post(http, OK, **options)
    assert answer.status_code == 422
    assert answer.json()["error"]["field"] == field
    assert http.get("/v1/jobs").json()["jobs"] == []


ACCEPTED = [
    {"prompt": "\u202eright to left"},
    {"prompt": "many words " * 150},
    {"prompt": "x", "seed": None},
    {"prompt": "x", "seed": 2**64 - 1},
    {"prompt": "x", "num_images_per_prompt": 2},
    {"prompt": "x", "temperature": 1.5},
    {"prompt": "two\nlines"},
]


@pytest.mark.parametrize("render", ACCEPTED)
def test_the_unusual_but_right_is_taken(http: httpx2.Client, render: dict[str, Any]) -> None:
    answer = post(http, render)
    assert answer.status_code == 201, answer.text
    assert answer.json()["accepted"] == 1


WRONG_BODIES: list[tuple[bytes, int, str]] = [
    (b"", 422, "empty"),
    (b"{", 422, "not JSON"),
    (b"[]", 422, "object"),
    (b"null", 422, "object"),
    (b'{"renders": []}', 422, "at least one"),
    (b'{"renders": {"prompt": "x"}}', 422, "list"),
    (b'{"prompt": "x"}', 422, "renders"),
    (b'{"renders": [{"prompt": "x"}],}', 422, "comma"),
    (b'{"renders": [{"prompt": "x", "prompt": "y"}]}', 422, "twice"),
    (b'{"renders": [{"prompt": "x", "guidance_scale": NaN}]}', 422, "NaN"),
    (b'{"renders": [{"prompt": "x", "guidance_scale": -Infinity}]}', 422, "Infinity"),
    (b'{"renders": [{"prompt": "x", "guidance_scale": 1e999}]}', 422, "finite"),
    (b'{"renders": [{"prompt": "x", "seed": ' + b"9" * 5000 + b"}]}", 422, "JSON"),
    (b'{"renders": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", 422, "deep"),
    (b'{"a":' * 5000 + b"1" + b"}" * 5000, 422, "deep"),
    (b'{"renders": [' + b"{}," * 250_000 + b"{}]}", 413, "objects and lists"),
    (b"\xff\xfe{\x00}\x00", 422, "UTF-8"),
    (b'{"renders": ["' + b"x" * (17 << 20) + b'"]}', 413, "16 MiB"),
]


@pytest.mark.parametrize(
    ("body", "status", "words"), WRONG_BODIES, ids=[words for _, _, words in WRONG_BODIES]
)
def test_a_wrong_body_is_refused(http: httpx2.Client, body: bytes, status: int, words: str) -> None:
    answer = http.post("/v1/jobs", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert words in error["message"] + str(error.get("field"))


def test_other_kinds_of_body_are_refused(http: httpx2.Client) -> None:
    for kind in ("text/html", "application/x-www-form-urlencoded", "multipart/form-data", ""):
        answer = http.post("/v1/jobs", content=b"{}", headers={"Content-Type": kind})
        assert answer.status_code == 415
        assert answer.json()["error"]["field"] == "Content-Type"


def test_an_encoded_body_is_refused_before_it_is_unpacked(http: httpx2.Client) -> None:
    bomb = zlib.compress(b" " * (8 << 20))
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    answer = http.post("/v1/jobs", content=bomb, headers=headers)
    assert answer.status_code == 415
    assert answer.json()["error"]["field"] == "Content-Encoding"


def test_good_lines_are_taken_and_bad_ones_listed_with_line_and_column(
    http: httpx2.Client,
) -> None:
    lines = [json.dumps({"prompt": f"picture {number}"}) for number in range(1, 20)]
    lines[4] = '{"prompt": "x", "num_inference_steps": 0}'
    lines[9] = '{"prompt": "x",}'
    lines[14] = '{"prompt": "x", "guidance_scale": NaN}'
    lines[16] = "[1]"
    answer = post_lines(http, ndjson(lines))
    assert answer.status_code == 201, answer.text
    told = answer.json()
    assert (told["accepted"], told["rejected"]) == (15, 4)
    places = [(one["line"], one["column"], one["render"]) for one in told["errors"]]
    assert places == [(5, 17, 4), (10, 15, 9), (15, 35, 14), (17, 1, 16)]
    assert told["images"]["total"] == 15


def test_a_job_of_nothing_but_bad_lines_is_no_job(http: httpx2.Client) -> None:
    answer = post_lines(http, ndjson([{"prompt": ""}, "{", {"promt": "x"}]))
    assert answer.status_code == 422
    assert [one["line"] for one in answer.json()["errors"]] == [1, 2, 3]
    assert "did you mean 'prompt'?" in answer.json()["errors"][2]["hint"]
    assert http.get("/v1/jobs").json()["jobs"] == []


def test_a_long_stream_of_nothing_but_bad_lines_ends_cancelled(http: httpx2.Client) -> None:
    answer = post_lines(http, ndjson([{"prompt": ""}] * 4500))
    assert answer.status_code == 422
    assert len(answer.json()["errors"]) == 100
    assert {job["state"] for job in http.get("/v1/jobs").json()["jobs"]} <= {"cancelled"}


def test_line_endings_blank_lines_and_a_byte_order_mark_do_not_matter(
    http: httpx2.Client,
) -> None:
    body = b'\xef\xbb\xbf{"prompt": "a"}\r\n\r\n  \n{"prompt": "b"}'
    told = post_lines(http, body).json()
    assert (told["accepted"], told["rejected"]) == (2, 0)


def test_one_line_of_many_megabytes_is_refused_and_the_others_taken(http: httpx2.Client) -> None:
    long = b'{"prompt": "' + b"x" * (20 << 20) + b'"}\n'
    told = post_lines(http, ndjson([OK]) + long + ndjson([OK, OK])).json()
    assert (told["accepted"], told["rejected"]) == (3, 1)
    error = told["errors"][0]
    assert (error["line"], error["code"]) == (2, "too_large")


def test_the_same_key_gives_the_same_job_and_other_content_a_conflict(
    http: httpx2.Client,
) -> None:
    first = post(http, OK, idempotency_key="k")
    again = post(http, OK, idempotency_key="k")
    other = post(http, {"prompt": "a blue boat"}, idempotency_key="k")
    header = http.post("/v1/jobs", json={"renders": [OK]}, headers={"Idempotency-Key": "k"})
    assert (first.status_code, again.status_code, other.status_code) == (201, 200, 409)
    assert first.json()["id"] == again.json()["id"] == header.json()["id"]
    assert first.json()["created"]
    assert not again.json()["created"]
    assert len(http.get("/v1/jobs").json()["jobs"]) == 1


JOB = "j0-01m848b6zxgnjbpp0f506dqmht"


@pytest.mark.parametrize("path", ["", "/events", "/images"])
def test_an_unknown_and_a_malformed_job_are_told_apart_but_not_by_tenant(
    http: httpx2.Client, path: str
) -> None:
    unknown = http.get(f"/v1/jobs/{JOB}{path}")
    assert unknown.status_code == 404
    assert unknown.json()["error"]["code"] == "not_found"
    malformed = http.get(f"/v1/jobs/not-a-job{path}")
    assert malformed.status_code == 422
    assert "farm ls" in malformed.json()["error"]["hint"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nothing/here", 404),
        ("DELETE", "/v1/jobs", 405),
        ("GET", "/v1/jobs?limit=0", 422),
        ("GET", "/v1/jobs?limit=ten", 422),
        ("GET", "/v1/jobs?before=x", 422),
        ("GET", f"/v1/jobs/{JOB}/images?after=-1", 422),
        ("PUT", f"/v1/jobs/{JOB}/chunks/x?first=0", 422),
        ("PUT", f"/v1/jobs/{JOB}/chunks/0", 422),
        ("POST", f"/v1/jobs/{JOB}/close", 422),
        ("GET", "/v1/assets/xyz", 422),
        ("GET", "/v1/objects/a/b?expires=99999999999&signature=no", 401),
        ("GET", "/v1/objects/a/b", 422),
        ("GET", "/v1/objects/..%2f..%2fetc%2fpasswd?expires=1&signature=x", 401),
    ],
)
def test_every_error_has_the_same_shape(
    http: httpx2.Client, method: str, path: str, status: int
) -> None:
    headers = {"Content-Type": "application/x-ndjson"}
    answer = http.request(method, path, headers=headers)
    assert answer.status_code == status
    error = answer.json()["error"]
    assert error["code"]
    assert error["message"]
    assert answer.headers["farm-version"]


WRONG_FILES: list[tuple[str, bytes, int, str]] = [
    ("empty", b"", 422, "empty"),
    ("html", b"<!DOCTYPE html><html></html>", 422, ""),
    ("svg", b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
     422, ""),
    ("eps", b"%!PS-Adobe-3.0 EPSF-3.0\n", 422, ""),
    ("pickle", b"\x80\x04\x95", 422, "safetensors"),
    ("torch", b"PK\x03\x04" + bytes(100), 422, "safetensors"),
    ("bad crc", png()[:50] + b"\x00\x00\x00\x00" + png()[54:], 422, ""),
    ("cut off", png(64, 64)[:60], 422, ""),
    ("psd", b"8BPS\x00\x01" + bytes(40), 422, ""),
    ("wrong tensor", safetensors(weights=("I64", [1], bytes(8))), 422, "weights"),
    ("flat latents", safetensors(latents=("I64", [4], bytes(32))), 422, "dimensions"),
    ("cut header", (10**6).to_bytes(8, "little") + b'{"latents": ', 422, "header"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("data", "status", "words"), [case[1:] for case in WRONG_FILES], ids=[c[0] for c in WRONG_FILES]
)
def test_what_is_no_picture_and_no_tensor_is_refused(
    http: httpx2.Client, data: bytes, status: int, words: str
) -> None:
    answer = http.put("/v1/assets", content=data)
    assert answer.status_code == status, answer.text
    assert words in answer.json()["error"]["message"] + str(answer.json()["error"].get("hint"))
    assert http.get(f"/v1/assets/{hashlib.sha256(data).hexdigest()}").status_code == 404


def test_an_upload_over_the_limit_is_refused_by_its_claim_and_by_its_bytes(
    gateway: Gateway,
) -> None:
    for lie in (False, True):
        with _socket(gateway) as raw:
            claim = b"Transfer-Encoding: chunked" if lie else b"Content-Length: 105906176"
            raw.sendall(b"PUT /v1/assets HTTP/1.1\r\nHost: localhost\r\n" + claim + b"\r\n\r\n")
            if lie:
                block = b"%x\r\n" % (1 << 20) + bytes(1 << 20) + b"\r\n"
                try:
                    for _ in range(102):
                        raw.sendall(block)
                except OSError:
                    pass  # the gateway has answered and hung up
            answer = raw.recv(4096)
            assert b" 413 " in answer.split(b"\r\n")[0]


def test_a_body_shorter_than_its_claim_leaves_nothing_behind(
    gateway: Gateway, http: httpx2.Client
) -> None:
    with _socket(gateway) as raw:
        raw.sendall(
            b"POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/x-ndjson\r\n"
            b'Content-Length: 1000\r\n\r\n{"prompt": "x"}\n'
        )
        raw.shutdown(socket.SHUT_WR)
        raw.settimeout(5)
        raw.recv(4096)
    assert http.get("/v1/jobs").json()["jobs"] == []


def test_a_thousand_headers_are_refused(gateway: Gateway) -> None:
    with _socket(gateway) as raw:
        many = b"".join(b"x-%d: y\r\n" % number for number in range(1000))
        raw.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n" + many + b"\r\n")
        assert b" 431 " in raw.recv(4096)
    with _socket(gateway) as raw:
        raw.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\nCookie: " + b"y" * 100_000 + b"\r\n\r\n")
        assert raw.recv(4096).split(b"\r\n")[0].split()[1][:1] == b"4"


def _socket(gateway: Gateway) -> socket.socket:
    parts = urlsplit(gateway.url)
    return socket.create_connection((parts.hostname, parts.port), timeout=20)


def test_pictures_must_fit_what_they_are_used_for(http: httpx2.Client) -> None:
    image = http.put("/v1/assets", content=png(64, 64)).json()["id"]
    small = http.put("/v1/assets", content=png(32, 32, "L")).json()["id"]
    tensor = http.put("/v1/assets", content=latents()).json()["id"]
    far = http.put("/v1/assets", content=latents(4, 4)).json()["id"]
    wild = http.put("/v1/assets", content=latents(code=9999)).json()["id"]
    cases = [
        (OK | {"image": image, "mask_image": small}, "mask_image", "32 x 32"),
        (OK | {"mask_image": small}, "image", "needs one"),
        (OK | {"image": tensor}, "image", "latents"),
        (OK | {"latents": image}, "latents", "image"),
        (OK | {"latents": far}, "latents", ""),
        (OK | {"latents": wild}, "latents", ""),
        (OK | {"image": image, "latents": tensor}, "latents", "img2img"),
        (OK | {"image": image, "strength": 0.01}, "strength", "no step"),
        (OK | {"image": image, "strength": 0}, "strength", ""),
        (OK | {"image": image, "strength": 1.1}, "strength", ""),
        (OK | {"image": image, "mode": "text2img"}, "image", "not used"),
        (OK | {"embeds": tensor}, None, "not both"),
    ]
    for render, field, words in cases:
        answer = post(http, render)
        assert answer.status_code == 422, (render, answer.text)
        error = answer.json()["error"]
        assert error.get("field") == field, error
        assert words in error["message"], error
    assert post(http, OK | {"latents": tensor}).status_code == 201
    assert post(http, OK | {"image": image}).status_code == 201
    assert http.get("/v1/jobs").json()["jobs"][0]["state"] in ("queued", "running")


def test_a_picture_may_stand_in_the_request_as_a_data_url(http: httpx2.Client) -> None:
    url = "data:image/png;base64," + base64.b64encode(png(64, 48)).decode()
    assert post(http, OK | {"image": url}).status_code == 201


def test_a_json_body_has_as_many_renders_as_a_piece(http: httpx2.Client) -> None:
    answer = post(http, *[{}] * 2001)
    assert answer.status_code == 413
    assert "2,000" in answer.json()["error"]["message"]
    most = post(http, *[{}] * 2000)
    assert most.status_code == 422
    assert len(most.json()["errors"]) == 100
    some = post(http, *[{}] * 1999, OK).json()
    assert (some["accepted"], some["rejected"], len(some["errors"])) == (1, 1999, 100)


@pytest.mark.parametrize(
    "shape", ["[Infinity]", "[NaN]", "[1e20, -5]", "[-1, 8]", "[1.5, 8]", "[true, 8]", '["8", 8]',
              "[9223372036854775808, 8]", "8", "null", "{}"],
)  # fmt: skip
def test_a_tensor_whose_sides_are_no_numbers_is_refused(http: httpx2.Client, shape: str) -> None:
    header = b'{"latents": {"dtype": "I64", "shape": %s, "data_offsets": [0, 8]}}' % shape.encode()
    data = len(header).to_bytes(8, "little") + header + bytes(8)
    answer = http.put("/v1/assets", content=data)
    assert answer.status_code == 422, answer.text


def test_pictures_in_a_request_have_a_budget_and_plain_renders_pass(http: httpx2.Client) -> None:
    urls = [
        "data:image/png;base64," + base64.b64encode(png(8, 8, colour=(n, 0, 0))).decode()
        for n in range(101)
    ]
    told = post(http, *[OK | {"image": url} for url in urls], OK, OK | {"image": urls[0]}).json()
    assert (told["accepted"], told["rejected"]) == (102, 1)
    assert told["errors"][0]["render"] == 100
    assert "upload" in told["errors"][0]["hint"]
    large = "data:image/png;base64," + base64.b64encode(png(8192, 4096)).decode()
    small = OK | {"image": urls[1]}
    told = post(http, OK | {"image": large}, small).json()
    assert [one["render"] for one in told["errors"]] == [1]


def sizes(first: int, after: int) -> list[dict[str, Any]]:
    """Renders of as many different sizes."""
    return [
        OK | {"height": 8 * (n % 30 + 1), "width": 8 * (n // 30 + 1)} for n in range(first, after)
    ]


@pytest.mark.parametrize("number", ["--5", "\u00b2", "\u0663", "1e3", "", "-"])
def test_an_option_in_the_query_that_is_not_a_number_is_named(
    http: httpx2.Client, number: str
) -> None:
    answer = http.post("/v1/jobs", params={"open": "", "max_failed": number})
    assert answer.status_code == 422
    assert answer.json()["error"]["field"] == "max_failed"


def test_a_job_of_very_many_sizes_is_refused_however_it_comes(
    http: httpx2.Client, gateway: Gateway
) -> None:
    assert post(http, *sizes(0, 256)).status_code == 201
    for answer in (
        post(http, *sizes(0, 257)),
        post_lines(http, ndjson(sizes(0, 257))),
        post_lines(http, ndjson([*[OK] * 2000, *sizes(0, 257)])),
    ):
        assert answer.status_code == 413, answer.text
        assert "256" in answer.json()["error"]["message"]
    job = http.post("/v1/jobs?open").json()["id"]
    headers = {"Content-Type": "application/x-ndjson"}
    status = [
        http.put(
            f"/v1/jobs/{job}/chunks/{piece}?first={first}",
            content=ndjson(sizes(first, after)), headers=headers,
        ).status_code
        for piece, first, after in [(0, 0, 150), (0, 0, 150), (1, 150, 256), (2, 200, 257),
                                    (2, 200, 256)]
    ]  # fmt: skip
    assert status == [200, 200, 200, 413, 200]
    lanes = {str(work.lane) for work in gateway.queue.backlog()}
    assert len(lanes) <= 256
