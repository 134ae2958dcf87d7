"""The page in a real browser: submits, paints, watches, retries, by mouse and by keyboard."""

import io
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from fake_adapters import adapter_file
from fake_engine import FakeDone, FakeEngine
from fake_worker import BAD_PROMPT, LOST_PROMPT, FakeWorker
from harness import INFO, Gateway, Serve, png, post, write_keys
from PIL import Image
from playwright.sync_api import Browser, Page, Request, Route, expect, sync_playwright

from farm.gateway.answers import Images
from farm.gateway.routes import page as page_routes
from farm.job import Chunk
from farm.store import keys
from workers import Workers

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
expect.set_options(timeout=60_000)  # milliseconds; five seconds are few on a machine that is busy

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed: apt install chromium"),
    pytest.mark.xdist_group("browser"),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM,
            args=["--no-sandbox"],
            ignore_default_args=["--disable-back-forward-cache"],  # which people have
        )
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser, gateway: Gateway) -> Iterator[Page]:
    """A tab that may neither complain nor ask another machine for anything."""
    context = browser.new_context(base_url=gateway.url)
    page = context.new_page()
    complaints: list[str] = []
    outside: list[str] = []

    def note(request: Request) -> None:
        if not request.url.startswith((gateway.url, "blob:", "data:")):
            outside.append(request.url)

    page.on("console", lambda told: complaints.append(told.text) if told.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", note)
    yield page
    context.close()
    assert outside == []
    assert complaints == []


def test_a_text_becomes_a_picture(page: Page, fake_worker: FakeWorker) -> None:
    page.goto("/new")
    page.get_by_label("Prompt", exact=True).fill("a red <b>circle</b> & more")
    page.get_by_role("button", name="Draw").click()
    page.wait_for_url("**/jobs/j*")
    expect(page.locator(".state").first).to_have_text("done")
    picture = page.get_by_role("button", name="a red <b>circle</b> & more")
    picture.press("Enter")
    expect(page.get_by_role("dialog", name="Picture")).to_contain_text("seed: ")
    page.keyboard.press("Escape")
    expect(picture).to_be_focused()


def test_a_prompt_runs_in_the_direction_of_its_script(page: Page, fake_worker: FakeWorker) -> None:
    page.goto("/new")
    for label in ("Prompt", "Negative prompt"):
        page.get_by_label(label, exact=True).fill("עיגול אדום!")
    page.get_by_role("button", name="Draw").click()
    page.wait_for_url("**/jobs/j*")
    page.get_by_role("button", name="עיגול אדום!").press("Enter")
    for element in ("main .prompt", "#zoom figcaption"):
        expect(page.locator(element)).to_have_css("direction", "rtl")
    expect(page.locator("#zoom figcaption p")).to_have_css("direction", "ltr")


def test_a_mask_is_painted_by_mouse_and_by_keyboard(
    page: Page, fake_worker: FakeWorker, gateway: Gateway
) -> None:
    masks = []
    for by_mouse in (True, False):
        page.goto("/new")
        page.get_by_label("Inpainting").check()
        page.get_by_label("Prompt", exact=True).fill("a hat")
        page.get_by_label("Image", exact=True).set_input_files(
            {"name": "photo.png", "mimeType": "image/png", "buffer": png(64, 64, colour=(9, 99, 9))}
        )
        canvas = page.locator("#mask")
        expect(canvas).to_be_visible()
        canvas.scroll_into_view_if_needed()
        if by_mouse:
            box = canvas.bounding_box()
            assert box is not None
            page.mouse.move(box["x"] + box["width"] / 4, box["y"] + box["height"] / 4)
            page.mouse.down()
            page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 4, steps=5)
            page.mouse.up()
        else:
            canvas.press("ArrowLeft")
            canvas.press(" ")
        page.get_by_role("button", name="Draw").click()
        page.wait_for_url("**/jobs/j*")
        expect(page.locator(".state").first).to_have_text("done")
        job = gateway.queue.jobs("local")[0].id
        chunk = Chunk.model_validate_json(gateway.store.get(keys.chunk(job, 0)))
        spec = chunk.renders[0].spec
        assert spec.mode == "inpaint"
        assert spec.mask_image is not None
        body = gateway.store.get(keys.asset("local", spec.mask_image))
        masks.append(np.asarray(Image.open(io.BytesIO(body)).convert("L")))
    mouse, keyboard = masks
    assert mouse.shape == keyboard.shape == (64, 64)
    assert mouse[16, 24] == 255
    assert mouse[60, 60] == 0
    assert keyboard[32, 30] == 255
    assert keyboard[2, 2] == 0


