"""The command line against a real gateway."""

import json
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fake_adapters import adapter_file
from fake_worker import BAD_PROMPT, FakeWorker
from harness import Cli, Gateway, png

from farm.job import is_job_id
from farm_client import Farm

UNKNOWN = "j0-01m848b6zxgnjbpp0f506dqmht"


def test_submit_prints_the_id_and_nothing_else(cli: Cli) -> None:
    result = cli("submit", "a red bicycle", "--seed", "7", "-n", "2", "--name", "bikes")
    assert result.code == 0
    assert result.err == ""
    job = result.out.strip()
    assert is_job_id(job)
    status = json.loads(cli("status", job, "--json").out)
    assert (status["id"], status["name"], status["images"]["total"]) == (job, "bikes", 2)
    assert "0 of 2 pictures" in cli("status", job).out
    assert json.loads(cli("submit", "x", "--json").out)["accepted"] == 1


def test_submit_wait_and_fetch_at_once(cli: Cli, fake_worker: FakeWorker) -> None:
    result = cli("submit", "a boat", "a bird", "--steps", "3", "-o", "out")
    assert result.code == 0
    assert len(result.out.splitlines()) == 1
    lines = [json.loads(line) for line in Path("out/manifest.jsonl").read_text().splitlines()]
    assert [line["spec"]["prompt"] for line in lines] == ["a boat", "a bird"]
    assert {line["spec"]["num_inference_steps"] for line in lines} == {3}
    assert all((Path("out") / line["file"]).is_file() for line in lines)
    job = result.out.strip()
    assert cli("wait", job).code == 0
    assert cli("watch", job).code == 0
    fetched = cli("fetch", job, "-o", "out", "--json")
    assert json.loads(fetched.out)["skipped"] == 2
    assert cli("ls", "-q").out.split() == [job]
    assert "2/2" in cli("ls").out
    assert cli("ls", "--state", "failed").out == ""


def test_every_parameter_is_a_flag(cli: Cli) -> None:
    Path("photo.png").write_bytes(png())
    Path("mask.png").write_bytes(png(mode="L"))
    Path("dots.safetensors").write_bytes(adapter_file(0))
    assert cli("adapter", "add", "dots", "dots.safetensors").code == 0
    Path("lines.safetensors").write_bytes(adapter_file(1))
    result = cli(
        "submit", "x", "--image", "photo.png", "--mask", "mask.png", "--mode", "inpaint",
        "--checkpoint", "shapes-64", "--negative-prompt", "y", "--height", "32", "--width", "64",
        "--num-inference-steps", "5", "--guidance-scale", "3.5", "--temperature", "2,0.5",
        "--seed", "1", "--num-images", "2", "--strength", "0.9",
        "--micro-conditioning-aesthetic-score", "5", "--micro-conditioning-crop-coord", "1,2",
        "--adapter", "dots:0.5", "--adapter", "lines.safetensors", "--adapter-scale", "0.5",
        "--rng", "torch", "--priority", "urgent", "--format", "webp",
        "--max-failed", "1", "--deadline", "2027-01-01T00:00:00Z", "--idempotency-key", "k",
    )  # fmt: skip
    assert result.code == 0, result.err


def test_a_job_that_an_earlier_call_made_is_told_as_such(cli: Cli) -> None:
    first = cli("submit", "a ring", "--idempotency-key", "rings", "--seed", "7")
    again = cli("submit", "a ring", "--idempotency-key", "rings", "--seed", "7")
    assert (again.code, again.out) == (0, first.out)
    assert "earlier call" not in first.err
    assert "was made by an earlier call with this key; nothing new was submitted" in again.err


def test_a_failed_and_a_cancelled_job_have_codes_of_their_own(
    cli: Cli, fake_worker: FakeWorker
) -> None:
    failed = cli("submit", BAD_PROMPT, "--wait")
    told = f"error[job_failed]: job {failed.out.strip()}: 1 of 1 pictures failed; at most 0 were "
    assert (failed.code, failed.err.splitlines()[-1]) == (1, f"{told}allowed")
    assert cli("fetch", failed.out.strip(), "-o", "out").code == 1


