"""The API's description says enough to make a client from; the answers in these tests' folder are
all compared with it, see ``harness.Gateway.client``."""

from typing import Any

import httpx2
import pytest
from description import check_answer, described
from harness import Gateway, post, post_lines
from jsonschema import Draft202012Validator, ValidationError

from farm.job import OPTIONS
from farm.spec import PARAMETERS

LINES = b'{"prompt": "x"}\n'
WITHOUT_A_KEY = {"/healthz", "/readyz", "/metrics", "/v1/objects/{key}"}


def operations() -> list[tuple[str, str, dict[str, Any]]]:
    return [
        (method, path, facts)
        for path, methods in described()["paths"].items()
        for method, facts in methods.items()
    ]


def test_every_answer_has_a_shape_or_a_type_of_its_own() -> None:
    vague = []
    for method, path, facts in operations():
        good = {status: one for status, one in facts["responses"].items() if status.isdigit()}
        for status, answer in good.items():
            schemas = [one.get("schema") for one in answer.get("content", {}).values()]
            told = all(schema and schema.get("type") != "object" for schema in schemas)
            if not told or (not schemas and method != "head"):
                vague.append((method, path, status))
    assert vague == []


def test_every_call_says_how_it_is_refused_and_whether_it_needs_a_key() -> None:
    wrong = []
    for method, path, facts in operations():
        refused = [facts["responses"].get(one, {}) for one in ("4XX", "5XX")]
        shapes = {one["content"]["application/json"]["schema"]["$ref"] for one in refused}
        if shapes != {"#/components/schemas/Refusal"} or "422" in facts["responses"]:
            wrong.append((method, path))
        if bool(facts.get("security")) is (path in WITHOUT_A_KEY):
            wrong.append((method, path))
    assert wrong == []


def test_calls_have_names_of_their_own_that_read_like_functions() -> None:
    names = [facts["operationId"] for _, _, facts in operations()]
    assert len(set(names)) == len(names)
    assert {"submit", "job_status", "images"} <= set(names)


def test_a_submission_is_described_as_it_is_checked() -> None:
    schemas = described()["components"]["schemas"]
    assert schemas["Render"]["properties"].keys() == PARAMETERS.keys() | {"id", "metadata"}
    assert schemas["NewJob"]["properties"].keys() == OPTIONS.keys() | {"renders"}
    steps = schemas["Render"]["properties"]["num_inference_steps"]
    assert (steps["minimum"], steps["maximum"], steps["default"]) == (1, 1000, 12)
    assert schemas["NewJob"]["properties"]["keep"]["anyOf"][0] == {"type": "string"}
    asked = described()["paths"]["/v1/jobs"]["post"]["parameters"]
    told = {one["name"] for one in asked}
    assert told == OPTIONS.keys() - {"idempotency_key"} | {"Idempotency-Key", "open", "on_error"}
    # Sent by a client without being asked to, it would overrule the body.
    assert [one["name"] for one in asked if "default" in one["schema"]] == []


@pytest.mark.parametrize(
    ("body", "fits"),
    [
        ({"renders": [{"prompt": "x", "seed": 7, "id": 1, "metadata": {"a": [1]}}]}, True),
        ({"renders": [{"prompt": "x"}], "keep": "30d", "priority": "bulk"}, True),
        ({"renders": [{"prompt": "x", "num_inference_steps": 0}]}, False),
        ({"renders": []}, False),
        ({"renders": [{"prompt": "x"}], "keep": 30}, False),
        ({"renders": [{"prompt": "x"}], "shard_size": 1001}, False),
    ],
)
def test_what_the_description_says_of_a_body_is_what_the_gateway_does(
    http: httpx2.Client, body: dict[str, Any], fits: bool
) -> None:
    components = described()["components"]
    schema = {"$ref": "#/components/schemas/NewJob", "components": components}
    assert Draft202012Validator(schema).is_valid(body) is fits
    assert http.post("/v1/jobs", json=body).is_success is fits


@pytest.mark.parametrize(("asked", "state"), [("", "open"), ("true", "open"), ("false", "queued")])
def test_open_is_a_truth_value(http: httpx2.Client, asked: str, state: str) -> None:
    answer = (
        http.post("/v1/jobs", params={"open": asked})
        if state == "open"
        else post_lines(http, LINES, open=asked)
    )
    assert answer.json()["state"] == state


def test_the_page_of_the_api_has_the_fields_of_answers_and_their_types(http: httpx2.Client) -> None:
    text = http.get("/docs").text
    assert "<p>Answer: <code>JobStatus</code></p>" in text
    assert "<code>images</code><td>list of Image" in text
    assert "<code>num_inference_steps</code><td>integer<td>Denoising steps." in text


def test_open_takes_nothing_else(http: httpx2.Client) -> None:
    answer = post_lines(http, LINES, open="perhaps")
    assert (answer.status_code, answer.json()["error"]["field"]) == (422, "open")


def test_an_answer_of_another_shape_is_found(gateway: Gateway, http: httpx2.Client) -> None:
    job = post(http, {"prompt": "x"}).json()
    request = httpx2.Request("GET", f"{gateway.url}/v1/jobs/{job['id']}")
    check_answer(httpx2.Response(200, json=job, request=request))
    del job["images"]
    with pytest.raises(ValidationError, match="images"):
        check_answer(httpx2.Response(200, json=job, request=request))