def test_a_farm_that_is_away_is_told_to_who_submits(browser: Browser, gateway: Gateway) -> None:
    context = browser.new_context(base_url=gateway.url)
    page = context.new_page()
    page.goto("/new")
    page.get_by_label("Prompt", exact=True).fill("a boat")
    page.route("**/v1/jobs", lambda route: route.abort("connectionrefused"))
    page.get_by_role("button", name="Draw").click()
    expect(page.get_by_role("alert")).to_contain_text("The farm does not answer. Try again")
    page.unroute("**/v1/jobs")
    page.get_by_role("button", name="Draw").click()
    page.wait_for_url("**/jobs/j*")
    context.close()


def test_what_is_sent_again_because_its_answer_was_lost_is_drawn_once(
    browser: Browser, gateway: Gateway
) -> None:
    context = browser.new_context(base_url=gateway.url)
    page = context.new_page()
    page.goto("/new")
    page.get_by_label("Prompt", exact=True).fill("a boat")

    def lose_the_answer(route: Route) -> None:
        assert route.fetch().status == 201
        route.abort("connectionreset")

    page.route("**/v1/jobs", lose_the_answer, times=1)
    page.get_by_role("button", name="Draw").click()
    expect(page.get_by_role("alert")).to_contain_text("The farm does not answer. Try again")
    page.get_by_role("button", name="Draw").click()
    page.wait_for_url("**/jobs/j*")
    (job,) = gateway.queue.jobs("local")
    assert page.url.endswith(job.id)
    context.close()


def test_who_comes_back_to_the_form_draws_another(page: Page, gateway: Gateway) -> None:
    page.goto("/new")
    page.get_by_label("Prompt", exact=True).fill("a boat")
    for jobs in (1, 2):
        page.get_by_role("button", name="Draw").click()
        page.wait_for_url("**/jobs/j*")
        assert len(gateway.queue.jobs("local")) == jobs
        page.evaluate("void history.back()")
        page.wait_for_url("**/new", wait_until="commit")  # it is there as it was left
        expect(page.get_by_label("Prompt", exact=True)).to_have_value("a boat")
        expect(page.get_by_role("button", name="Draw")).to_be_enabled()


def test_a_farm_that_hangs_is_told(browser: Browser, gateway: Gateway) -> None:
    context = browser.new_context(base_url=gateway.url)
    page = context.new_page()
    page.clock.install()
    page.goto("/new")
    page.get_by_label("Prompt", exact=True).fill("a boat")
    page.route("**/v1/jobs", lambda route: None)
    page.get_by_role("button", name="Draw").click()
    page.clock.run_for(10_000)
    expect(page.locator("#said")).to_contain_text("takes long to answer")
    page.goto("/")
    expect(page.locator("h1")).to_have_text("Jobs")
    page.route("**/page", lambda route: None)
    page.clock.run_for(12_000)
    expect(page.get_by_role("alert")).to_contain_text("takes long to answer")
    page.unroute("**/page")
    page.clock.run_for(60_000)
    expect(page.get_by_role("alert")).to_be_hidden()
    context.close()


def test_an_image_becomes_another_and_a_mistake_is_explained(
    page: Page, fake_worker: FakeWorker
) -> None:
    page.goto("/new")
    page.get_by_label("Image to image").check()
    page.get_by_label("Prompt", exact=True).fill("a boat")
    page.get_by_role("button", name="Draw").click()
    expect(page.get_by_role("alert")).to_have_text("Choose an image.")
    page.get_by_label("Image", exact=True).set_input_files(
        {"name": "photo.png", "mimeType": "image/png", "buffer": png(64, 64)}
    )
    page.get_by_role("button", name="Draw").click()
    page.wait_for_url("**/jobs/j*")
    expect(page.locator(".state").first).to_have_text("done")


def test_adapters_are_chosen_by_their_scale(
    page: Page, gateway: Gateway, http: httpx2.Client
) -> None:
    for name, content in (("dots", 0), ("lines", 1)):
        http.put(f"/v1/adapters/{name}", content=adapter_file(content)).raise_for_status()
    page.goto("/new")
    page.get_by_label("Prompt", exact=True).fill("a star")
    page.get_by_text("Adapters").click()
    page.get_by_label("dots").fill("0.5")
    page.get_by_role("button", name="Draw").click()
    page.wait_for_url("**/jobs/j*")
    job = gateway.queue.jobs("local")[0].id
    chunk = Chunk.model_validate_json(gateway.store.get(keys.chunk(job, 0)))
    (adapter,) = chunk.renders[0].spec.adapters
    assert adapter.scale == 0.5


