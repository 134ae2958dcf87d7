"""The command line against a real gateway."""

import json
from pathlib import Path

import httpx2
import pytest
from fake_adapters import adapter_file
from fake_worker import BAD_PROMPT, FakeWorker
from harness import Cli, Gateway, png

from farm.job import is_job_id

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


def test_a_failed_and_a_cancelled_job_have_codes_of_their_own(
    cli: Cli, fake_worker: FakeWorker
) -> None:
    failed = cli("submit", BAD_PROMPT, "--wait")
    assert (failed.code, failed.err.splitlines()[-1][:17]) == (1, "error[job_failed]")
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
        ("a.tsv", b"Prompt\tsteps\ttemperature\na\t3\t2,0\nb\t4\t1.5\n"),
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
    assert told[-1] == "11,995 of 12,001 renders taken, 6 refused"
    places = [line.split("line ")[1].split(":")[0] for line in told[:-1]]
    assert places == [
        "4, column 17", "5, column 12", "6, column 16", "7, column 1048577",
        "10001, column 17", "12001, column 13",
    ]  # fmt: skip
    assert "renders refused" in cli("status", result.out.strip()).out


def test_bad_cells_are_listed_with_line_and_cell(cli: Cli) -> None:
    Path("a.csv").write_bytes(
        b"prompt,steps,guidance\nok,1,\nx,1.5,4\nx,0,4\n,1,4\nx,1\n\xff,1,4\nx,1,NaN\nok,,\n"
    )
    result = cli("submit", "a.csv")
    assert result.code == 0, result.err
    places = [line.split("line ")[1].split(":")[0] for line in result.err.splitlines()[:-1]]
    assert places == [
        "3, column 2", "4, column 2", "5, column 1", "6, column 1", "7, column 1", "8, column 3",
    ]  # fmt: skip
    Path("b.csv").write_text("prompt\n\n")
    assert cli("submit", "b.csv").code == 2


def test_columns_that_are_no_parameters_are_named(cli: Cli) -> None:
    Path("a.tsv").write_text("Prompt\tCategory\tNote\na\tAbstract\tb\n")
    result = cli("submit", "a.tsv")
    assert result.code == 0
    assert "ignored: Category, Note" in result.err


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
    (["submit", "folder"], {"folder/x": b""}, "directory"),
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
    (["inspect", "text.png"], {"text.png": b"hello"}, "error["),
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
        ("http://nowhere.invalid", 5, "farm up"),
        ("nonsense", 2, "no address"),
        ("http://", 2, "no address"),
        ("ftp://127.0.0.1", 2, "no address"),
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
    assert "its sender has not sent the rest" in cli("why", job).out
