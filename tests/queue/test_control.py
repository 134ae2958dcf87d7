"""Pause, resume, retry, repair, and what is asked of the server."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import redis
from queue_bench import MS, Bench, moved_clock

from farm.errors import Conflict, FarmError, QueueFull, Unavailable
from farm.job import JobState
from farm.local.valkey import ServerProcess
from farm.queue import Queue, check_server, connect
from farm.queue.scripts import read_scripts


def finish(bench: Bench, job: str, failed: dict[int, int]) -> None:
    """Run a job to its end; some pictures of some tasks fail, all of them for -1."""
    session = bench.session()
    while leases := bench.queue.held(session) or bench.lease(session):
        for lease in leases:
            wrong = failed.get(lease.number, 0)
            if wrong < 0:
                bench.queue.fail(session, lease, "row", "chunk is unreadable")
            else:
                bench.complete(session, lease, failed=wrong)
    bench.queue.end(session, "drain")


def test_a_paused_job_starts_nothing_until_it_is_resumed(bench: Bench, queue: Queue) -> None:
    job, other = bench.submit(3), bench.submit(1)
    session = bench.session()
    [running] = bench.lease(session, limit=1)
    queue.pause(job, "ann")
    queue.pause(job, "ann")
    assert queue.status(job, "ann").paused
    assert [lease.job for lease in bench.lease(session)] == [other]
    assert queue.backlog() == []
    assert bench.complete(session, running) == "committed"
    queue.resume(job, "ann")
    queue.resume(job, "ann")
    assert len([lease for lease in bench.lease(session) if not lease.finalise]) == 2


def test_what_comes_back_to_a_paused_job_waits_too(bench: Bench, queue: Queue) -> None:
    header = bench.header()
    queue.open(header)
    queue.append(header.job, 0, "a" * 64, bench.tasks(2))
    session = bench.session()
    leases = bench.lease(session)
    queue.pause(header.job, "ann")
    queue.append(header.job, 1, "b" * 64, bench.tasks(2, first=2))
    queue.fail(session, leases[0], "release", "")
    queue.end(session, "crash")
    bench.advance(61)
    queue.tick()
    session = bench.session()
    assert bench.lease(session) == []
    queue.resume(header.job, "ann")
    [suspect] = bench.lease(session)
    assert suspect.alone
    bench.complete(session, suspect)
    assert len(bench.lease(session)) == 3


def test_a_paused_job_can_be_cancelled_and_expires(bench: Bench, queue: Queue) -> None:
    deadline = (datetime.now(UTC) + timedelta(seconds=60)).isoformat()
    cancelled, late = bench.submit(2), bench.submit(2, deadline=deadline)
    for job in (cancelled, late):
        queue.pause(job, "ann")
    queue.cancel(cancelled, "ann")
    bench.advance(61)
    queue.tick()
    assert queue.status(cancelled, "ann").tasks.cancelled == 2
    assert queue.status(late, "ann").tasks.expired == 2
    with pytest.raises(Conflict, match="has ended"):
        queue.resume(cancelled, "ann")


def test_a_retry_runs_the_failed_pictures_as_a_new_generation(bench: Bench, queue: Queue) -> None:
    job = bench.submit(4, pictures=10, cost=100)
    finish(bench, job, {1: 3, 2: -1})
    before = queue.status(job, "ann")
    assert (before.state, before.images.failed) == (JobState.FAILED, 13)
    receipts = queue.finished(job)
    assert queue.retry(job, "ann") == 1
    assert queue.retry(job, "ann") == 1, "the reply was lost"
    status = queue.status(job, "ann")
    assert (status.state, status.generation, status.images.failed) == (JobState.RUNNING, 1, 0)
    assert (status.ended_at, status.reason) == (None, None)
    session = bench.session()
    leases = bench.lease(session)
    assert [(lease.number, lease.generation, lease.pictures, lease.cost) for lease in leases] == [
        (2, 1, 10, 100), (1, 1, 3, 30),
    ]  # fmt: skip
    bench.complete(session, leases[0], failed=1)
    bench.complete(session, leases[1])
    [final] = queue.held(session)
    assert (final.finalise, final.generation) == (True, 1)
    bench.complete(session, final)
    assert queue.finished(job)[: len(receipts)] == receipts, "what was published stays"
    assert queue.status(job, "ann").images.failed == 1
    assert queue.retry(job, "ann") == 2
    finish(bench, job, {})
    status = queue.status(job, "ann")
    assert (status.state, status.images.done, status.images.failed) == (JobState.DONE, 40, 0)
    with pytest.raises(Conflict, match="no failed pictures"):
        queue.retry(job, "ann")


def test_a_retry_of_very_many_tasks_is_carried_on_by_the_tick(bench: Bench, queue: Queue) -> None:
    header = bench.header()
    queue.open(header)
    for piece in range(3):
        tasks = bench.tasks(200, pictures=1, first=200 * piece)
        queue.append(header.job, piece, "a" * 64, tasks)
    queue.close(header.job, 3)
    finish(bench, header.job, dict.fromkeys(range(600), 1))
    queue.retry(header.job, "ann")
    assert queue.status(header.job, "ann").tasks.queued == 200
    for _ in range(2):
        bench.advance(1)
        queue.tick()
    status = queue.status(header.job, "ann")
    assert (status.tasks.queued, status.images.failed) == (600, 0)
    finish(bench, header.job, {})
    assert queue.status(header.job, "ann").state is JobState.DONE


def test_a_job_is_not_finalised_while_its_retry_is_still_being_queued(
    bench: Bench, queue: Queue
) -> None:
    header = bench.header()
    queue.open(header)
    for piece in range(2):
        tasks = bench.tasks(200, pictures=1, first=200 * piece)
        queue.append(header.job, piece, "a" * 64, tasks)
    queue.close(header.job, 2)
    finish(bench, header.job, dict.fromkeys(range(400), 1))
    queue.retry(header.job, "ann")
    session = bench.session()
    leases = bench.lease(session, limit=200)
    assert len(leases) == 200
    for lease in leases:
        bench.complete(session, lease)
    assert queue.held(session) == []
    assert queue.status(header.job, "ann").state is JobState.RUNNING
    bench.advance(1)
    queue.tick()
    assert queue.status(header.job, "ann").tasks.queued == 200


def test_only_an_ended_job_can_be_retried(bench: Bench, queue: Queue) -> None:
    job = bench.submit(1)
    with pytest.raises(Conflict, match="has not ended"):
        queue.retry(job, "ann")
    queue.cancel(job, "ann")
    with pytest.raises(Conflict, match=r"was cancelled \(submit its renders again\)"):
        queue.retry(job, "ann")


Damage = Callable[["redis.Redis", str, str], object]
DAMAGES: dict[str, Damage] = {
    "a counter": lambda client, job, _: client.hincrby(f"{{farm}}:job:{job}", "nq", 5),
    "pictures": lambda client, job, _: client.hset(f"{{farm}}:job:{job}", "if", 9),
    "the queue": lambda client, job, _: client.delete(f"{{farm}}:ready:{job}:1"),
    "a doubled entry": lambda client, job, _: client.rpush(f"{{farm}}:ready:{job}:1", 2),
    "a foreign entry": lambda client, job, _: client.rpush(f"{{farm}}:ready:{job}:1", 0),
    "the jobs of a lane": lambda client, job, _: client.delete("{farm}:jobs:1:1:1"),
    "a page of the jobs of a lane": lambda client, job, _: client.delete("{farm}:jobs:1:1:1:0"),
    "the tenants of a lane": lambda client, job, _: client.delete("{farm}:tenants:1:1"),
    "the lanes": lambda client, job, _: client.delete("{farm}:lanes:1:1"),
    "the planner's view": lambda client, job, _: client.delete("{farm}:work:tasks"),
    "the planner's pictures": lambda client, job, _: client.hset("{farm}:work:pictures", "1:1", 1),
    "a session": lambda client, job, s: client.zrem("{farm}:sessions", s),
    "what is held": lambda client, job, s: client.delete(f"{{farm}}:held:{s}"),
    "what is held but not leased": lambda client, job, s: client.hset(
        f"{{farm}}:held:{s}", f"{job}/0/2", "1|0|4|0|0|"
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_found_and_repaired(damage: str, bench: Bench, queue: Queue) -> None:
    job = bench.submit(4)
    session = bench.session()
    lease, other = bench.lease(session, limit=2)
    bench.complete(session, lease)
    assert queue.check() == []
    DAMAGES[damage](queue.client, job, session)
    assert queue.check(repair=False) != []
    queue.check()
    queue.check()
    assert queue.check(repair=False) == []
    queue.end(session, "drain")
    finish(bench, job, {})
    assert queue.status(job, "ann").state is JobState.DONE
    del other


def test_a_job_without_a_finalise_task_is_found_and_repaired(bench: Bench, queue: Queue) -> None:
    job = bench.submit(1)
    session = bench.session()
    [lease] = bench.lease(session)
    bench.complete(session, lease)
    queue.end(session, "drain")
    queue.client.delete("{farm}:finalise")
    assert len(queue.check()) == 1
    finish(bench, job, {})
    assert queue.status(job, "ann").state is JobState.DONE


def test_a_job_that_did_not_end_with_its_finalise_task_is_found_and_repaired(
    bench: Bench, queue: Queue
) -> None:
    """One byte of the append-only file is enough for that."""
    job, session = bench.submit(1), bench.session()
    bench.complete(session, bench.lease(session)[0])
    bench.complete(session, queue.held(session)[0])
    assert queue.status(job, "ann").state is JobState.DONE
    bench.submit(1)  # the tenant works in the lane all the same
    queue.client.hset(f"{{farm}}:job:{job}", "s", "c")
    assert queue.check() == [f"{job}: the finalise task has ended, but the job has not"]
    assert queue.status(job, "ann").state is JobState.DONE
    assert queue.check() == []


def test_full_memory_refuses_new_work_and_lets_work_go_on(bench: Bench, queue: Queue) -> None:
    job = bench.submit(3)
    session = bench.session()
    queue.client.config_set("maxmemory", 1)
    try:
        with pytest.raises(QueueFull):
            bench.submit(1)
        header = bench.header()
        with pytest.raises(QueueFull):
            queue.open(header)
        first, second, third = bench.lease(session)
        queue.heartbeat(session, 1, {first.key: (1, 0)}, {}, MS)
        assert bench.complete(session, first) == "committed"
        queue.fail(session, second, "infra", "")
        queue.fail(session, third, "release", "")
        queue.tick()
        queue.end(session, "drain")
        queue.cancel(job, "ann")
        assert queue.status(job, "ann").state is JobState.CANCELLED
    finally:
        queue.client.config_set("maxmemory", 0)


def refusal(server: ServerProcess, **settings: object) -> str:
    client = connect(server.url)
    for name, value in settings.items():
        client.config_set(name.replace("_", "-"), str(value))
    with pytest.raises(Unavailable) as caught:
        check_server(client)
    return str(caught.value)


def test_a_server_that_would_lose_work_is_refused(folder: Path) -> None:
    with ServerProcess(folder / "checked").serving() as server:
        client = connect(server.url)
        assert check_server(client).run_id == client.info("server")["run_id"]
        assert "maxmemory-policy is allkeys-lru" in refusal(server, maxmemory_policy="allkeys-lru")
        client.config_set("maxmemory-policy", "noeviction")
        assert "1,000,000 bytes" in refusal(server, maxmemory=1_000_000)
        client.config_set("maxmemory", 0)
        client.config_set("appendfsync", "everysec")
        assert "appendfsync is everysec" in check_server(client).notes[0]
        assert "set appendonly yes" in refusal(server, appendonly="no")
        assert check_server(client, allow_volatile=True).notes[0].startswith("no append-only")
        client.replicaof("127.0.0.1", 1)
        assert "replica" in refusal(server)


def test_a_restarted_server_takes_work_after_its_file_is_rewritten(folder: Path) -> None:
    server = ServerProcess(folder / "restarted")
    with server.serving():
        client = connect(server.url)
        queue = Queue(client, scripts=moved_clock(read_scripts()))
        bench = Bench(queue)
        job = bench.submit(2)
        session = bench.session()
        [lease] = bench.lease(session, limit=1)
        queue.tick()
        longer = bench.session()
        queue.heartbeat(longer, 1, {}, {}, 100_000)
        server.kill()
        server.start()
        server.ready()
        assert client.info("persistence")["aof_rewrites"] == 0
        bench.advance(3600)
        queue.tick()
        assert queue.held(session) == [lease], (
            "no worker could send a heartbeat, so nothing is given up yet"
        )
        assert bench.complete(session, lease) == "committed"
        bench.submit(1)
        assert client.info("persistence")["aof_rewrites"] == 1
        bench.submit(1)
        assert client.info("persistence")["aof_rewrites"] == 1, "once a start"
        bench.advance(31)
        queue.tick()
        assert [s.session for s in queue.sessions()] == [longer], "after one lease of grace"
        bench.advance(70)
        queue.tick()
        assert queue.sessions() == [], "after one of its own"
        assert queue.status(job, "ann").tasks.done == 1
        assert queue.check(repair=False) == []


def test_each_refusal_of_redis_is_named(folder: Path) -> None:
    with ServerProcess(folder / "refusing").serving() as server:
        client = connect(server.url)
        bench = Bench(Queue(client))
        bench.submit(1)

        def error() -> FarmError:
            with pytest.raises(Unavailable) as caught:
                bench.submit(1)
            return caught.value

        client.replicaof("127.0.0.1", 1)
        assert "read-only replica" in error().message
        client.replicaof("NO", "ONE")
        client.script_flush()
        bench.submit(1)
        client.acl_setuser("default", enabled=True, nopass=True, keys=["*"], commands=["-evalsha"])
        assert "may not do this" in error().message
        server.kill()
        gone = error()
        assert "does not answer" in gone.message
        assert gone.retryable


def test_a_dead_worker_s_lease_ends_however_often_the_server_is_restarted(
    bench: Bench, queue: Queue
) -> None:
    """Each restart gives every session one more lease, of its own length."""
    session = bench.session()
    job = bench.submit(1)
    assert bench.lease(session)
    queue.heartbeat(session, 0, {}, {}, 10_000)
    for number in range(5):
        bench.advance(4)
        queue.client.hset("{farm}:server", "run_id", f"run {number}")
        queue.tick()
        assert [one.session for one in queue.sessions()] == [session]
    bench.advance(11)
    queue.tick()
    assert queue.sessions() == []
    assert queue.status(job, "ann").tasks.leased == 0