def test_a_failure_is_seen_and_tried_again(
    page: Page, fake_worker: FakeWorker, http: httpx2.Client
) -> None:
    job = post(http, {"prompt": LOST_PROMPT}, {"prompt": LOST_PROMPT}).json()["id"]
    page.goto(f"/jobs/{job}")
    expect(page.locator("#failures")).to_contain_text("the picture cannot be drawn")
    fake_worker.healed = True
    page.get_by_role("button", name="Retry these").click()
    expect(page.locator("#pictures button.picture")).to_have_count(2)


def test_pictures_that_failed_by_themselves_are_tried_again(
    page: Page, fake_worker: FakeWorker, http: httpx2.Client
) -> None:
    job = post(http, {"prompt": BAD_PROMPT}, {"prompt": "a boat"}).json()["id"]
    page.goto(f"/jobs/{job}")
    expect(page.locator("#failures")).to_contain_text(BAD_PROMPT)
    fake_worker.healed = True
    page.get_by_role("button", name="Retry all that failed by themselves").click()
    expect(page.locator("#pictures button.picture")).to_have_count(2)


def test_progress_comes_without_asking(page: Page, gateway: Gateway, http: httpx2.Client) -> None:
    job = post(http, {"prompt": "a late picture"}).json()["id"]
    page.goto(f"/jobs/{job}")
    expect(page.locator("#progress")).to_contain_text("No worker is connected")
    worker = FakeWorker(gateway.queue, gateway.store, INFO)
    worker.start()
    try:
        expect(page.locator("#pictures button.picture")).to_have_count(1)
        expect(page.locator(".state").first).to_have_text("done")
    finally:
        worker.stop()


def test_pictures_are_seen_before_they_are_finished(
    page: Page, workers: Workers, http: httpx2.Client
) -> None:
    workers.start(engine=FakeEngine(step_seconds=0.05))
    slow = {"prompt": "a slow picture", "checkpoint": "fake", "num_inference_steps": 1000}
    job = post(http, slow).json()["id"]
    page.goto(f"/jobs/{job}")
    preview = page.locator("#previews img")
    expect(preview).to_be_visible()
    expect(preview).to_have_js_property("naturalWidth", 32)
    page.on("dialog", lambda asked: asked.accept())
    page.get_by_role("button", name="Cancel").click()
    expect(page.locator("#previews")).to_have_count(0)


def test_a_hidden_tab_asks_for_nothing(page: Page, gateway: Gateway) -> None:
    page.goto("/")
    expect(page.locator("h1")).to_have_text("Jobs")
    page.evaluate(
        "Object.defineProperty(document, 'hidden', {get: () => true, configurable: true})"
    )
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.wait_for_timeout(2500)
    assert asked == []
    with page.expect_request("**/page"):
        page.evaluate(
            "Object.defineProperty(document, 'hidden', {get: () => false, configurable: true})"
        )


def test_the_next_page_of_a_list_begins_at_its_top(page: Page, http: httpx2.Client) -> None:
    for number in range(60):
        post(http, {"prompt": "x"}, name=f"job {number}")
    page.goto("/")
    for newest in (34, 9):
        page.get_by_role("button", name="Older jobs").click()
        expect(page.get_by_role("link", name=f"job {newest}", exact=True)).to_be_in_viewport()
        expect(page.locator("h1")).to_be_in_viewport()


def test_a_key_is_asked_for_once(browser: Browser, serve: Serve, tmp_path: Path) -> None:
    keys_file = write_keys(tmp_path / "keys.json", {"secret": {"tenant": "alice"}})
    farm = serve(tmp_path, keys=keys_file, open=False)
    with farm.client("secret") as alice:
        post(alice, {"prompt": "a bicycle"}, name="bikes")
    context = browser.new_context(base_url=farm.url)
    page = context.new_page()
    page.goto("/")
    page.get_by_label("API key").fill("secret")
    page.get_by_role("button", name="Continue").click()
    page.get_by_role("link", name="bikes").click()
    expect(page.locator("h1")).to_have_text("bikes")
    expect(page.get_by_role("dialog")).to_have_count(0)
    assert "secret" not in context.cookies().__repr__()
    context.close()


