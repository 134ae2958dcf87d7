"""Which servers the farm refuses, and what it does with one that was restarted."""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import redis
from queue_bench import Bench

from farm.errors import Unavailable
from farm.local.valkey import ServerProcess
from farm.queue import Queue, check_server, connect
from farm.queue.server import rewrite

Serving = Callable[..., AbstractContextManager[ServerProcess]]


@pytest.fixture
def serving(folder: Path) -> Serving:
    """A server of the test's own, with options of its own."""

    @contextlib.contextmanager
    def serve(*options: str, fsync: str = "always") -> Iterator[ServerProcess]:
        data = folder / os.urandom(4).hex()
        server = ServerProcess(data, options=options, fsync=fsync)
        try:
            with server.serving():
                yield server
        finally:
            server.kill()
            shutil.rmtree(data, ignore_errors=True)

    return serve


def refusal(client: "redis.Redis", **options: bool) -> Unavailable:
    with pytest.raises(Unavailable) as caught:
        check_server(client, **options)
    assert "\n" not in str(caught.value)
    assert caught.value.hint
    assert caught.value.exit_code == 5
    return caught.value


def test_a_server_as_the_farm_starts_it_is_taken_without_a_word(serving: Serving) -> None:
    with serving("--maxmemory", "64mb") as server:
        client = connect(server.url)
        facts = check_server(client)
        assert facts.notes == ()
        assert facts.run_id == client.info("server")["run_id"]
        assert int(facts.version.partition(".")[0]) >= 7


def test_a_server_without_an_append_only_file_is_refused_but_for_trials(serving: Serving) -> None:
    with serving("--appendonly", "no", "--maxmemory", "64mb") as server:
        error = refusal(connect(server.url))
        assert "in memory only" in error.message
        assert "appendonly yes" in str(error.hint)
        assert "FARM_ALLOW_VOLATILE=1" in str(error.hint)
        [note] = check_server(connect(server.url), allow_volatile=True).notes
        assert note.startswith("no append-only file")


@pytest.mark.parametrize(
    ("fsync", "lost"), [("everysec", "the last second"), ("no", "the last half minute")]
)
def test_a_server_that_syncs_late_is_taken_with_a_warning(
    serving: Serving, fsync: str, lost: str
) -> None:
    with serving("--maxmemory", "64mb", fsync=fsync) as server:
        [note] = check_server(connect(server.url)).notes
        assert f"appendfsync is {fsync}: {lost} of accepted work" in note


@pytest.mark.parametrize("allow_volatile", [False, True])
def test_a_server_that_evicts_is_refused_also_for_trials(
    serving: Serving, allow_volatile: bool
) -> None:
    with serving() as server:
        client = connect(server.url)
        for keys in ("allkeys", "volatile"):
            for which in ("lru", "lfu", "random"):
                client.config_set("maxmemory-policy", f"{keys}-{which}")
                error = refusal(client, allow_volatile=allow_volatile)
                assert f"maxmemory-policy is {keys}-{which}" in error.message
        client.config_set("maxmemory-policy", "volatile-ttl")
        assert "volatile-ttl" in refusal(client).message
        client.config_set("maxmemory-policy", "noeviction")
        check_server(client)


def test_a_server_with_little_memory_is_refused(serving: Serving) -> None:
    with serving("--maxmemory", str(64 * 2**20 - 1)) as server:
        client = connect(server.url)
        error = refusal(client)
        assert "67,108,863 bytes" in error.message
        assert "64mb" in str(error.hint)
        client.config_set("maxmemory", 64 * 2**20)
        assert check_server(client).notes == ()
        client.config_set("maxmemory", 0)
        [note] = check_server(client).notes
        assert note.startswith("no maxmemory")


def test_a_replica_is_refused(serving: Serving) -> None:
    with serving() as primary, serving() as server:
        client = connect(server.url)
        port = free_port(connect(primary.url))
        client.replicaof("127.0.0.1", port)
        error = refusal(client)
        assert "replica" in error.message
        assert "primary" in str(error.hint)
        client.replicaof("NO", "ONE")
        check_server(client)