def test_waiting_has_a_limit_and_cancelling_a_code(cli: Cli) -> None:
    job = cli("submit", "x").out.strip()
    assert cli("wait", job, "--timeout", "0.2").code == 4
    assert cli("submit", "x", "--timeout", "0.2").code == 4
    assert cli("fetch", job, "-o", "out", "--no-wait").code == 0
    assert cli("cancel", job).code == 0
    assert cli("wait", job).code == 3
    assert cli("watch", job).code == 3
    assert json.loads(cli("watch", job, "--json").out.splitlines()[-1])["state"] == "cancelled"


@pytest.mark.parametrize("how", [("--wait",), ("-o", "out"), ("--timeout", "60")])
def test_json_tells_how_a_job_ended_that_was_waited_for(
    cli: Cli, fake_worker: FakeWorker, how: tuple[str, ...]
) -> None:
    good = cli("submit", "a boat", "--json", *how)
    told = json.loads(good.out)
    assert (good.code, told["state"], told["images"]["done"]) == (0, "done", 1)
    bad = cli("submit", BAD_PROMPT, "--json", *how, *(("--overwrite",) if "-o" in how else ()))
    told = json.loads(bad.out)
    assert (bad.code, told["state"], told["images"]["failed"]) == (1, "failed", 1)


GOOD = '{"prompt": "a"}\n{"prompt": "b"}\n'


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", GOOD.encode()),
        ("a.ndjson", b"\xef\xbb\xbf" + GOOD.encode()),
        ("a.jsonl", b'[{"prompt": "a"},\n {"prompt": "b"}]'),
        ("a.json", b'[{"prompt": "a"},\n {"prompt": "b"}]\n'),
        ("a.json", GOOD.encode()),
        ("a.csv", b'prompt,seed,note\na,1,x\n"b, with ""quotes""\nand a line",,y\n'),
        ("a.csv", b"\xef\xbb\xbfPrompt\r\na\r\nb\r\n"),
        ("a.tsv", b"Prompt\tnum inference steps\ttemperature\na\t3\t2,0\nb\t4\t1.5\n"),
        ("a.txt", "\ufeffa\n\n  b, \u00fcber\n".encode()),
    ],
)
def test_a_file_of_any_kind_is_one_job(cli: Cli, name: str, content: bytes) -> None:
    Path(name).write_bytes(content)
    result = cli("submit", name, "--json")
    assert result.code == 0, result.err
    assert json.loads(result.out)["accepted"] == 2


def test_a_json_object_over_several_lines_is_one_render(cli: Cli) -> None:
    Path("a.json").write_text('{\n  "prompt": "a",\n  "seed": 1\n}\n')
    assert json.loads(cli("submit", "a.json", "--json").out)["accepted"] == 1
    Path("a.json").write_text('{\n  "prompt": "a",\n}\n')
    assert "line 2, column 16" in cli("submit", "a.json").err


def test_a_parquet_file_is_a_table_too(cli: Cli) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"caption": ["a", "b"], "seed": [1, None]}), "a.parquet")
    assert "--column" in cli("submit", "a.parquet").err
    result = cli("submit", "a.parquet", "--column", "caption", "--json")
    assert json.loads(result.out)["accepted"] == 2
    Path("b.parquet").write_bytes(b"no parquet")
    assert cli("submit", "b.parquet").code == 2


def test_bad_lines_are_listed_and_the_good_ones_taken(cli: Cli) -> None:
    lines = [json.dumps({"prompt": f"p{number}"}) for number in range(12_000)]
    lines[10_000] = '{"prompt": "x", "num_inference_steps": 0}'
    lines[3] = '{"prompt": "a", "prompt": "b"}'
    lines[4] = '{"prompt": NaN}'
    lines[5] = '{"prompt": "x"},'
    lines[6] = '{"prompt": "' + "x" * (3 << 20) + '"}'
    Path("a.jsonl").write_text("\n".join(lines) + "\n")
    with Path("a.jsonl").open("ab") as file:
        file.write(b'{"prompt": "\xff"}\n')
    result = cli("submit", "a.jsonl", "--steps", "1")
    assert result.code == 0
    assert is_job_id(result.out.strip())
    told = result.err.splitlines()
    assert told[-1] == "11,995 of 12,001 renders accepted, 6 refused"
    places = [line.split("line ")[1].split(":")[0] for line in told[:-1]]
    assert places == [
        "4, column 17", "5, column 12", "6, column 16", "7, column 1048577",
        "10001, column 17", "12001, column 13",
    ]  # fmt: skip
    assert "renders refused" in cli("status", result.out.strip()).out


