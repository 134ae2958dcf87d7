"""The page as HTML: what it lets in, what it escapes, and what it costs."""

import gzip
import hashlib
import html
import re
import time
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fake_worker import BAD_PROMPT, LOST_PROMPT, FakeWorker
from harness import INFO, Gateway, Serve, post, write_keys

from farm.gateway.page import rendering, views
from farm.gateway.page.charts import bar, sparkline
from farm.job import JobOptions
from farm.queue import JobStatus, Queue, connect, notice, placed_workers
from farm.queue.messages import JobHeader, Session
from farm.queue.placed_workers import PlacedWorker, WorkerState

STATIC = Path(rendering.__file__).parent / "static"
NASTY = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>"


def until_done(http: httpx2.Client, job: str) -> None:
    deadline = time.monotonic() + 20
    while http.get(f"/v1/jobs/{job}").json()["state"] not in ("done", "failed"):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_what_others_wrote_is_there_unchanged() -> None:
    listed = re.findall(r"^(\S+) .* ([0-9a-f]{64})$", (STATIC / "SOURCES.txt").read_text(), re.M)
    assert {name for name, _ in listed} == {
        "htmx.min.js", "hx-sse.min.js", "htmx-LICENSE.txt",
    }  # fmt: skip
    for name, sha256 in listed:
        assert hashlib.sha256((STATIC / name).read_bytes()).hexdigest() == sha256


def test_the_page_runs_nothing_but_its_own_files(http: httpx2.Client) -> None:
    answer = http.get("/")
    policy = dict(
        part.strip().split(" ", 1) for part in answer.headers["content-security-policy"].split(";")
    )
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert policy["frame-ancestors"] == "'none'"
    assert "<script>" not in answer.text
    assert not re.search(r"<style|\sstyle=|\son[a-z]+=", answer.text)
    used = re.findall(r'(?:src|href)="([^"#]+)"', answer.text)
    assert all(address.startswith("/") for address in used)
    size = len(gzip.compress(answer.content))
    for address in {one for one in used if one.startswith("/static/")}:
        file = http.get(address)
        assert file.status_code == 200
        assert "immutable" in file.headers["cache-control"]
        size += len(file.content)
    assert size < 200_000, "what the first paint takes, uncompressed"


def test_a_stores_own_address_may_show_pictures_and_nothing_else() -> None:
    policy = rendering.policy("https://s3.example:9000/bucket/probe?X-Amz-Signature=1")
    assert "img-src 'self' blob: data: https://s3.example:9000;" in policy
    assert policy.count("s3.example") == 1


def test_what_users_write_is_text(http: httpx2.Client, fake_worker: FakeWorker) -> None:
    job = post(http, {"prompt": NASTY}, {"prompt": BAD_PROMPT}, name=NASTY[:60]).json()["id"]
    until_done(http, job)
    pages = ["", "/pictures", f"/jobs/{job}", f"/jobs/{job}/pictures", f"/jobs/{job}/failures"]
    for page in pages:
        text = http.get(f"/page{page}").text
        assert "<script" not in text
        assert "<img src=x" not in text
    assert "&lt;script&gt;" in http.get(f"/page/jobs/{job}/pictures").text


def test_failures_are_counted_by_reason(http: httpx2.Client, fake_worker: FakeWorker) -> None:
    job = post(http, *[{"prompt": BAD_PROMPT}] * 3, {"prompt": "a bicycle"}).json()["id"]
    until_done(http, job)
    text = http.get(f"/page/jobs/{job}/failures").text
    assert re.search(r'<td class="figure">3</td>', text)
    assert BAD_PROMPT in text
    assert "a bicycle" not in text


def test_pictures_of_many_small_tasks_that_were_lost_are_shown_and_lead_to_the_next(
    http: httpx2.Client, fake_worker: FakeWorker
) -> None:
    long = {"prompt": LOST_PROMPT, "num_inference_steps": 1000}  # two or three make a task
    job = post(http, *[long] * 70).json()["id"]
    until_done(http, job)
    page = f"/page/jobs/{job}/pictures"
    seen: set[str] = set()
    while page:
        text = http.get(page).text
        seen |= set(re.findall(r'<li id="([^"]+)"', text))
        more = re.search(r'hx-get="([^"]+)"[^>]*>More pictures', text)
        page = html.unescape(more[1]) if more else ""
    assert len(seen) == 70
    assert len(http.get(f"/v1/jobs/{job}/images").json()["images"]) == 70


