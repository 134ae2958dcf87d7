"""Every route, for every kind of caller: who may call it, and whose things are there.

The routes are the application's own, so a new one without a rule here fails.
"""

import asyncio
import inspect
import itertools
import json
from collections.abc import Iterator
from operator import attrgetter
from typing import NamedTuple

import httpx2
import pytest
from fake_adapters import adapter_file
from fastapi import FastAPI
from fastapi.routing import APIRoute
from harness import INFO, png, write_keys
from starlette.routing import Route

from farm.gateway.app import create_app
from farm.gateway.auth import LOCAL_TENANT
from farm.ingest.ndjson import Entries, Entry
from farm.job import JobOptions
from farm.settings import GatewaySettings


class Rule(NamedTuple):
    scope: str | None  # None: no key is asked for
    owned: bool = False  # it names a thing that belongs to a tenant
    ok: int = 200  # for the owner with the scope
    query: str = ""
    body: bytes | None = None
    kind: str = "application/x-ndjson"


ONE = b'{"prompt": "x"}\n'
SCORE = {"render": 0, "image": 0, "sha256": "0" * 64, "values": {"sharp": 0.5}}
SCORES = json.dumps({"rows": [SCORE]}).encode()
RULES = {
    ("GET", "/healthz"): Rule(None),
    ("HEAD", "/healthz"): Rule(None),
    ("GET", "/readyz"): Rule(None, query="?workers=0"),
    ("HEAD", "/readyz"): Rule(None, query="?workers=0"),
    ("GET", "/metrics"): Rule(None),
    ("GET", "/docs"): Rule(None),
    ("GET", "/"): Rule(None),
    ("GET", "/pictures"): Rule(None),
    ("GET", "/farm"): Rule(None),
    ("GET", "/tenants"): Rule(None),
    ("GET", "/new"): Rule(None),
    ("GET", "/jobs/{job}"): Rule(None),
    ("GET", "/static/{name}"): Rule(None),
    ("GET", "/page"): Rule("read"),
    ("GET", "/page/pictures"): Rule("read"),
    ("GET", "/page/farm"): Rule("read"),
    ("GET", "/page/tenants"): Rule("admin"),
    ("GET", "/page/new"): Rule("read"),
    ("GET", "/page/jobs/{job}"): Rule("read", owned=True),
    ("GET", "/page/jobs/{job}/progress"): Rule("read", owned=True),
    ("GET", "/page/jobs/{job}/pictures"): Rule("read", owned=True),
    ("GET", "/page/jobs/{job}/previews"): Rule("read", owned=True),
    ("GET", "/page/jobs/{job}/failures"): Rule("read", owned=True),
    ("GET", "/v1/checkpoints"): Rule("read"),
    ("GET", "/v1/jobs"): Rule("read"),
    ("POST", "/v1/jobs"): Rule("write", ok=201, body=ONE),
    ("POST", "/v1/estimate"): Rule("write", body=ONE),
    ("PUT", "/v1/assets"): Rule("write", ok=201, body=png()),
    ("POST", "/v1/assets"): Rule("write", ok=201, body=png()),
    ("GET", "/v1/assets/{asset}"): Rule("read", owned=True),
    ("GET", "/v1/adapters"): Rule("read"),
    ("PUT", "/v1/adapters/{name}"): Rule("write", ok=201, body=adapter_file(0)),
    ("DELETE", "/v1/adapters/{name}"): Rule("write"),
    # The signature is the key; an address without a right one opens nothing.
    ("GET", "/v1/objects/{key:path}"): Rule(None, ok=401, query="?expires=1&signature=x"),
    ("HEAD", "/v1/objects/{key:path}"): Rule(None, ok=401, query="?expires=1&signature=x"),
    ("GET", "/v1/jobs/{job}"): Rule("read", owned=True),
    ("GET", "/v1/jobs/{job}/events"): Rule("read", owned=True),
    ("GET", "/v1/jobs/{job}/images"): Rule("read", owned=True),
    ("GET", "/v1/jobs/{job}/previews"): Rule("read", owned=True),
    ("GET", "/v1/jobs/{job}/why"): Rule("read", owned=True),
    ("GET", "/v1/jobs/{job}/verify"): Rule("read", owned=True),
    ("POST", "/v1/jobs/{job}/verify"): Rule("write", owned=True),
    ("PUT", "/v1/jobs/{job}/chunks/{piece}"): Rule(
        "write", owned=True, ok=409, query="?first=0", body=ONE
    ),
    ("POST", "/v1/jobs/{job}/close"): Rule("write", owned=True, ok=409, query="?pieces=1"),
    ("POST", "/v1/jobs/{job}/cancel"): Rule("write", owned=True),
    ("POST", "/v1/jobs/{job}/pause"): Rule("write", owned=True, ok=409),
    ("POST", "/v1/jobs/{job}/resume"): Rule("write", owned=True, ok=409),
    ("POST", "/v1/jobs/{job}/retry"): Rule("write", owned=True, ok=409),
    ("GET", "/v1/jobs/{job}/scores"): Rule("read", owned=True),
    ("POST", "/v1/jobs/{job}/scores/{scorer}"): Rule(
        "write", owned=True, ok=201, body=SCORES, kind="application/json"
    ),
    ("GET", "/v1/usage"): Rule("read"),
    ("GET", "/v1/jobs/{job}/usage"): Rule("read", owned=True),
    # It was cancelled a moment ago, so it stays listed as removed, and each caller may go on.
    ("DELETE", "/v1/jobs/{job}"): Rule("write", owned=True),
}
FREE = {"/openapi.json"}  # FastAPI's own

