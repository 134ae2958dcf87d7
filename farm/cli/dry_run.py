"""``farm submit --dry-run``: what a submission would come to."""

from farm.cli.output import counted, list_rejected, pictures, say, say_error, say_json
from farm.errors import InvalidInput
from farm_client.models import Estimate


def tell_estimate(estimate: Estimate, source: str, *, as_json: bool, strict: bool) -> int:
    """Print it; the exit code."""
    if estimate.rejected:
        list_rejected(estimate.rejected, source)
        say_error(f"{estimate.rejected_count:,} renders would be refused")
    if as_json:
        say_json(estimate.facts())
    else:
        for line in _lines(estimate):
            say(line)
    refused = estimate.rejected_count and (strict or not estimate.renders)
    return InvalidInput.exit_code if refused else 0


def _lines(estimate: Estimate) -> list[str]:
    renders = counted(estimate.renders, "render")
    lines = [f"{renders}, {pictures(estimate.pictures)}; nothing was submitted"]
    for name, lane in estimate.lanes.items():
        lines.append(
            f"lane {name}: {pictures(lane.pictures)}, {lane.row_steps:,} row-steps, "
            f"{counted(lane.tasks, 'task')}"
        )
    lines.append(f"tasks: {estimate.tasks:,}; sinks that make shards write one for each")
    lines.append(f"bytes: about {_size(estimate.bytes)}")
    lines.append(f"time: {_time(estimate)}")
    return lines


def _size(size: float) -> str:
    units = ["bytes", "kB", "MB", "GB", "TB"]
    while size >= 1000 and len(units) > 1:
        size /= 1000
        units.pop(0)
    return f"{size:,.0f} {units[0]}"


def _time(estimate: Estimate) -> str:
    if not estimate.workers:
        return "not known; there are no workers"
    if (seconds := estimate.seconds) is None:
        return "not known yet; the workers have not measured every lane"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    told = f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
    workers = "the only worker" if estimate.workers == 1 else f"{estimate.workers:,} workers"
    return f"about {told}, if {workers} did nothing else"