def test_bad_cells_are_listed_with_line_and_cell(cli: Cli) -> None:
    Path("a.csv").write_bytes(
        b"prompt,num_inference_steps,guidance_scale\nok,1,\nx,1.5,4\nx,0,4\n,1,4\nx,1\n\xff,1,4\nx,1,NaN\nok,,\n"
    )
    result = cli("submit", "a.csv")
    assert result.code == 0, result.err
    places = [line.split("line ")[1].split(":")[0] for line in result.err.splitlines()[:-1]]
    assert places == [
        "3, column 2", "4, column 2", "5, column 1", "6, column 1", "7, column 1", "8, column 3",
    ]  # fmt: skip
    Path("b.csv").write_text("prompt\n\n")
    assert cli("submit", "b.csv").code == 2


def test_columns_that_are_kept_are_named(cli: Cli) -> None:
    Path("a.tsv").write_text("Prompt\tCategory\tNote\na\tAbstract\tb\n")
    result = cli("submit", "a.tsv")
    assert result.code == 0
    assert "kept as metadata: Category, Note" in result.err


def test_pictures_of_a_file_lie_beside_it(cli: Cli) -> None:
    Path("set").mkdir()
    Path("set/photo.png").write_bytes(png(colour=(5, 5, 5)))
    Path("set/a.jsonl").write_text('{"prompt": "x", "image": "photo.png"}\n')
    Path("set/a.csv").write_text("prompt,image\nx,photo.png\nx,none.png\n")
    assert cli("submit", "set/a.jsonl").code == 0
    result = cli("submit", "set/a.csv")
    assert result.code == 0
    assert "line 3, column 2" in result.err


WRONG: list[tuple[list[str], dict[str, bytes], str]] = [
    (["submit"], {}, "nothing to draw"),
    (["submit", ""], {}, "empty"),
    (["submit", "none.jsonl"], {}, "there is no file"),
    (["submit", "empty.jsonl"], {"empty.jsonl": b""}, "empty"),
    (["submit", "blank.jsonl"], {"blank.jsonl": b"\n \n"}, "no render"),
    (["submit", "folder"], {"folder/x": b""}, "no file of renders"),
    (["submit", "wide.csv"], {"wide.csv": "prompt\nx\n".encode("utf-16")}, "UTF-16"),
    (["submit", "wide.jsonl"], {"wide.jsonl": GOOD.encode("utf-16-le")}, "UTF-16"),
    (["submit", "a.csv"], {"a.csv": b"words\nx\n"}, "--column"),
    (["submit", "a.csv"], {"a.csv": b"prompt,Prompt\nx,y\n"}, "two columns"),
    (["submit", "a.csv", "--column", "no"], {"a.csv": b"prompt\nx\n"}, "no column 'no'"),
    (["submit", "a.json"], {"a.json": b'[{"prompt": "x"},]'}, "comma"),
    (["submit", "a.json"], {"a.json": b'[{"prompt": "x"} {"prompt": "y"}]'}, "comma"),
    (["submit", "x", "--steps", "2.5"], {}, "whole number"),
    (["submit", "x", "--steps", "NaN"], {}, "whole number"),
    (["submit", "x", "--guidance", "nan"], {}, "must be a number"),
    (["submit", "x", "--guidance", "inf"], {}, "must be a number"),
    (["submit", "x", "--temperature", "1,2,3"], {}, "temperature"),
    (["submit", "x", "--width", "65"], {}, "multiple"),
    (["submit", "x", "--image", "none.png"], {}, "there is no file"),
    (["submit", "x", "-o", "/proc/x"], {}, "cannot be made"),
    (["submit", "x", "--priority", "99"], {}, "priority"),
    (["submit", "x", "--mode", "txt2img"], {}, "text2img"),
    (["submit", "x", "--checkpoint", "nope"], {}, "shapes-64"),
    (["submit", "x", "--idempotency-key", ""], {}, "idempotency_key"),
    (["submit", "x", "--column", "y"], {}, "only a file"),
    (["submit", "x", "--stepps", "3"], {}, "did you mean --steps?"),
    (["submitt", "x"], {}, "did you mean 'submit'?"),
    (["status"], {}, "usage"),
    (["status", "nonsense"], {}, "not a job id"),
    (["status", UNKNOWN], {}, "no job"),
    (["watch", UNKNOWN], {}, "no job"),
    (["wait", UNKNOWN], {}, "no job"),
    (["fetch", UNKNOWN, "-o", "out"], {}, "no job"),
    (["cancel", UNKNOWN], {}, "no job"),
    (["fetch", UNKNOWN], {}, "output"),
    (["inspect", "none.png"], {}, "there is no file"),
    (["inspect", "text.png"], {"text.png": b"hello"}, "file: text.png is not a picture"),
    (["checkpoint", "inspect", "nowhere"], {}, "error["),
    (["ls", "--limit", "0"], {}, "usage"),
]


