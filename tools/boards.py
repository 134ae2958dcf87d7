"""Writes the Grafana boards.

``infra/grafana/farm.json`` is for a Prometheus that scrapes a gateway, and
``farm/local/grafana/farm.json`` for the one beside Ray's dashboard, which sees Ray's metrics only.

The second has the panels about workers. Ray puts ``ray_`` before their names, and knows neither
counters' endings nor histograms: a worker tells a histogram's sum and count.
"""

import json
import re
import sys
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
BOARD = ROOT / "infra" / "grafana" / "farm.json"
RAY_BOARD = ROOT / "farm" / "local" / "grafana" / "farm.json"
WIDTH, HEIGHT, COLUMNS = 8, 7, 24


class Panel(NamedTuple):
    title: str
    unit: str  # Grafana's name of it
    expression: str
    legend: str
    about: str = ""


# Several gateways show the same figures: the largest of each series counts, not their sum.
def once(series: str) -> str:
    return f"max without (instance, job) ({series})"


def rate(counter: str, by: str) -> str:
    return f"sum by ({by}) ({once(f'rate({counter}[1m])')})"


def mean(histogram: str, by: str) -> str:
    return f"{rate(f'{histogram}_sum', by)} / {rate(f'{histogram}_count', by)}"


def quantile(share: float, histogram: str, by: str) -> str:
    return f"histogram_quantile({share}, {rate(f'{histogram}_bucket', f'le, {by}')})"


MISSING = 'farm_placed_workers{state=~"wanted|pending|starting"}'

WORKER_PANELS = (
    Panel(
        "Pictures per second, by lane",
        "ops",
        rate('farm_worker_pictures_total{outcome="done"}', "lane"),
        "{{lane}}",
        "A lane is a checkpoint, a mode and a size.",
    ),
    Panel(
        "Pictures per second, by worker",
        "ops",
        rate('farm_worker_pictures_total{outcome="done"}', "worker"),
        "{{worker}}",
    ),
    Panel(
        "Row-steps per second of engine time, by lane",
        "ops",
        f"{rate('farm_worker_row_steps_total', 'lane')}"
        f" / {rate('farm_worker_engine_seconds_total', 'lane')}",
        "{{lane}}",
        "How fast an engine is at this kind of work, however much there is of it.",
    ),
    Panel(
        "Engine busy",
        "percentunit",
        rate("farm_worker_engine_seconds_total", "worker"),
        "{{worker}}",
        "1 is an engine that never waits.",
    ),
    Panel(
        "Slots busy over slots computed",
        "percentunit",
        f"{rate('farm_worker_slots_busy_total', 'worker')}"
        f" / {rate('farm_worker_slots_computed_total', 'worker')}",
        "{{worker}}",
        "What is computed for nothing is missing to 1.",
    ),
    Panel(
        "Render time, mean",
        "s",
        mean("farm_worker_render_seconds", "worker"),
        "{{worker}}",
    ),
    Panel(
        "Encode and upload, mean",
        "s",
        f"{mean('farm_worker_encode_seconds', 'worker')}"
        f" + {mean('farm_worker_upload_seconds', 'worker')}",
        "{{worker}}",
    ),
    Panel("Bytes that wait to be stored", "bytes", once("farm_worker_pending_bytes"), "{{worker}}"),
    Panel(
        "Engine seconds per second, by tenant",
        "percentunit",
        rate("farm_worker_tenant_seconds_total", "tenant"),
        "{{tenant}}",
        "What a tenant costs: 1 is one engine for all of the time.",
    ),
    Panel(
        "Inputs found in memory",
        "percentunit",
        rate('farm_worker_cache_total{outcome="hit"}', "cache")
        + f" / {rate('farm_worker_cache_total', 'cache')}",
        "{{cache}}",
    ),
    Panel(
        "GPU memory",
        "bytes",
        once("farm_worker_gpu_memory_bytes"),
        "{{worker}} {{kind}}",
        "Empty where workers run on a CPU.",
    ),
)