def test_a_job_that_is_removed_while_the_newest_pictures_are_gathered_hides_no_others(
    gateway: Gateway, http: httpx2.Client, fake_worker: FakeWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, gone = (post(http, {"prompt": prompt}).json()["id"] for prompt in ("kept", "gone"))
    for job in (kept, gone):
        until_done(http, job)
    listed = gateway.app_deps.queue.jobs

    def jobs(*given: Any) -> list[JobStatus]:
        found = listed(*given)
        assert http.delete(f"/v1/jobs/{gone}").status_code == 200
        return found

    monkeypatch.setattr(gateway.app_deps.queue, "jobs", jobs)
    answer = http.get("/page/pictures")
    assert answer.status_code == 200
    assert f"p-{kept}-0-0" in answer.text


def test_it_says_that_no_worker_is_there(gateway: Gateway, http: httpx2.Client) -> None:
    job = post(http, {"prompt": "a bicycle"}).json()["id"]
    for page in ("", "/farm", f"/jobs/{job}"):
        assert "No worker is connected" in http.get(f"/page{page}").text


def test_without_its_worker_it_says_so_and_shows_what_there_is(
    gateway: Gateway, http: httpx2.Client
) -> None:
    worker = FakeWorker(gateway.queue, gateway.store, INFO)
    worker.start()
    done = post(http, {"prompt": "a finished picture"}, name="before").json()["id"]
    until_done(http, done)
    assert "No worker is connected" not in http.get("/page").text
    worker.stop()
    waiting = post(http, {"prompt": "a bicycle"}, name="after").json()["id"]
    jobs = http.get("/page").text
    assert "No worker is connected" in jobs
    assert "before" in jobs
    assert "after" in jobs
    assert "No worker is connected" in http.get(f"/page/jobs/{waiting}").text
    [picture] = re.findall(r'<img src="([^"]+)"', http.get(f"/page/jobs/{done}/pictures").text)
    assert http.get(html.unescape(picture)).status_code == 200


def test_it_says_what_a_scheduler_says(
    gateway: Gateway, http: httpx2.Client, fake_worker: FakeWorker
) -> None:
    notice.post(gateway.queue, "Ray's cluster at head:6379 does not answer <b>")
    for page in ("", "/farm"):
        text = http.get(f"/page{page}").text
        assert "cluster at head:6379 does not answer &lt;b&gt;" in text
        assert "No worker is connected" not in text


def test_it_lists_workers_that_do_not_run_and_why(
    gateway: Gateway, http: httpx2.Client, fake_worker: FakeWorker
) -> None:
    placed_workers.post(
        gateway.queue,
        [
            PlacedWorker("worker-7", WorkerState.PENDING, "no node has <1 GPU>", 90.0),
            PlacedWorker("worker-8", WorkerState.RUNNING),
        ],
    )
    text = http.get("/page/farm").text
    assert re.search(r">worker-7</th>.*pending</span> no node has &lt;1 GPU&gt;</td>", text)
    assert "of 2</small>" in text
    assert "worker-8" not in text


def test_of_very_many_workers_it_lists_some(
    gateway: Gateway, http: httpx2.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    many = [
        Session(f"{number:032x}", f"w{number:04}", (), 0, 0, 0, {}, {}, None)
        for number in range(views.MAX_WORKERS + 1200)
    ]
    monkeypatch.setattr(gateway.app_deps.queue, "sessions", lambda: many)
    text = http.get("/page/farm").text
    assert text.count('<th scope="row">w') == views.MAX_WORKERS
    assert "1,300" in text
    assert "and 1,200 more" in text


def test_a_server_that_is_gone_is_named(gateway: Gateway, tmp_path: Path) -> None:
    gone = Queue(connect(f"unix://{tmp_path}/no.sock"), farm="test")
    told = views.problems(gone, gone.sessions, ("no answer", "no space is left"))
    assert told == [
        "The queue does not answer: no answer",
        "The store cannot be written to: no space is left",
    ]
    (told_once,) = views.problems(gone, gone.sessions, (None, None))
    assert told_once.startswith("The queue does not answer: ")


@pytest.mark.usefixtures("gateway")  # for a queue without jobs
def test_those_who_may_see_how_much_each_tenant_uses(serve: Serve, tmp_path: Path) -> None:
    keys = write_keys(
        tmp_path / "keys.json",
        {
            "a": {"tenant": "alice"},
            "b": {"tenant": "<bob>"},
            "root": {"tenant": "ops", "scopes": ["read", "admin"]},
        },
    )
    gateway = serve(tmp_path, keys=keys, open=False)
    with gateway.client("a") as alice, gateway.client("b") as bob, gateway.client("root") as ops:
        post(alice, {"prompt": "x", "num_images": 3})
        post(bob, *[{"prompt": "x", "num_images": 40}] * 30)
        gateway.queue.set_weight("alice", 2.5)
        assert alice.get("/page/tenants").status_code == 403
        assert "/tenants" not in alice.get("/page/farm").text
        assert 'href="/tenants"' in ops.get("/page/farm").text
        text = ops.get("/page/tenants").text
    rows = re.findall(r'<th scope="row">(.*?)</th>(.*?)</tr>', text)
    told = [(name, re.findall(r">([^<]+)</td>", cells)) for name, cells in rows]
    assert told == [
        ("&lt;bob&gt;", ["1", "1", "1,200", "0", "0", "0 Bytes"]),
        ("alice", ["2.5", "1", "3", "0", "0", "0 Bytes"]),
    ]


def test_lists_of_any_length_come_in_pages(gateway: Gateway, http: httpx2.Client) -> None:
    for number in range(60):
        header = JobHeader(
            f"j0-{number:026d}", "local", JobOptions.parse({"name": f"n{number}"}), "0" * 64
        )
        gateway.queue.submit(header, [])
    seen, address = [], "/page"
    while address:
        text = http.get(address).text
        seen += re.findall(r'<a href="/jobs/[^"]+"[^>]*>(n\d+)</a>', text)
        older = re.search(r'hx-get="(/page\?before=[^"]+)" hx-target="#main"', text)
        address = older[1] if older else ""
    assert len(seen) == len(set(seen)) == 60


def test_the_pictures_of_a_large_task_come_in_pages(gateway: Gateway, http: httpx2.Client) -> None:
    worker = FakeWorker(gateway.queue, gateway.store, INFO)
    renders = [{"prompt": f"n{n}", "num_images": 2} for n in range(80)]
    job = post(http, *renders).json()["id"]
    worker.start()
    until_done(http, job)
    worker.stop()
    seen: list[str] = []
    address = f"/page/jobs/{job}/pictures"
    while address:
        text = http.get(address).text
        shown = re.findall(r'id="p-[^"]*-(\d+-\d+)"', text)
        assert len(shown) <= 60
        seen += shown
        more = re.search(r'hx-get="([^"]+)"[^>]*>More pictures', text)
        address = html.unescape(more[1]) if more else ""
    assert len(seen) == len(set(seen)) == 160


def test_the_shell_tells_a_stranger_nothing(serve: Serve, tmp_path: Path) -> None:
    keys = write_keys(tmp_path / "keys.json", {"secret": {"tenant": "alice"}})
    gateway = serve(tmp_path, keys=keys, open=False)
    with gateway.client("secret") as alice, gateway.client() as stranger:
        job = post(alice, {"prompt": "a secret bicycle"}, name="secret plans").json()["id"]
        for page in ("/", "/pictures", "/farm", "/new", f"/jobs/{job}"):
            shell = stranger.get(page)
            assert shell.status_code == 200
            assert "secret" not in shell.text
        assert stranger.get("/page").status_code == 401
        assert "secret plans" in alice.get("/page").text


def test_charts_fit_their_frame() -> None:
    assert 'points="0.0,31.0 160.0,1.0"' in sparkline([0, 7], "a chart")
    assert "polyline" in sparkline([], "nothing yet")
    drawn = bar(1, 1, 1, 4)
    assert drawn.count("<rect") == 3
    assert 'x="50.00" y="0" width="25.00"' in drawn
    assert "<rect" not in bar(0, 0, 0, 0)


def test_the_newest_pictures_are_the_newest(gateway: Gateway, http: httpx2.Client) -> None:
    """Of a job whose tasks hold several pictures each."""
    worker = FakeWorker(gateway.queue, gateway.store, INFO)
    job = post(http, *[{"prompt": f"picture {n}", "num_images": 8} for n in range(40)]).json()["id"]
    worker.start()
    until_done(http, job)
    worker.stop()
    last = [
        one["render"]
        for one in http.get(f"/v1/jobs/{job}/images", params={"limit": 1000}).json()["images"]
    ][-1]
    assert f">picture {last}</a></p>" in http.get("/page/pictures").text