@pytest.mark.parametrize(("arguments", "files", "words"), WRONG)
def test_what_is_wrong_is_one_line_and_exit_status_2(
    cli: Cli, arguments: list[str], files: dict[str, bytes], words: str
) -> None:
    for name, content in files.items():
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_bytes(content)
    result = cli(*arguments)
    assert result.code == 2, result
    assert result.out == ""
    assert words in result.err
    assert len(result.err.splitlines()) == 1 or "UTF" in words or "line" in result.err
    assert cli("ls", "-q").out == ""


def test_escape_sequences_of_strangers_are_shown_and_not_obeyed(cli: Cli) -> None:
    Path("a.csv").write_text("prompt\x1b[2J,x\na\n")
    result = cli("submit", "a.csv")
    assert "\x1b" not in result.err
    assert "\\x1b[2J" in result.err


@pytest.mark.parametrize(
    ("url", "code", "words"),
    [
        ("http://127.0.0.1:9", 5, "farm up"),
        ("http://nowhere.invalid", 5, "is FARM_URL right"),
        ("nonsense", 2, "a farm's address"),
        ("http://", 2, "a farm's address"),
        ("ftp://127.0.0.1", 2, "a farm's address"),
    ],
)
def test_a_farm_that_is_not_there(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, url: str, code: int, words: str
) -> None:
    monkeypatch.setenv("FARM_URL", url)
    for arguments in (["ls"], ["submit", "x"]):
        result = cli(*arguments)
        assert result.code == code
        assert words in result.err
        assert len(result.err.splitlines()) == 1