def test_a_key_that_is_refused_is_asked_for_again_with_the_reason(
    browser: Browser, serve: Serve, tmp_path: Path
) -> None:
    keys = {
        "secret": {"tenant": "alice"},
        "old": {"tenant": "alice", "expires": "2020-01-01T00:00:00Z"},
    }
    farm = serve(tmp_path, keys=write_keys(tmp_path / "keys.json", keys), open=False)
    context = browser.new_context(base_url=farm.url)
    page = context.new_page()
    page.goto("/")
    dialog = page.get_by_role("dialog")
    expect(dialog).not_to_contain_text("the API key")
    for key, told in (("wrong", "the API key is unknown"), ("old", "the API key expired on 2020")):
        page.get_by_label("API key").fill(key)
        page.get_by_role("button", name="Continue").click()
        expect(dialog).to_contain_text(told)
    page.get_by_label("API key").fill("sécret…")  # a header cannot carry it
    page.get_by_role("button", name="Continue").click()
    assert page.get_by_label("API key").evaluate("input => input.validity.patternMismatch")
    page.get_by_label("API key").fill(" secret ")
    page.get_by_role("button", name="Continue").click()
    expect(page.locator("h1")).to_have_text("Jobs")
    context.close()


def test_a_slow_script_misses_nothing(browser: Browser, serve: Serve, tmp_path: Path) -> None:
    keys_file = write_keys(tmp_path / "keys.json", {"secret": {"tenant": "alice"}})
    context = browser.new_context(base_url=serve(tmp_path, keys=keys_file, open=False).url)
    page = context.new_page()

    def slow(route: Route) -> None:
        page.wait_for_timeout(1000)
        route.continue_()

    page.route("**/page.js*", slow)
    page.goto("/")
    expect(page.get_by_role("dialog")).to_be_visible()
    context.close()


def test_a_page_that_did_not_come_is_asked_for_again(browser: Browser, gateway: Gateway) -> None:
    context = browser.new_context(base_url=gateway.url)
    page = context.new_page()
    page.route("**/page", lambda route: route.abort(), times=1)
    page.goto("/")
    expect(page.locator("h1")).to_have_text("Jobs")
    expect(page.get_by_role("alert")).to_be_hidden()
    context.close()


def test_a_job_that_is_not_there_is_not_waited_for(browser: Browser, gateway: Gateway) -> None:
    context = browser.new_context(base_url=gateway.url)
    page = context.new_page()
    page.goto("/jobs/j0-01m8etmcfb0s3bp8ewcgvwbd15")
    expect(page.get_by_role("alert")).to_contain_text("there is no job")
    expect(page.get_by_text("Loading")).to_have_count(0)
    context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_can_be_used_by_everybody(
    browser: Browser, gateway: Gateway, fake_worker: FakeWorker, http: httpx2.Client, scheme: str
) -> None:
    job = post(http, {"prompt": "a bicycle"}, {"prompt": BAD_PROMPT}, name="bikes").json()["id"]
    context = browser.new_context(
        base_url=gateway.url, color_scheme=scheme, viewport={"width": 390, "height": 844}
    )
    page = context.new_page()
    for path in ("/", f"/jobs/{job}", "/pictures", "/farm", "/tenants", "/new"):
        page.goto(path)
        expect(page.locator("h1")).to_be_visible()
        page.wait_for_load_state("networkidle")
        wide = page.evaluate("document.documentElement.scrollWidth")
        assert wide <= 390, f"{path} is {wide} pixels wide on a phone"
        found = [
            (one["id"], [node["html"] for node in one["nodes"]])
            for one in Axe().run(page).response["violations"]
            if one["impact"] in ("serious", "critical")
        ]
        assert found == [], path
    context.close()


class HaltingEngine(FakeEngine):
    """Draws three pictures and no more."""

    def step(self) -> list[FakeDone]:
        return super().step() if len(self.rendered) < 3 else []


def test_pictures_that_can_be_seen_a_moment_after_the_last_status_are_shown(
    page: Page, workers: Workers, http: httpx2.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = False
    images = page_routes.images

    def late(*given: Any) -> Images:
        told = images(*given)
        return told if seen else told.model_copy(update={"early": []})

    monkeypatch.setattr(page_routes, "images", late)
    workers.start(engine=HaltingEngine(rows=1))
    renders = ({"prompt": f"p {n}", "checkpoint": "fake"} for n in range(9))
    job = post(http, *renders).json()["id"]
    page.goto(f"/jobs/{job}")
    expect(page.locator("#progress rect.running")).to_be_attached(timeout=60_000)
    page.wait_for_timeout(1000)  # whatever that status has asked for
    seen = True
    expect(page.locator("#pictures img").first).to_be_visible(timeout=60_000)
