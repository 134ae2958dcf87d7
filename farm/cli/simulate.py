"""``farm simulate``: what a large farm would do, on a virtual clock."""

import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from farm.cli.arguments import AsJson
from farm.cli.output import say, say_error, say_json


def simulate(
    gpus: Annotated[int, typer.Option(min=1, max=20_000, help="Workers, one GPU each.")] = 1000,
    pictures: Annotated[
        int, typer.Option(min=1, max=10**9, help="Of data sets, in mixed lanes, by 20 tenants.")
    ] = 10_000_000,
    steps: Annotated[int, typer.Option(min=1, max=1000, help="Of each picture.")] = 12,
    urgent_per_second: Annotated[
        float, typer.Option(min=0, max=10_000, help="Single pictures that somebody waits for.")
    ] = 50.0,
    min_gpus: Annotated[
        int | None,
        typer.Option(min=0, help="Fewest; the farm then grows and shrinks with its backlog."),
    ] = None,
    spread_seconds: Annotated[
        float, typer.Option(min=0, help="In which the data sets come; by default at the start.")
    ] = 0.0,
    machine_gpus: Annotated[int, typer.Option(min=1, max=64, help="GPUs of a machine.")] = 8,
    lost_per_hour: Annotated[
        float, typer.Option(min=0, max=10, help="Share of the machines, without a notice.")
    ] = 0.05,
    crashes_per_hour: Annotated[
        float, typer.Option(min=0, max=10, help="Share of the workers.")
    ] = 0.01,
    pass_seconds: Annotated[
        float, typer.Option(min=0.001, max=10, help="That the scheduler takes for one look.")
    ] = 0.05,
    times: Annotated[
        Path | None,
        typer.Option(help="Measured seconds by size, as JSON; default: one H200.", metavar="FILE"),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of failures and people.")] = 1,
    as_json: AsJson = False,
) -> None:
    """Simulate a large farm: the real scheduler, planner and queue on a virtual clock."""
    from farm.errors import InvalidInput
    from farm.local.valkey import ServerProcess
    from farm.queue import connect
    from farm.simulation.fleet import Fleet
    from farm.simulation.service import H200, read_services
    from farm.simulation.simulation import Plan, Simulation
    from farm.simulation.workload import Workload

    if min_gpus is not None and min_gpus > gpus:
        raise InvalidInput(f"{min_gpus:,} are more than {gpus:,}", field="--min-gpus")
    services = read_services(times) if times is not None else H200
    plan = Plan(
        fleet=Fleet(gpus, machine_gpus, lost_per_hour, crashes_per_hour, min_gpus),
        services=services,
        work=Workload.mixed(
            pictures,
            services,
            steps=steps,
            urgent_per_second=urgent_per_second,
            spread_seconds=spread_seconds,
        ),
        pass_seconds=pass_seconds,
        seed=seed,
    )
    say_error(f"simulating {gpus:,} GPUs and {pictures:,} pictures; Valkey runs for real")
    with (
        tempfile.TemporaryDirectory(prefix="farm-simulate-") as folder,
        # Nothing here must survive, so the disk does not slow it down.
        ServerProcess(Path(folder), fsync="no").serving() as server,
    ):
        facts = Simulation(connect(server.url), plan).run().facts()
    if as_json:
        say_json(facts)
    else:
        for line in _lines(facts):
            say(line)


def _lines(facts: dict[str, Any]) -> list[str]:
    started, stored = facts["urgent_started_seconds"], facts["urgent_stored_seconds"]
    here = facts["scheduler_pass_seconds_here"]
    lines = [
        f"{facts['pictures']:,} pictures on {facts['gpus']:,} GPUs in {facts['seconds']:,.0f} s: "
        f"{facts['pictures_per_second']:,.0f} pictures/s",
        f"busy: {facts['busy_share']:.1%} of the GPUs while there was work for all, "
        f"{facts['busy_share_to_the_end']:.1%} to the last picture; {facts['gpus_most']:,} GPUs at "
        f"most, {facts['gpu_hours']:,.1f} GPU-hours",
        f"lost: {facts['machines_lost']} machines, {facts['crashes']} crashes; "
        f"{facts['rendered_again_share']:.2%} of the pictures rendered again",
    ]
    if stored:
        lines.append(
            f"urgent: {facts['urgent']:,} pictures; started after p50 {started['p50']:.2f} s, "
            f"p99 {started['p99']:.2f} s; stored after p50 {stored['p50']:.2f} s, "
            f"p99 {stored['p99']:.2f} s"
        )
    calls = facts["server_calls_per_second"]
    busiest = ", ".join(
        f"{name} {calls[name]:,.0f}" for name in sorted(calls, key=calls.__getitem__)[:-5:-1]
    )
    lines += [
        f"queue: {facts['leases_per_second']:,.0f} leases/s; calls/s: {busiest}",
        f"Valkey: {facts['server_load']:.0%} of this machine's core; at 70 % one server has "
        f"{facts['gpus_of_one_server']:,} GPUs, so "
        + ", ".join(f"{int(gpus):,} GPUs need {n} cells" for gpus, n in facts["cells"].items()),
    ]
    if here:
        lines.append(
            f"scheduler: a pass took p50 {here['p50'] * 1000:.0f} ms, p99 "
            f"{here['p99'] * 1000:.0f} ms here, beside everything else"
        )
    return lines
