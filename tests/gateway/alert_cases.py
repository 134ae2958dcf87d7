"""For each alert a farm in which it fires, and one, as near to it as may be, in which it does not.

Series are written as promtool takes them, one value a minute: ``"0+2x9"`` goes from 0 to 18.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

TILL = 60  # minutes that each farm is watched
FIRES_AT = 58

Series = Mapping[str, str]


class Case(NamedTuple):
    alert: str
    fires: Series
    summary: str  # of the alert that fires
    quiet: Series
    labels: Mapping[str, str] = {}


def always(value: float) -> str:
    return f"{value}x{TILL}"


def rising(by: float) -> str:
    return f"0+{by}x{TILL}"


def twice(series: str, values: str) -> dict[str, str]:
    """As two gateways show the same figure."""
    name, _, labels = series.partition("{")
    rest = f", {labels}" if labels else "}"
    return {f'{name}{{instance="{one}"{rest}': values for one in ("a:8400", "b:8400")}


CASES = (
    Case(
        "FarmGatewayDown",
        {
            'up{job="farm", instance="a:8400"}': "1 0x60",
            'up{job="farm", instance="b:8400"}': "1x60",
        },
        "The gateway a:8400 does not answer",
        {'up{job="farm", instance="a:8400"}': "1 0" + " 1" * 59, 'up{job="ray"}': always(0)},
        {"job": "farm", "instance": "a:8400"},
    ),
    Case(
        "FarmQueueDown",
        twice("farm_queue_up", always(0)),
        "The queue's server does not answer",
        {'farm_queue_up{instance="a:8400"}': always(0), 'farm_queue_up{instance="b:8400"}': "1x60"},
    ),
    Case(
        "FarmNoWorkers",
        {**twice("farm_workers", always(0)), **twice("farm_queued_tasks", always(3))},
        "Work is queued, and no worker is connected",
        {"farm_workers": always(0), "farm_queued_tasks": always(0)},
    ),
    Case(
        "FarmWorkersMissing",
        {
            **twice('farm_placed_workers{state="pending", reason="no_node"}', always(2)),
            **twice(
                'farm_placed_workers{state="wanted", reason="cannot_run"}', " ".join(["1 0"] * 30)
            ),
            **twice('farm_placed_workers{state="running", reason=""}', always(9)),
        },
        "3 of the workers that there should be do not run",
        {
            'farm_placed_workers{state="starting", reason="loading"}': "1x8 0x52",
            'farm_placed_workers{state="running", reason=""}': always(9),
            'farm_placed_workers{state="draining", reason="fewer_wanted"}': always(1),
        },
    ),
    Case(
        "FarmWorkerSilent",
        {
            **twice('farm_worker_silent_seconds{worker="worker-1"}', "0x57 7 _ _"),
            **twice('farm_worker_silent_seconds{worker="worker-0"}', always(0.4)),
        },
        "worker-1 has sent no heartbeat for 7s",
        {'farm_worker_silent_seconds{worker="worker-0"}': always(3.5)},
        {"worker": "worker-1"},
    ),
    Case(
        "FarmUrgentWorkWaits",
        twice('farm_queue_oldest_seconds{priority="urgent"}', always(90)),
        "Somebody has waited for 1m 30s at a screen",
        {
            'farm_queue_oldest_seconds{priority="urgent"}': always(50),
            'farm_queue_oldest_seconds{priority="bulk"}': always(9000),
        },
    ),
    Case(
        "FarmWorkWaits",
        twice('farm_queue_oldest_seconds{priority="normal"}', always(7200)),
        "The oldest job of normal priority is 2h 0m 0s old",
        {
            'farm_queue_oldest_seconds{priority="normal"}': always(3000),
            'farm_queue_oldest_seconds{priority="bulk"}': always(90_000),
        },
    ),
    Case(
        "FarmNothingStarts",
        {
            "farm_queued_tasks": always(5),
            **twice('farm_worker_room{worker="worker-0"}', always(8)),
            "farm_leases_total": always(100),
        },
        "Work is queued and workers have room, but nothing is granted",
        {
            "farm_queued_tasks": always(5),
            'farm_worker_room{worker="worker-0"}': always(8),
            "farm_leases_total": rising(1),
        },
    ),
    Case(
        "FarmPicturesFail",
        twice('farm_failures_total{reason="crash"}', rising(10)),  # none has ever been made
        "100% of the pictures fail",
        {
            **twice('farm_failures_total{reason="row"}', rising(4)),
            **twice('farm_tenant_pictures_total{tenant="ann"}', rising(48)),
            **twice('farm_tenant_pictures_total{tenant="bob"}', rising(48)),
        },
    ),
    Case(
        "FarmWorkersCrash",
        twice('farm_sessions_ended_total{reason="crash"}', rising(0.5)),
        "Workers have crashed 5 times in ten minutes",
        {
            **twice('farm_sessions_ended_total{reason="crash"}', rising(0.2)),
            **twice('farm_sessions_ended_total{reason="drain"}', rising(9)),
        },
    ),
    Case(
        "FarmLeasesLost",
        twice("farm_leases_lost_total", rising(3)),
        "30 tasks were lost with their workers in ten minutes",
        twice("farm_leases_lost_total", rising(1.5)),
    ),
    Case(
        "FarmStoreFallsBehind",
        twice('farm_worker_pending_bytes{worker="worker-1"}', always(450 * 2**20)),
        "worker-1 has 450MiB that wait to be stored",
        {
            'farm_worker_pending_bytes{worker="worker-0"}': always(300 * 2**20),
            'farm_worker_pending_bytes{worker="worker-1"}': always(300 * 2**20),
        },
        {"worker": "worker-1"},
    ),
    Case(
        "FarmGpuMemoryShort",
        {
            **twice('farm_worker_gpu_memory_bytes{worker="worker-1", kind="reserved"}', always(78)),
            **twice('farm_worker_gpu_memory_bytes{worker="worker-1", kind="total"}', always(80)),
        },
        "worker-1 uses 97.5% of its GPU's memory",
        {
            'farm_worker_gpu_memory_bytes{worker="worker-1", kind="reserved"}': always(70),
            'farm_worker_gpu_memory_bytes{worker="worker-1", kind="used"}': always(79),
            'farm_worker_gpu_memory_bytes{worker="worker-1", kind="total"}': always(80),
        },
        {"worker": "worker-1"},
    ),
    Case(
        "FarmRequestsFail",
        {
            'farm_requests_total{instance="a:8400", status="503"}': rising(60),
            'farm_requests_total{instance="a:8400", status="200"}': rising(240),
            'farm_requests_total{instance="b:8400", status="200"}': rising(300),
        },
        "10% of the requests end with an error of the farm",
        {
            'farm_requests_total{instance="a:8400", status="503"}': rising(12),
            'farm_requests_total{instance="a:8400", status="404"}': rising(600),
            'farm_requests_total{instance="a:8400", status="200"}': rising(240),
        },
    ),
)


def promtool_tests(rules: Mapping[str, Mapping[str, Any]], file: str) -> dict[str, Any]:
    """What ``promtool test rules`` reads.

    Args:
        rules: by the names of their alerts.
        file: where the rules are.
    """
    tests = []
    for case in CASES:
        rule = rules[case.alert]
        told = {
            "exp_labels": {**rule["labels"], **case.labels},
            "exp_annotations": {**rule["annotations"], "summary": case.summary},
        }
        for series, expected, minutes in (
            (case.fires, [told], [FIRES_AT]), (case.quiet, [], range(TILL)),
        ):  # fmt: skip
            tests.append(
                {
                    "name": f"{case.alert}, {'fires' if expected else 'quiet'}",
                    "interval": "1m",
                    "input_series": [
                        {"series": one, "values": values} for one, values in series.items()
                    ],
                    "alert_rule_test": [
                        {"alertname": case.alert, "eval_time": f"{at}m", "exp_alerts": expected}
                        for at in minutes
                    ],
                }
            )
    return {"rule_files": [file], "evaluation_interval": "1m", "tests": tests}