def free_port(client: "redis.Redis") -> int:
    """Where a server listens from now on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    client.config_set("port", port)
    return port


@pytest.mark.parametrize("version", ["2.8.24", "6.0.16", "6.2.14", "6.2-rc1"])
def test_an_old_server_is_refused(
    client: "redis.Redis", monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    says(client, monkeypatch, redis_version=version)
    error = refusal(client)
    assert f"has version {version}" in error.message
    assert "7.0 or newer" in error.message


@pytest.mark.parametrize("version", ["7.0.0", "7.2.4", "8.1.10", "10.0.1", "255.255.255"])
def test_a_newer_server_is_taken(
    client: "redis.Redis", monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    says(client, monkeypatch, redis_version=version)
    check_server(client)


def says(client: "redis.Redis", monkeypatch: pytest.MonkeyPatch, **facts: Any) -> None:
    info = client.info
    monkeypatch.setattr(client, "info", lambda *sections: {**info(*sections), **facts})


def test_a_server_that_keeps_its_settings_to_itself_is_taken(serving: Serving) -> None:
    """Managed services allow neither CONFIG nor BGREWRITEAOF."""
    with serving() as server:
        connect(server.url).acl_setuser(
            "default", enabled=True, nopass=True, keys=["*"],
            commands=["+@all", "-config", "-bgrewriteaof"],
        )  # fmt: skip
        client = connect(server.url)
        assert check_server(client).run_id
        Bench(Queue(client)).submit(1)


@pytest.mark.parametrize("told", [{"valkey_version": "9.1.1"}, {"valkey_version": ""}])
def test_a_server_that_would_leave_scripts_out_at_its_restart_is_refused(
    serving: Serving, monkeypatch: pytest.MonkeyPatch, told: dict[str, str]
) -> None:
    """The server here does not: only its version is made up."""
    with serving("--maxmemory", "64mb") as server:
        admin = connect(server.url)
        rights = ["+@all", "-@dangerous", "+info", "+config|get", "+bgrewriteaof"]
        admin.acl_setuser("farm", enabled=True, passwords="+x", keys=["{farm}:*"], commands=rights)
        client = connect(server.url.replace("unix://", "unix://farm:x@"))
        says(client, monkeypatch, **told)
        [note] = check_server(client).notes
        assert "+acl|dryrun" in note
        admin.acl_setuser("farm", commands=["+acl|dryrun"])
        assert check_server(client).notes == ()
        admin.acl_setuser("default", reset=True)
        error = refusal(client)
        assert "user default has no rights" in error.message
        assert "user default off ~* &* +@all" in str(error.hint)
        says(client, monkeypatch, valkey_version="9.1.2")
        assert check_server(client).notes == ()


def test_a_user_who_may_not_ask_is_named(serving: Serving) -> None:
    with serving() as server:
        connect(server.url).acl_setuser(
            "default", enabled=True, nopass=True, keys=["*"], commands=["+@all", "-info"]
        )
        assert "may not do this" in refusal(connect(server.url)).message


def test_a_server_that_is_not_there_is_named(folder: Path) -> None:
    error = refusal(connect(f"unix://{folder / 'nobody.sock'}"))
    assert "does not answer" in error.message
    assert "REDIS_URL" in str(error.hint)


def test_the_gateway_does_not_start_on_a_server_that_forgets(
    serving: Serving, tmp_path: Path
) -> None:
    with serving("--appendonly", "no") as server:
        ended = subprocess.run(
            [sys.executable, "-m", "farm.gateway"],
            env={
                "PATH": os.environ["PATH"],
                "REDIS_URL": server.url,
                "FARM_DATA": str(tmp_path),
                "FARM_OPEN": "1",
            },
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert ended.returncode == 5
    assert ended.stderr.splitlines()[-1].startswith("error[unavailable]: the Redis server keeps")
    assert "Traceback" not in ended.stderr


# After each start.


def slowly(client: "redis.Redis", microseconds: int) -> None:
    """A rewrite takes so long for each key."""
    client.config_set("rdb-key-save-delay", microseconds)


def test_work_that_is_there_goes_on_while_the_file_is_rewritten(
    serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving() as server:
        client = connect(server.url)
        bench = Bench(Queue(client))
        bench.submit(2)
        session = bench.session()
        server.kill()
        server.start()
        server.ready()
        slowly(client, 100_000)
        monkeypatch.setattr("farm.queue.server.REWRITE_SECONDS", 0.05)
        with pytest.raises(Unavailable, match=r"not rewritten .* in 0.05 s"):
            bench.submit(1)
        for lease in bench.lease(session):
            assert bench.complete(session, lease) == "committed"
        with pytest.raises(Unavailable, match="not rewritten"):
            bench.submit(1)
        slowly(client, 0)
        monkeypatch.setattr("farm.queue.server.REWRITE_SECONDS", 30.0)
        bench.submit(1)
        assert client.info("persistence")["aof_rewrites"] >= 1


def test_a_rewrite_waits_for_a_snapshot_that_is_being_saved(serving: Serving) -> None:
    with serving() as server:
        client = connect(server.url)
        for number in range(10):
            client.set(f"key:{number}", "x")
        slowly(client, 30_000)
        client.bgsave()
        rewrite(client)
        facts = client.info("persistence")
        assert (facts["rdb_saves"], facts["aof_rewrites"]) == (1, 1)


def test_a_rewrite_that_fails_lets_no_work_in_until_one_succeeds(serving: Serving) -> None:
    """There is a file where the folder of the append-only files should be."""
    with serving() as server:
        bench = Bench(Queue(connect(server.url)))
        parts = server.data / "appendonlydir"
        aside = server.data / "aside"
        parts.rename(aside)
        parts.write_text("in the way")
        for _ in range(2):
            with pytest.raises(Unavailable, match="could not rewrite") as caught:
                bench.submit(1)
            assert "disk space" in str(caught.value.hint)
        parts.unlink()
        aside.rename(parts)
        bench.submit(1)


def test_a_server_that_dies_during_its_rewrite_is_rewritten_when_it_is_back(
    serving: Serving,
) -> None:
    with serving() as server:
        client = connect(server.url)
        bench = Bench(Queue(client))
        for _ in range(20):
            bench.submit(1)
        server.kill()
        server.start()
        server.ready()
        slowly(client, 100_000)
        header = bench.header()

        def submit() -> None:
            while True:
                with contextlib.suppress(Unavailable):
                    bench.queue.submit(header, bench.tasks(1))
                    return

        submitter = threading.Thread(target=submit)
        submitter.start()
        while not client.info("persistence")["aof_rewrite_in_progress"]:
            time.sleep(0.01)
        server.kill()
        server.start()
        server.ready()
        submitter.join(30)
        client = connect(server.url)
        assert client.hget("{farm}:server", "settled") == client.info("server")["run_id"]
        # Once, or twice where it died between the question for its run_id and the order.
        assert client.info("persistence")["aof_rewrites"] in (1, 2)
        assert bench.queue.status(header.job, "ann").tasks.total == 1


def test_all_submissions_to_a_restarted_server_are_taken(serving: Serving) -> None:
    with serving() as server:
        benches = [Bench(Queue(connect(server.url))) for _ in range(8)]
        benches[0].submit(1)
        server.kill()
        server.start()
        server.ready()
        jobs: list[str] = []
        threads = [
            threading.Thread(target=lambda bench=bench: jobs.append(bench.submit(1)))
            for bench in benches
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len({benches[0].queue.status(job, "ann").id for job in jobs}) == 8
        assert benches[0].queue.check(repair=False) == []


def test_each_start_is_rewritten_once(serving: Serving) -> None:
    with serving() as server:
        bench = Bench(Queue(connect(server.url)))
        for _ in range(3):
            bench.submit(1)
            bench.submit(1)
            persistence = bench.queue.client.info("persistence")
            assert persistence["aof_rewrites"] == 1
            server.kill()
            server.start()
            server.ready()


def test_a_job_is_closed_and_retried_on_a_rewritten_file_only(serving: Serving) -> None:
    """What ``close`` and ``retry`` acknowledge is work taken in, as a submission is."""
    with serving() as server:
        bench = Bench(Queue(connect(server.url)))
        opened = bench.queue.open(bench.header())
        failed = bench.submit(1)
        session = bench.session()
        for lease in (*bench.lease(session), *bench.lease(session)):
            if lease.finalise:
                bench.complete(session, lease)
            else:
                bench.queue.fail(session, lease, "row", "it is bad")
        for lease in bench.queue.held(session):
            bench.complete(session, lease)

        def restart() -> None:
            server.kill()
            server.start()
            server.ready()

        for act in (
            lambda: bench.queue.close(opened.job, 0),
            lambda: bench.queue.retry(failed, "ann"),
        ):
            restart()
            act()
            assert bench.queue.client.info("persistence")["aof_rewrites"] == 1
