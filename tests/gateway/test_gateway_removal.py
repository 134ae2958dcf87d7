"""Jobs removed and measured, over HTTP, by the SDK and on the command line."""

import json
from pathlib import Path

import pytest
from fake_worker import FakeWorker
from harness import Cli, Gateway, Serve, post, until, write_keys

from farm.errors import NotFound, Unavailable
from farm.ingest import usage
from farm.store import keys
from farm_client import Farm, Job

KEYS = {"ann": {"tenant": "ann"}, "bob": {"tenant": "bob"}}


def done(gateway: Gateway, **options: object) -> Job:
    farm = Farm(gateway.url)
    job = farm.submit(["a", "b", "c"], **options)  # type: ignore[arg-type]
    job.wait(120)
    return job


def stored(gateway: Gateway, job: str) -> dict[str, int]:
    return {one.key: one.size for one in gateway.store.list(keys.prefix(job))}


def test_rm_deletes_a_job_and_nothing_of_the_others(
    gateway: Gateway, fake_worker: FakeWorker, cli: Cli
) -> None:
    gone, stays = done(gateway, name="gone"), done(gateway, name="stays")
    before = stored(gateway, stays.id)
    told = cli("rm", gone.id, "--json")
    assert told.code == 0
    assert json.loads(told.out)["objects"] > 3
    assert stored(gateway, gone.id) == {}
    assert stored(gateway, stays.id) == before
    assert cli("status", gone.id).code == 2
    assert [one.id for one in Farm(gateway.url).jobs()] == [stays.id]
    again = cli("rm", gone.id)
    assert again.code == 2
    assert f"there is no job {gone.id}" in again.err
    assert cli("rm", stays.id).err.startswith(f"{stays.id} removed: ")


def test_rm_of_a_job_that_runs_is_refused_in_one_line(gateway: Gateway, cli: Cli) -> None:
    job = Farm(gateway.url).submit("x", checkpoint="shapes-64")
    told = cli("rm", job.id)
    assert told.code != 0
    assert "has not ended" in told.err
    assert f"farm cancel {job.id}" in told.err
    assert told.err.count("\n") == 1
    assert cli("cancel", job.id).code == 0
    assert cli("rm", job.id).code == 0


def test_du_tells_the_bytes_that_lie_in_the_store(
    gateway: Gateway, fake_worker: FakeWorker, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(usage, "BLOCK", 1)  # with signs of life among the lines
    first, second = done(gateway, name="first"), done(gateway)
    lines = [json.loads(line) for line in cli("du", "--json").out.splitlines()]
    told = {line["name"]: line for line in lines}
    for job in (first, second):
        objects = stored(gateway, job.id)
        assert told[job.id]["objects"] == len(objects)
        assert told[job.id]["bytes"] == sum(objects.values())
    assert told[first.id]["title"] == "first"
    assert first.usage().bytes == told[first.id]["bytes"]
    shown = cli("du", first.id)
    assert shown.out.split()[3] == first.id
    gateway.queue.client.zadd("{test}:ended", {second.id: 1})  # long past its retention
    until(lambda: [one.id for one in gateway.queue.jobs("local")] == [first.id])
    names = [one.name for one in Farm(gateway.url).usage(everything=True)]
    assert names[0] == first.id
    assert second.id in names
    assert second.usage().state is None


def test_what_was_said_of_a_removal_whose_answer_was_lost(
    gateway: Gateway, fake_worker: FakeWorker
) -> None:
    job = done(gateway)

    def lose(_: object) -> None:
        until(lambda: not stored(gateway, job.id))
        raise Unavailable("the connection broke")

    job.remove(tell=lose)
    assert stored(gateway, job.id) == {}
    with pytest.raises(NotFound):
        job.remove()


def test_keep_is_an_option_of_a_job_and_the_queue_acts_on_it(
    gateway: Gateway, fake_worker: FakeWorker, cli: Cli
) -> None:
    told = cli("submit", "x", "--keep", "2h", "--checkpoint", "shapes-64")
    assert told.code == 0, told.err
    job = told.out.strip()
    assert cli("wait", job).code == 0
    assert json.loads(cli("status", job, "--json").out)["keep"] == 7200
    bad = cli("submit", "x", "--keep", "soon")
    assert bad.code == 2
    assert "30d, 12h or 90m" in bad.err
    client = gateway.queue.client
    [(entry, due)] = client.zrange("{test}:keeping", 0, -1, withscores=True)
    client.zadd("{test}:keeping", {entry: due - 7200_000})
    until(lambda: gateway.queue.removals())
    with pytest.raises(NotFound):
        gateway.queue.status(job, "local")
    assert gateway.app_deps.remover.sweep() == 1
    assert stored(gateway, job) == {}


def test_another_tenant_can_neither_remove_nor_measure_a_job(start: Serve, tmp_path: Path) -> None:
    locked = start(keys=write_keys(tmp_path / "keys.json", KEYS), open=False)
    with locked.client("ann") as ann, locked.client("bob") as bob:
        job = post(ann, {"prompt": "x"}).json()["id"]
        ann.post(f"/v1/jobs/{job}/cancel")
        for answer in (bob.delete(f"/v1/jobs/{job}"), bob.get(f"/v1/jobs/{job}/usage")):
            assert answer.status_code == 404
        assert job not in bob.get("/v1/usage?everything=true").text
        assert job in ann.get("/v1/usage").text
        lines = ann.delete(f"/v1/jobs/{job}").text.splitlines()
        assert json.loads(lines[-1])["removed"]["objects"] >= 2
        assert ann.get(f"/v1/jobs/{job}").status_code == 404