OWNER = "alice"
CALLERS: dict[str | None, tuple[str | None, set[str]]] = {  # key: its tenant and scopes
    None: (None, set()),
    "owner": (OWNER, {"read", "write"}),
    "owner-reads": (OWNER, {"read"}),
    "owner-writes": (OWNER, {"write"}),
    "owner-admin": (OWNER, {"admin"}),
    "stranger": ("bob", {"read", "write"}),
    "stranger-reads": ("bob", {"read"}),
    "expired": (None, set()),
    "unknown": (None, set()),
}
KEYS = {
    "owner": {"tenant": OWNER},
    "owner-reads": {"tenant": OWNER, "scopes": ["read"]},
    "owner-writes": {"tenant": OWNER, "scopes": ["write"]},
    "owner-admin": {"tenant": OWNER, "scopes": ["admin"]},
    "stranger": {"tenant": "bob"},
    "stranger-reads": {"tenant": "bob", "scopes": ["read"]},
    "expired": {"tenant": OWNER, "expires": "2020-01-01T00:00:00Z"},
}
HERE, THERE = ("127.0.0.1", 50000), ("10.0.0.7", 50000)
HOSTS = {"localhost": True, "127.0.0.1:8400": True, "farm.example": False}


class Call(NamedTuple):
    keys: bool  # the application has a keys file
    key: str | None
    here: bool
    host: str


def expected(rule: Rule, call: Call) -> int:
    """What the rules of the farm give."""
    key = call.key
    tenant, scopes = CALLERS[key]
    if not call.keys:
        if not (call.here and HOSTS[call.host]):
            return 403
        if rule.scope is None:
            return rule.ok
        if key is not None:
            return 401  # a key that is not known is wrong even where none is needed
        tenant, scopes = OWNER, {"read", "write", "admin"}
    if rule.scope is None:
        return rule.ok
    if tenant is None:
        return 401
    if rule.scope not in scopes:
        return 403
    return 404 if rule.owned and tenant != OWNER else rule.ok


