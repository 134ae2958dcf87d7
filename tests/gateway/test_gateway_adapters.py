"""Adapters through the gateway: by HTTP, by the SDK and on the command line."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.numpy
from fake_adapters import adapter_file
from fake_worker import FakeWorker
from harness import Cli, Gateway, Serve, ndjson, post_lines
from test_gateway_auth import write_keys

from farm.cli.adapter import read_adapter
from farm.errors import InvalidInput, NotFound
from farm.formats.adapter_file import read_adapter_file
from farm.gateway.answers import Image
from farm.gateway.page.views import shown
from farm.job import MAX_PIECE_LINES, JobState
from farm.store import ListedObject
from farm_client import AllRejected, AsyncFarm, Farm
from farm_client.fetch import MANIFEST


def manifest(folder: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (Path(folder) / MANIFEST).read_text().splitlines()]


def test_a_named_adapter_is_in_the_pictures_and_the_manifest(
    cli: Cli, fake_worker: FakeWorker
) -> None:
    Path("dots.safetensors").write_bytes(adapter_file(0))
    added = cli("adapter", "add", "dots", "dots.safetensors", "--alpha", "4")
    assert (added.code, added.err) == (0, "dots: rank 2, alpha 4, to_q\n")
    sha256 = added.out.strip()
    listed = json.loads(cli("adapter", "ls", "--json").out)
    assert (listed["name"], listed["sha256"], listed["alpha"]) == ("dots", sha256, 4)
    assert sha256 in cli("adapter", "ls").out
    job = cli("submit", "x", "--adapter", "dots:0.5", "--adapter-scale", "-1", "-o", "out")
    assert job.code == 0, job.err
    (row,) = manifest("out")
    assert row["spec"]["adapters"] == [{"sha256": sha256, "scale": -0.5}]
    told = json.loads(cli("inspect", "--json", f"out/{row['file']}").out)
    assert told["spec"]["adapters"] == row["spec"]["adapters"]
    assert f'adapters  [{{"sha256": "{sha256}"' in cli("inspect", f"out/{row['file']}").out
    assert cli("adapter", "rm", "dots").code == 0
    gone = cli("submit", "x", "--adapter", "dots")
    assert (gone.code, gone.err) == (
        2,
        "error[not_found] adapters: you have no adapter 'dots' (farm adapter add dots FILE)\n",
    )
    assert "you have no adapter 'dots'" in cli("adapter", "rm", "dots").err


@pytest.mark.parametrize("on_error", ["skip", "stop"])
def test_what_is_sent_again_when_its_adapter_is_gone_finds_its_job(
    gateway: Gateway, http: httpx2.Client, on_error: str
) -> None:
    renders = [{"prompt": "x"}, {"prompt": "x", "adapters": [{"adapter": "dots"}]}]
    with Farm(gateway.url) as farm:
        farm.add_adapter("dots", adapter_file(0), alpha=4)
        sent = {"idempotency_key": "k", "on_error": on_error}
        first = post_lines(http, ndjson(renders), **sent)
        farm.remove_adapter("dots")
        again = post_lines(http, ndjson(renders), **sent)
        assert (first.status_code, again.status_code) == (201, 200)
        assert again.json() == {**first.json(), "created": False}
        other = post_lines(http, ndjson(renders[1:]), **sent)
        assert other.status_code == 409


def test_a_job_that_is_gone_on_with_is_kept_although_its_adapter_is_gone(gateway: Gateway) -> None:
    renders = [{"prompt": "x", "adapters": [{"adapter": "dots"}]}] * (2 * MAX_PIECE_LINES)

    def broken() -> Iterator[dict[str, Any]]:
        yield from renders
        raise EOFError

    with Farm(gateway.url) as farm:
        farm.add_adapter("dots", adapter_file(0), alpha=4)
        with pytest.raises(EOFError):
            farm.submit_many(broken(), idempotency_key="k")
        farm.remove_adapter("dots")
        with pytest.raises(AllRejected):
            farm.submit_many([*renders, *renders], idempotency_key="k")
        [job] = farm.jobs()
        assert (job.state, job.images.total) == (JobState.OPEN, len(renders))


def test_a_name_that_is_forgotten_while_names_are_listed_hides_no_others(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    farm = Farm(gateway.url)
    for seed, name in enumerate(("dots", "rings")):
        farm.add_adapter(name, adapter_file(seed), alpha=4)
    store = gateway.app_deps.store
    listed = store.list

    def then_one_goes(prefix: str) -> Iterator[ListedObject]:
        found = list(listed(prefix))
        store.delete(found[0].key)
        return iter(found)

    monkeypatch.setattr(store, "list", then_one_goes)
    assert [one.name for one in farm.adapters()] == ["rings"]


def test_every_line_of_a_file_has_its_own_adapters(cli: Cli, fake_worker: FakeWorker) -> None:
    Path("dots.safetensors").write_bytes(adapter_file(0))
    Path("files").mkdir()
    Path("files/near.safetensors").write_bytes(adapter_file(1))
    dots = cli("adapter", "add", "dots", "dots.safetensors").out.strip()
    renders = [
        {"prompt": "a"},
        {"prompt": "b", "adapters": [{"adapter": "dots", "scale": 2}]},
        {"prompt": "c", "adapters": [{"adapter": "near.safetensors"}, {"adapter": "dots"}]},
        {"prompt": "d", "adapters": [{"adapter": "dotz"}]},
        {"prompt": "e", "adapters": [{"adapter": "far.safetensors"}]},
        {"prompt": "f", "adapter_scale": 2},
    ]
    Path("files/renders.jsonl").write_text("".join(json.dumps(one) + "\n" for one in renders))
    result = cli("submit", "files/renders.jsonl", "-o", "out")
    assert "line 4, column 17: you have no adapter 'dotz' (there are: dots)" in result.err
    assert "error[invalid] adapters: line 5, column 17: there is no file" in result.err
    assert "line 6, column 17: there is no adapter to scale" in result.err
    rows = manifest("out")
    assert "adapters" not in rows[0]["spec"]
    assert rows[1]["spec"]["adapters"] == [{"sha256": dots, "scale": 2}]
    near, second = rows[2]["spec"]["adapters"]
    assert (near["scale"], second) == (1, {"sha256": dots, "scale": 1})
    assert near["sha256"] != dots


def test_a_table_has_a_column_of_adapters(cli: Cli, fake_worker: FakeWorker) -> None:
    Path("dots.safetensors").write_bytes(adapter_file(0))
    dots = cli("adapter", "add", "dots", "dots.safetensors").out.strip()
    Path("renders.csv").write_text("prompt,adapters\na,\nb,dots:0.5\n")
    assert cli("submit", "renders.csv", "-o", "out").code == 0
    assert [row["spec"].get("adapters") for row in manifest("out")] == [
        None, [{"sha256": dots, "scale": 0.5}],
    ]  # fmt: skip


def test_parquet_has_adapters_as_text_or_as_structs(cli: Cli, fake_worker: FakeWorker) -> None:
    Path("dots.safetensors").write_bytes(adapter_file(0))
    dots = cli("adapter", "add", "dots", "dots.safetensors").out.strip()
    structs = [None, [{"adapter": "dots", "scale": None}], [{"adapter": "dots", "scale": 0.5}]]
    for name, column in (("structs", structs), ("texts", [None, "dots", "dots:0.5"])):
        table = pa.table({"prompt": ["a", "b", "c"], "adapters": column})
        pq.write_table(table, f"{name}.parquet")
        assert cli("submit", f"{name}.parquet", "-o", name).code == 0
        assert [row["spec"].get("adapters") for row in manifest(name)] == [
            None, [{"sha256": dots, "scale": 1}], [{"sha256": dots, "scale": 0.5}],
        ]  # fmt: skip


def test_a_job_file_sweeps_adapters_and_means_files_from_its_folder(
    cli: Cli, fake_worker: FakeWorker
) -> None:
    Path("folder").mkdir()
    Path("folder/dots.safetensors").write_bytes(adapter_file(0))
    dots = [{"adapter": "dots.safetensors", "scale": 0.5}]
    swept = {"prompts": ["a"], "matrix": {"adapters": [[], dots]}}
    Path("folder/swept.json").write_text(json.dumps(swept))
    Path("folder/defaults.json").write_text(
        json.dumps({"prompts": ["a"], "defaults": {"adapters": dots}})
    )
    scale = {}
    for name in ("swept", "defaults"):
        result = cli("submit", f"folder/{name}.json", "-o", name)
        assert result.code == 0, result.err
        scale[name] = [
            [one["scale"] for one in row["spec"].get("adapters", ())] for row in manifest(name)
        ]
    assert scale == {"swept": [[], [0.5]], "defaults": [[0.5]]}


def test_the_page_shows_a_pictures_adapters() -> None:
    spec = {"prompt": "x", "adapters": [{"sha256": "a" * 64, "scale": 0.5}]}
    image = Image(
        render=0, image=0, generation=0, file=None, sha256=None, size=None, width=8, height=8,
        seed=1, tokens_sha256=None, numerics=None, confidence=None, notes=[], error=None, spec=spec,
        metadata={}, shard=None, offset=None, url=None,
    )  # fmt: skip
    assert dict(shown("j", image).parameters)["adapters"] == "aaaaaaaaaaaa:0.5"


def test_a_folder_of_peft_brings_its_alpha(cli: Cli) -> None:
    Path("peft").mkdir()
    assert "has no pytorch_lora_weights" in cli("adapter", "add", "x", "peft").err
    tensors = safetensors.numpy.load(adapter_file(0))
    renamed = {f"base_model.model.{key.partition('.')[2]}": one for key, one in tensors.items()}
    safetensors.numpy.save_file(renamed, "peft/adapter_model.safetensors")
    Path("peft/adapter_config.json").write_text("{")
    assert "is not JSON" in cli("adapter", "add", "x", "peft").err
    Path("peft/adapter_config.json").write_text(json.dumps({"lora_alpha": 6, "r": 2}))
    assert json.loads(cli("adapter", "add", "x", "peft", "--json").out)["alpha"] == 6
    Path("peft/adapter_config.json").write_text(json.dumps({"lora_alpha": 6, "use_dora": True}))
    assert "use_dora, which is not read" in cli("adapter", "add", "y", "peft").err


def test_an_adapter_that_came_with_the_farm_is_read_by_its_name() -> None:
    data = read_adapter(Path("pattern"))
    assert read_adapter_file(data).rank > 0
    with pytest.raises(InvalidInput, match="there is no file no-such"):
        read_adapter(Path("no-such"))


def test_what_is_no_adapter_is_refused_in_one_line(http: httpx2.Client) -> None:
    other = safetensors.numpy.save({"x.lora_A.weight": np.zeros((2, 2), np.float32)})
    for data, alpha, message in (
        (b"", None, "not a safetensors file"),
        (b"\x89PNG", None, "not a safetensors file"),
        (other, None, "has no lora_B"),
        (adapter_file(0), "nan", "finite"),
        (adapter_file(0), "-1", "greater than 0"),
    ):
        query = {} if alpha is None else {"alpha": alpha}
        answer = http.put("/v1/adapters/x", content=data, params=query)
        assert answer.status_code == 422
        assert message in answer.json()["error"]["message"]
    assert http.get("/v1/adapters").json() == {"adapters": []}
    assert http.put("/v1/adapters/a%20b", content=adapter_file(0)).status_code == 422


def test_tenants_neither_see_nor_remove_each_others_adapters(start: Serve, tmp_path: Path) -> None:
    keys = {name: {"tenant": name} for name in ("alice", "bob")}
    gateway = start(keys=write_keys(tmp_path / "keys.json", keys), open=False)
    with gateway.client("alice") as alice, gateway.client("bob") as bob:
        sha256 = alice.put("/v1/adapters/dots", content=adapter_file(0)).json()["sha256"]
        assert bob.get("/v1/adapters").json() == {"adapters": []}
        assert bob.delete("/v1/adapters/dots").json() == {"name": "dots", "removed": False}
        for chosen in ("dots", sha256):
            body = json.dumps({"prompt": "x", "adapters": [{"adapter": chosen}]}).encode()
            assert post_lines(bob, body).status_code == 404
            assert post_lines(alice, body).status_code == 201
        assert [one["name"] for one in alice.get("/v1/adapters").json()["adapters"]] == ["dots"]


def test_the_sdk_adds_names_and_uploads_files(
    gateway: Gateway, fake_worker: FakeWorker, tmp_path: Path
) -> None:
    (tmp_path / "lines.safetensors").write_bytes(adapter_file(1))
    with Farm(gateway.url) as farm:
        dots = farm.add_adapter("dots", adapter_file(0), alpha=1)
        assert dots in farm.adapters()
        job = farm.submit(
            "x",
            adapters=[
                {"adapter": "dots", "scale": 0.5},
                {"adapter": tmp_path / "lines.safetensors"},
                {"adapter": adapter_file(2)},
            ],
        )
        (image,) = job.images()
        assert [one["scale"] for one in image.spec["adapters"]] == [0.5, 1, 1]
        assert image.spec["adapters"][0]["sha256"] == dots.sha256
        many = farm.submit_many(["a", "b"], defaults={"adapters": [{"adapter": "dots"}]})
        assert many.accepted == 2
        with pytest.raises(InvalidInput, match="not a safetensors file"):
            farm.submit("x", adapters=[{"adapter": b"nothing of the kind"}])
        with pytest.raises((NotFound, AllRejected)):
            farm.submit("x", adapters=[{"adapter": "no-such"}])

    async def main() -> None:
        async with AsyncFarm(gateway.url) as farm:
            assert dots in await farm.adapters()
            assert await farm.add_adapter("dots", adapter_file(0), alpha=1) == dots
            assert await farm.remove_adapter("dots")
            assert not await farm.remove_adapter("dots")

    asyncio.run(main())