FARM_PANELS = (
    Panel("Workers", "short", once("farm_workers"), "connected"),
    Panel(
        "Workers on a cluster, by state",
        "short",
        f"sum by (state) ({once('farm_placed_workers')})",
        "{{state}}",
        "Wanted: it could not start. Pending: the cluster has no room for it.",
    ),
    Panel(
        "Workers that do not run, by reason",
        "short",
        f"sum by (reason) ({once(MISSING)})",
        "{{reason}}",
        "Starting ones are among them; farm workers ls says more of each.",
    ),
    Panel(
        "Pictures queued",
        "short",
        f"sum by (priority) ({once('farm_queued_pictures')})",
        "{{priority}}",
    ),
    Panel(
        "Pictures queued, by lane",
        "short",
        f"topk(10, sum by (lane) ({once('farm_queued_pictures')}))",
        "{{lane}}",
    ),
    Panel(
        "Age of the oldest ready job",
        "s",
        once("farm_queue_oldest_seconds"),
        "{{priority}}",
    ),
    Panel(
        "Wait of nine jobs in ten, from submission to start",
        "s",
        quantile(0.9, "farm_queue_wait_seconds", "priority"),
        "{{priority}}",
    ),
    Panel(
        "Render time of nine rows in ten",
        "s",
        quantile(0.9, "farm_worker_render_seconds", "worker"),
        "{{worker}}",
    ),
    Panel(
        "Pictures that failed, per second",
        "ops",
        rate("farm_failures_total", "reason"),
        "{{reason}}",
    ),
    Panel(
        "Leases that came back, per second",
        "ops",
        rate("farm_leases_returned_total", "reason"),
        "{{reason}}",
        "Their tasks are tried again, those that failed for their rows excepted.",
    ),
    Panel(
        "Leases lost, per second", "ops", f"sum({once('rate(farm_leases_lost_total[1m])')})", "lost"
    ),
    Panel(
        "Workers that ended, per second",
        "ops",
        rate("farm_sessions_ended_total", "reason"),
        "{{reason}}",
    ),
    Panel(
        "Row-steps per second, by tenant",
        "ops",
        rate("farm_tenant_row_steps_total", "tenant"),
        "{{tenant}}",
    ),
    Panel(
        "Requests per second",
        "reqps",
        "sum by (route) (rate(farm_requests_total[1m]))",
        "{{route}}",
    ),
    Panel(
        "Answer time of 95 requests in 100",
        "s",
        "histogram_quantile(0.95, sum by (le) (rate(farm_request_seconds_bucket[1m])))",
        "95 %",
    ),
    Panel(
        "Pictures asked for, per second", "ops", "sum(rate(farm_pictures_total[1m]))", "pictures"
    ),
)


def main() -> None:
    for path, text in boards().items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def boards() -> dict[Path, str]:
    """The files and what is in them."""
    ray = [panel._replace(expression=as_ray_says(panel.expression)) for panel in WORKER_PANELS]
    return {
        BOARD: board("farm", [*FARM_PANELS, *WORKER_PANELS]),
        RAY_BOARD: board("farm-workers", ray),
    }


def as_ray_says(expression: str) -> str:
    """The same about the numbers that workers hand to Ray."""
    return re.sub(r"farm_worker_(\w+?)(_total)?\b", r"ray_farm_worker_\1", expression)


def board(uid: str, panels: list[Panel]) -> str:
    document = {
        "uid": uid,
        "title": "amused-farm",
        "tags": ["amused-farm"],
        "timezone": "browser",
        "refresh": "5s",
        "time": {"from": "now-15m", "to": "now"},
        "schemaVersion": 38,
        "templating": {
            "list": [
                {"name": "datasource", "type": "datasource", "query": "prometheus", "current": {}}
            ]
        },
        "panels": [drawn(number, panel) for number, panel in enumerate(panels)],
    }
    return json.dumps(document, indent=2) + "\n"


def drawn(number: int, panel: Panel) -> dict[str, Any]:
    row, column = divmod(number, COLUMNS // WIDTH)
    source = {"type": "prometheus", "uid": "${datasource}"}
    return {
        "id": number + 1,
        "type": "timeseries",
        "title": panel.title,
        "description": panel.about,
        "datasource": source,
        "gridPos": {"x": column * WIDTH, "y": row * HEIGHT, "w": WIDTH, "h": HEIGHT},
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
        "targets": [
            {
                "refId": "A",
                "datasource": source,
                "expr": panel.expression,
                "legendFormat": panel.legend,
            }
        ],
    }


if __name__ == "__main__":
    sys.exit(main())