@pytest.fixture(scope="module")
def apps(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> dict[bool, FastAPI]:
    """The application with a keys file, and without one."""
    tmp_path = tmp_path_factory.mktemp("access")
    usual = {"data": tmp_path, "redis_url": redis_url, "name": "access"}
    keys = {**usual, "keys": write_keys(tmp_path / "keys.json", KEYS)}
    return {
        True: create_app(GatewaySettings.model_validate(keys), infos=[INFO]),
        False: create_app(GatewaySettings.model_validate({**usual, "open": True}), infos=[INFO]),
    }


def own_routes(app: FastAPI) -> Iterator[Route]:
    for included in app.routes:
        router = getattr(included, "original_router", None)
        for route in [included] if router is None else router.routes:
            assert isinstance(route, Route), f"{route} has no rule"
            yield route


def routes(app: FastAPI) -> set[tuple[str, str]]:
    found = set()
    for route in own_routes(app):
        # Starlette lets HEAD in wherever it lets GET in.
        methods = route.methods or set()
        extra = {"HEAD"} if {"GET", "HEAD"} <= methods else set()
        found |= {(method, route.path) for method in methods - extra}
    return {(method, path) for method, path in found if path not in FREE}


def test_what_routes_depend_on_takes_no_thread_of_the_gateway(apps: dict[bool, FastAPI]) -> None:
    """FastAPI gives what is not asynchronous to one, in every call."""
    threaded = set()
    for route in own_routes(apps[True]):
        if isinstance(route, APIRoute):
            for call in map(attrgetter("call"), route.dependant.dependencies):
                made = inspect.isfunction(call) or inspect.ismethod(call)
                run = call if made else type(call).__call__
                if not inspect.iscoroutinefunction(run) and not inspect.isasyncgenfunction(run):
                    threaded.add(call)
    assert threaded == set()


def test_every_route_has_a_rule(apps: dict[bool, FastAPI]) -> None:
    assert routes(apps[True]) == routes(apps[False]) == RULES.keys()


async def calls(app: FastAPI, keys: bool, method: str, path: str, rule: Rule) -> dict[Call, int]:
    """The status that each kind of caller is answered with."""
    answers = {}
    for here in (True, False):
        transport = httpx2.ASGITransport(app, client=HERE if here else THERE)
        async with httpx2.AsyncClient(transport=transport) as http:
            for key, host in itertools.product(CALLERS, HOSTS):
                headers = {"Authorization": f"Bearer {key}"} if key else {}
                if rule.body is not None:
                    headers["Content-Type"] = rule.kind
                address = f"http://{host}{path}"
                answer = await http.request(method, address, headers=headers, content=rule.body)
                answers[Call(keys, key, here, host)] = answer.status_code
    return answers


def address_of(path: str, app: FastAPI, tenant: str) -> str:
    """The path with the names of the tenant's own things, made for it."""
    deps = app.state.deps
    names = {"piece": "0", "scorer": "sharp", "key:path": "a/b.png", "name": "page.css"}
    if "{job}" in path:
        options = JobOptions.parse({})
        names["job"] = deps.ingest.submit(tenant, options, Entries.of([Entry({"prompt": "x"})])).job
        deps.queue.cancel(names["job"], tenant)
    if "{asset}" in path:
        # Not the picture that every caller of other routes uploads.
        names["asset"] = deps.assets.add(tenant, png(8, 8)).id
    for name, value in names.items():
        path = path.replace("{" + name + "}", value)
    return path


@pytest.mark.parametrize(("method", "path"), RULES, ids=[" ".join(one) for one in RULES])
def test_a_route_lets_in_whom_its_rule_names_and_nobody_else(
    apps: dict[bool, FastAPI], method: str, path: str
) -> None:
    rule = RULES[method, path]
    for keys, app in apps.items():
        address = address_of(path, app, OWNER if keys else LOCAL_TENANT) + rule.query
        got = asyncio.run(calls(app, keys, method, address, rule))
        assert got == {call: expected(rule, call) for call in got}
