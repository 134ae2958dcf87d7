"""What the storm submits: job ``n`` follows from its number alone, so that the checker knows it."""

from random import Random
from typing import Any, NamedTuple

FAILS = "a row that fails"  # FARM_FAULTS makes its logits not finite
CRASHES = "a row that crashes"  # FARM_FAULTS makes it end its worker by SIGSEGV
FAULTS = f"nan:{FAILS},segfault:{CRASHES}"


class PlannedJob(NamedTuple):
    prompts: list[str]
    parameters: dict[str, Any]  # of the submission
    inputs: tuple[str, ...] = ()  # "image", "mask_image"
    bad: int | None = None  # the render that is to fail

    @property
    def pictures(self) -> int:
        return len(self.prompts) * int(self.parameters.get("num_images", 1))


def planned_job(number: int, jobs: int) -> PlannedJob:
    """Job ``number`` of a storm of so many."""
    random = Random(number)
    key = {"idempotency_key": f"storm-{number}", "seed": number}
    if number % max(jobs // 40, 20) == 10:
        return _planted(number, random, FAILS, key)
    if number % max(jobs // 4, 50) == 25:
        return _planted(number, random, CRASHES, key)
    mode = random.choices(["text2img", "img2img", "inpaint"], [8, 1, 1])[0]
    return PlannedJob(
        [f"storm {number}"],
        {
            **key,
            "num_inference_steps": random.randint(2, 3),
            "guidance_scale": random.choice([0.0, 5.0]),
            "num_images": random.choices([1, 2], [9, 1])[0],
            "priority": random.choices(["urgent", "normal", "bulk"], [1, 16, 3])[0],
        },
        {"text2img": (), "img2img": ("image",), "inpaint": ("image", "mask_image")}[mode],
    )


def _planted(number: int, random: Random, words: str, key: dict[str, Any]) -> PlannedJob:
    bad = random.randrange(5)
    prompts = [f"storm {number} {words if at == bad else 'beside it'} {at}" for at in range(5)]
    return PlannedJob(prompts, {**key, "num_inference_steps": 2, "max_failed": 1}, bad=bad)