def test_https_is_told_from_http(
    cli: Cli, gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FARM_URL", gateway.url.replace("http", "https"))
    result = cli("ls")
    assert result.code == 5
    assert gateway.url in result.err


def test_a_wrong_key_has_a_code_of_its_own(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FARM_API_KEY", "wrong")
    assert cli("ls").code == 6
    monkeypatch.setenv("FARM_API_KEY", "with\nbreak")
    assert cli("ls").code == 2


def test_the_farm_of_this_machine_is_found_by_its_data_directory(
    cli: Cli, gateway: Gateway, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("FARM_URL")
    monkeypatch.setenv("FARM_DATA", str(tmp_path))
    (tmp_path / "client.json").write_text(json.dumps({"url": gateway.url}))
    assert cli("ls").code == 0
    (tmp_path / "client.json").write_text("{")
    monkeypatch.setattr("farm_client.address.DEFAULT_URL", "http://127.0.0.1:9")
    assert "127.0.0.1:9" in cli("ls").err


def test_a_job_that_is_still_coming_in_says_for_how_long(cli: Cli, http: httpx2.Client) -> None:
    job = http.post("/v1/jobs?open").json()["id"]
    assert "open: 0 of 0 pictures, coming in for " in cli("status", job).out
    assert "its sender has not sent the rest yet" in cli("why", job).out


def lines_of(http: httpx2.Client, cli: Cli, *arguments: str) -> list[dict[str, Any]]:
    """The pictures of a job submitted so, in the job's order."""
    result = cli("submit", *arguments)
    assert result.code == 0, result.err
    job = result.out.strip()
    assert cli("wait", job).code == 0
    images = http.get(f"/v1/jobs/{job}/images").json()["images"]
    return sorted(images, key=lambda one: (one["render"], one["image"]))


def test_flags_with_several_values_make_every_combination(
    cli: Cli, http: httpx2.Client, fake_worker: FakeWorker
) -> None:
    made = lines_of(http, cli, "a", "b", "--guidance-scale", "3,6", "--seed", "1..2")
    assert [
        (one["spec"]["prompt"], one["spec"]["guidance_scale"], one["seed"]) for one in made
    ] == [
        ("a", 3, 1), ("a", 3, 2), ("a", 6, 1), ("a", 6, 2),
        ("b", 3, 1), ("b", 3, 2), ("b", 6, 1), ("b", 6, 2),
    ]  # fmt: skip
    pairs = lines_of(http, cli, "a", "--guidance-scale", "3,6", "--seed", "1..2", "--zip")
    assert [(one["spec"]["guidance_scale"], one["seed"]) for one in pairs] == [(3, 1), (6, 2)]
    texts = lines_of(http, cli, "a", "--negative-prompt", "x, y", "--negative-prompt", "z")
    assert [one["spec"]["negative_prompt"] for one in texts] == ["x, y", "z"]


def test_a_job_file_and_flags_on_top_of_it(
    cli: Cli, http: httpx2.Client, fake_worker: FakeWorker
) -> None:
    Path("job.yaml").write_text(
        "name: bikes\nprompts: [a, {prompt: b, id: 7}]\ndefaults: {num_inference_steps: 3}\n"
        "matrix: {guidance_scale: [3, 6], seed: 1..2}\n"
    )
    made = lines_of(http, cli, "job.yaml", "--guidance-scale", "5", "--steps", "2")
    assert [
        (one["spec"]["prompt"], one["spec"]["guidance_scale"], one["seed"], one["metadata"])
        for one in made
    ] == [("a", 5, 1, {}), ("a", 5, 2, {}), ("b", 5, 1, {"id": 7}), ("b", 5, 2, {"id": 7})]
    assert {one["spec"]["num_inference_steps"] for one in made} == {2}
    assert cli("ls").out.count("bikes") == 1


def test_several_files_are_one_job_and_columns_come_back(
    cli: Cli, http: httpx2.Client, fake_worker: FakeWorker
) -> None:
    Path("set").mkdir()
    Path("set/photo.png").write_bytes(png(colour=(5, 5, 5)))
    Path("set/a.csv").write_text("id,caption,image\n007,a,photo.png\n008,b,\n")
    Path("b.jsonl").write_text('{"caption": "c", "label": 3}\n{"label": 4}\n{"caption": "d"}\n')
    result = cli("submit", "set", "b.jsonl", "--column", "prompt=caption", "--json")
    assert result.code == 0
    assert "b.jsonl: error[invalid] prompt: line 2" in result.err
    assert "--column" in result.err
    job = json.loads(result.out)["id"]
    assert cli("wait", job).code == 0
    images = http.get(f"/v1/jobs/{job}/images").json()["images"]
    told = {one["spec"]["prompt"]: (one["spec"]["mode"], one["metadata"]) for one in images}
    assert told == {
        "a": ("img2img", {"id": "007"}), "b": ("text2img", {"id": "008"}),
        "c": ("text2img", {"label": 3}), "d": ("text2img", {}),
    }  # fmt: skip


def test_limit_and_sample_take_some_of_the_rows(
    cli: Cli, http: httpx2.Client, fake_worker: FakeWorker
) -> None:
    Path("a.txt").write_text("".join(f"p{n}\n" for n in range(50)))
    first = lines_of(http, cli, "a.txt", "--limit", "3")
    assert [one["spec"]["prompt"] for one in first] == ["p0", "p1", "p2"]
    sample = lines_of(http, cli, "a.txt", "--sample", "5", "--sample-seed", "3")
    again = lines_of(http, cli, "a.txt", "--sample", "5", "--sample-seed", "3")
    assert [one["spec"]["prompt"] for one in sample] == [one["spec"]["prompt"] for one in again]
    assert len(sample) == 5


def test_a_refused_row_can_be_strict_or_stop_everything(cli: Cli) -> None:
    Path("a.jsonl").write_text('{"prompt": "a"}\n{"prompt": "b", "steps": 20}\n')
    result = cli("submit", "a.jsonl", "--strict")
    assert result.code == 2
    assert is_job_id(result.out.strip())
    assert "line 2, column 17" in result.err
    assert "did you mean 'num_inference_steps'?" in result.err
    assert cli("submit", "a.jsonl", "--on-error", "skip").code == 0
    jobs = len(cli("ls", "-q").out.split())
    result = cli("submit", "a.jsonl", "--on-error", "stop")
    assert (result.code, result.out) == (2, "")
    assert "none of the 2 renders was accepted" in result.err
    assert len(cli("ls", "-q").out.split()) == jobs
    assert "skip or stop" in cli("submit", "a.jsonl", "--on-error", "wait").err


def test_a_long_file_stops_at_its_first_refused_row(cli: Cli) -> None:
    rows = ['{"prompt": "a"}'] * 5000
    rows[2500] = '{"prompt": ""}'
    Path("a.jsonl").write_text("\n".join(rows))
    result = cli("submit", "a.jsonl", "--on-error", "stop")
    assert (result.code, result.out) == (2, "")
    assert "line 2501" in result.err
    assert [job.state for job in Farm().jobs()] == ["cancelled"]


def test_a_file_of_an_unknown_kind_is_not_drawn_as_a_prompt(cli: Cli) -> None:
    Path("prompts.md").write_text("a\nb\n")
    result = cli("submit", "prompts.md")
    assert (result.code, result.out) == (2, "")
    assert "--prompt 'prompts.md'" in result.err
    assert cli("submit", "--prompt", "prompts.md").code == 0
    assert json.loads(cli("submit", "prompts.md", "--input-format", "txt", "--json").out)[
        "accepted"
    ] == 2  # fmt: skip
    assert "not both" in cli("submit", "prompts.md", "a star").err


def test_a_dry_run_tells_what_a_submission_would_come_to(
    cli: Cli, fake_worker: FakeWorker, gateway: Gateway
) -> None:
    Path("a.csv").write_text("prompt,width\n" + "a,64\n" * 3000 + "b,128\nc,7\n")
    flags = ("a.csv", "--seed", "1..2", "--num-images", "2", "--steps", "3")
    result = cli("submit", *flags, "--dry-run")
    assert result.code == 0
    assert "line 3003, column 2" in result.err
    assert "2 renders would be refused" in result.err
    told = result.out.splitlines()
    assert told[0] == "6,002 renders, 12,004 pictures; nothing was submitted"
    assert told[-1] == "time: not known yet; the workers have not measured every lane"
    assert cli("ls", "-q").out == ""
    facts = json.loads(cli("submit", *flags, "--dry-run", "--json").out)
    assert (facts["renders"], facts["rejected_count"], facts["workers"]) == (6002, 2, 1)
    lanes = {name.rpartition("/")[2]: one for name, one in facts["lanes"].items()}
    assert lanes["64x64"]["pictures"] == 12_000
    assert lanes["64x128"] == {"pictures": 4, "tasks": 1, "row_steps": 12, "pace": 0.0}
    assert 12_004 * 1000 < facts["bytes"] < 12_004 * 20_000
    assert cli("submit", *flags, "--dry-run", "--strict").code == 2
    job = cli("submit", *flags).out.strip()
    assert json.loads(cli("status", job, "--json").out)["images"]["total"] == facts["pictures"]


def test_a_dry_run_knows_the_time_where_the_workers_do(
    cli: Cli, gateway: Gateway, fake_worker: FakeWorker
) -> None:
    lane = f"{fake_worker.info.name}/text2img/64x64"
    facts = {"checkpoints": [fake_worker.info.model_dump()]}
    gateway.queue.register("f" * 32, "measured", [fake_worker.info.name], facts)
    gateway.queue.heartbeat("f" * 32, 0, {}, {"paces": {lane: 10.0}}, 60_000)
    told = cli("submit", "a", "--steps", "5", "-n", "60", "--dry-run").out
    assert "time: about 0 min 30 s, if 2 workers did nothing else" in told


def test_a_folder_takes_the_pictures_of_one_job(cli: Cli, fake_worker: FakeWorker) -> None:
    first = cli("submit", "a", "-o", "out")
    assert first.code == 0, first.err
    picture = Path("out/00000000-00.png").read_bytes()
    count = len(cli("ls", "-q").out.split())
    refused = cli("submit", "b", "-o", "out")
    assert (refused.code, refused.out) == (2, "")
    assert first.out.split()[0] in refused.err
    assert len(cli("ls", "-q").out.split()) == count
    other = cli("submit", "b").out.strip()
    assert cli("fetch", other, "-o", "out").code == 2
    assert cli("fetch", other, "-o", "out", "--resume").code == 2
    assert Path("out/00000000-00.png").read_bytes() == picture
    assert cli("fetch", first.out.split()[0], "-o", "out").code == 0
    assert cli("fetch", other, "-o", "out", "--overwrite").code == 0
    assert Path("out/00000000-00.png").read_bytes() != picture
