// What the page needs beside htmx: the key, the clock, messages, zoom, and the form with its mask.
"use strict";

const ROOT = document.body.dataset.root;
const REFRESH_MS = 2000;
const PREVIEW_MS = 600;
const SLOW_MS = 8000; // without an answer
const GIVE_UP_MS = 60_000;
const find = (selector, from = document) => from.querySelector(selector);
const findAll = (selector, from = document) => [...from.querySelectorAll(selector)];

// The key. It lives in this tab and goes out as a header, so no other site can use it.

const key = () => sessionStorage.getItem("farm-key");
const authorisation = () => (key() ? { Authorization: `Bearer ${key()}` } : {});

function askForKey(told) {
  const dialog = find("#key");
  if (dialog.open) return;
  const refused = find("#key-refused");
  refused.textContent = key() ? told : "";
  refused.hidden = !key();
  dialog.addEventListener("close", () => {
    sessionStorage.setItem("farm-key", find("input", dialog).value.trim());
    location.reload();
  }, { once: true });
  dialog.addEventListener("cancel", (event) => event.preventDefault());
  dialog.showModal();
}

document.addEventListener("htmx:config:request", (event) => {
  Object.assign(event.detail.ctx.request.headers, authorisation());
});

// Messages.

function tell(text) {
  const trouble = find("#trouble");
  trouble.textContent = text;
  trouble.hidden = !text;
}

function explain(body, status) {
  let error = {};
  try {
    const told = JSON.parse(body);
    error = told.errors?.[0]?.error ?? told.errors?.[0] ?? told.error ?? {};
  } catch {
    // an answer of something in between, such as a proxy
  }
  const text = [error.field, error.message].filter(Boolean).join(": ");
  return (text || `the farm answered ${status}`) + (error.hint ? ` (${error.hint})` : "");
}

document.addEventListener("htmx:response:error", (event) => {
  const { response, text } = event.detail.ctx;
  if (response.status === 401) askForKey(explain(text, 401));
  else tell(explain(text, response.status));
  if (response.status > 401 && response.status < 500) find("#loading")?.remove(); // it will not come
});
document.addEventListener("htmx:before:request", (event) => {
  const { ctx } = event.detail;
  setTimeout(() => {
    if (ctx.status === "issuing" && !ctx.response) tell("The farm takes long to answer …");
  }, SLOW_MS);
});
document.addEventListener("htmx:error", () => tell("The farm does not answer. Trying again …"));
document.addEventListener("htmx:after:request", (event) => {
  const { response, sourceElement } = event.detail.ctx;
  if (!response || response.status >= 400) return;
  tell("");
  const then = sourceElement.dataset?.then;
  if (then === "reload") location.reload();
  else if (then) htmx.trigger(document.body, then);
});

// The clock: lists are asked for again while somebody can see them, and the page itself until it
// has come once.

setInterval(() => {
  if (document.hidden || find("dialog[open]")) return;
  htmx.trigger(find("#loading") ? find("#main") : document.body, "refresh");
}, REFRESH_MS);

setInterval(() => {
  if (!document.hidden && find("#previews")) htmx.trigger(document.body, "preview");
}, PREVIEW_MS);

// Light and dark.

find("#theme").addEventListener("click", () => {
  const dark = matchMedia("(prefers-color-scheme: dark)").matches;
  const now = document.documentElement.dataset.theme ?? (dark ? "dark" : "light");
  const next = now === "dark" ? "light" : "dark";
  document.documentElement.dataset.theme = next;
  localStorage.setItem("farm-theme", next);
});

// Zoom: Enter or a click opens a picture, arrows go on, + and - or a click change its size.

const zoom = find("#zoom");
let shown = null;

function show(button) {
  shown = button;
  const image = find("img", zoom);
  image.src = button.dataset.url;
  image.alt = button.dataset.prompt;
  const caption = find("figcaption", zoom);
  const facts = document.createElement("p");
  facts.className = "muted";
  [caption.dir, facts.dir] = ["auto", "ltr"];
  facts.textContent = button.dataset.facts;
  caption.replaceChildren(button.dataset.prompt, facts);
  find("a[download]", zoom).href = button.dataset.url;
  if (!zoom.open) zoom.showModal();
}

function go(places) {
  const buttons = findAll("button.picture");
  const here = buttons.findIndex((one) => one.closest("li").id === shown.closest("li").id);
  const next = buttons[here + places];
  if (next) show(next);
}

document.addEventListener("click", (event) => {
  const button = event.target.closest("button.picture");
  if (button) show(button);
});
zoom.addEventListener("click", (event) => {
  if (event.target.dataset.go) go(Number(event.target.dataset.go));
  else if ("close" in event.target.dataset || event.target === zoom) zoom.close();
  else if (event.target.tagName === "IMG") zoom.classList.toggle("large");
});
zoom.addEventListener("keydown", (event) => {
  if (event.key === "ArrowLeft") go(-1);
  else if (event.key === "ArrowRight") go(1);
  else if (event.key === "+") zoom.classList.add("large");
  else if (event.key === "-") zoom.classList.remove("large");
});
zoom.addEventListener("close", () => shown?.focus());

// In a grid the arrows move from picture to picture.

document.addEventListener("keydown", (event) => {
  const here = event.target.closest?.("button.picture");
  const places = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (!here || !places) return;
  const buttons = findAll("button.picture");
  buttons[buttons.indexOf(here) + places]?.focus();
  event.preventDefault();
});

// The form.

const mask = { image: null, strokes: document.createElement("canvas"), x: 0, y: 0 };

function showModes(form) {
  const mode = form.elements.mode.value;
  for (const part of findAll("[data-modes]", form)) {
    part.hidden = !part.dataset.modes.split(" ").includes(mode);
  }
}

function drawMask(canvas) {
  const context = canvas.getContext("2d");
  context.globalAlpha = 1;
  context.drawImage(mask.image, 0, 0);
  context.globalAlpha = 0.6;
  context.drawImage(mask.strokes, 0, 0);
  if (document.activeElement === canvas) {
    context.globalAlpha = 1;
    context.strokeStyle = "#ff8a3d";
    context.lineWidth = Math.max(1, canvas.width / 256);
    context.beginPath();
    context.arc(mask.x, mask.y, brush() / 2, 0, 7);
    context.stroke();
  }
}

const brush = () => (Number(find("#brush").value) / 100) * mask.strokes.width * 0.5;

function paint(canvas, x, y) {
  const context = mask.strokes.getContext("2d");
  context.fillStyle = "#fff";
  context.beginPath();
  context.arc(x, y, brush() / 2, 0, 7);
  context.fill();
  mask.painted = true;
  drawMask(canvas);
}

async function loadImage(form) {
  const canvas = find("#mask", form);
  const file = form.elements.image.files[0];
  canvas.hidden = !file;
  mask.painted = false;
  if (!file) return;
  try {
    mask.image = await createImageBitmap(file);
  } catch {
    canvas.hidden = true;
    return; // the farm reads more formats than browsers do, and says what is wrong with the rest
  }
  for (const one of [canvas, mask.strokes]) {
    one.width = mask.image.width;
    one.height = mask.image.height;
  }
  [mask.x, mask.y] = [canvas.width / 2, canvas.height / 2];
  drawMask(canvas);
}

function prepareMask(form) {
  const canvas = find("#mask", form);
  const move = (event) => {
    const box = canvas.getBoundingClientRect();
    mask.x = ((event.clientX - box.left) / box.width) * canvas.width;
    mask.y = ((event.clientY - box.top) / box.height) * canvas.height;
    if (event.buttons & 1) paint(canvas, mask.x, mask.y);
    else drawMask(canvas);
  };
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    canvas.focus();
    move(event);
  });
  canvas.addEventListener("pointermove", move);
  for (const name of ["focus", "blur"]) canvas.addEventListener(name, () => drawMask(canvas));
  canvas.addEventListener("keydown", (event) => {
    const step = canvas.width / 32;
    const moved = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    if (event.key === " ") paint(canvas, mask.x, mask.y);
    else if (event.key in moved) {
      mask.x = Math.min(Math.max(mask.x + moved[event.key][0] * step, 0), canvas.width);
      mask.y = Math.min(Math.max(mask.y + moved[event.key][1] * step, 0), canvas.height);
      drawMask(canvas);
    } else return;
    event.preventDefault();
  });
  find("#clear-mask", form).addEventListener("click", () => {
    mask.strokes.getContext("2d").clearRect(0, 0, mask.strokes.width, mask.strokes.height);
    mask.painted = false;
    drawMask(canvas);
  });
}

async function maskFile(form) {
  const given = form.elements.mask_image.files[0];
  if (given || !mask.painted) return given;
  const whole = document.createElement("canvas");
  [whole.width, whole.height] = [mask.strokes.width, mask.strokes.height];
  const context = whole.getContext("2d");
  context.fillRect(0, 0, whole.width, whole.height);
  context.drawImage(mask.strokes, 0, 0);
  return new Promise((done) => whole.toBlob(done, "image/png"));
}

async function send(address, body, headers, signal) {
  let answer, text;
  try {
    const sent = { ...authorisation(), ...headers };
    answer = await fetch(ROOT + address, { method: "POST", headers: sent, body, signal });
    text = await answer.text();
  } catch {
    throw new Error("The farm does not answer. Try again in a moment; what you typed stays here.");
  }
  if (answer.status === 401) askForKey(explain(text, 401));
  if (!answer.ok) throw new Error(explain(text, answer.status));
  return JSON.parse(text);
}

const upload = async (file, kind) =>
  (await send(`/v1/assets?kind=${kind}`, file, { "Content-Type": "application/octet-stream" })).id;

// What was sent without an answer keeps its key, so that it is drawn once.
let unanswered = { body: null, key: null };

async function submitJob(body) {
  if (unanswered.body !== body) {
    const numbers = crypto.getRandomValues(new Uint32Array(4));
    unanswered = { body, key: `page-${numbers.join("-")}` };
  }
  const headers = { "Content-Type": "application/json", "Idempotency-Key": unanswered.key };
  const { id } = await send("/v1/jobs", body, headers, AbortSignal.timeout(GIVE_UP_MS));
  unanswered = { body: null, key: null };
  return id;
}

const NUMBERS = ["strength", "num_images", "num_inference_steps", "guidance_scale", "width", "height"];

async function submit(form) {
  const given = form.elements;
  const render = { prompt: given.prompt.value };
  for (const name of ["negative_prompt", "checkpoint"]) {
    if (given[name].value) render[name] = given[name].value;
  }
  const mode = given.mode.value;
  for (const name of NUMBERS) {
    if (given[name].value && !(name === "strength" && mode === "text2img")) {
      render[name] = Number(given[name].value);
    }
  }
  if (mode !== "text2img") {
    if (!given.image.files[0]) throw new Error("Choose an image.");
    render.image = await upload(given.image.files[0], "image");
  }
  if (mode === "inpaint") {
    const drawn = await maskFile(form);
    if (!drawn) throw new Error("Paint over what shall be drawn again, or choose a mask file.");
    render.mask_image = await upload(drawn, "mask");
  }
  const adapters = findAll("[data-adapter]", form)
    .filter((one) => one.value)
    .map((one) => ({ adapter: one.dataset.adapter, scale: Number(one.value) }));
  if (adapters.length) render.adapters = adapters;
  const job = { renders: [render], priority: given.priority.value };
  if (given.name.value) job.name = given.name.value;
  let body = JSON.stringify(job);
  // A seed may have 64 bits, which a JavaScript number does not hold.
  const seed = given.seed.value;
  if (seed) body = body.replace('"renders":[{', `"renders":[{"seed":${seed},`);
  location.href = `${ROOT}/jobs/${await submitJob(body)}`;
}

document.addEventListener("htmx:after:swap", () => {
  const form = find("#new");
  if (!form || form.dataset.ready) return;
  form.dataset.ready = "yes";
  const say = (text) => {
    find("#said", form).textContent = text;
    find("button:not([type])", form).disabled = Boolean(text);
  };
  form.addEventListener("change", (event) => {
    if (event.target.name === "mode") showModes(form);
    if (event.target.name === "image") loadImage(form);
  });
  prepareMask(form);
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    tell("");
    say("Submitting …");
    const slow = setTimeout(() => say("Submitting … The farm takes long to answer."), SLOW_MS);
    try {
      await submit(form);
    } catch (error) {
      tell(error.message);
      say("");
    } finally {
      clearTimeout(slow);
    }
  });
  addEventListener("pagehide", () => say("")); // for who comes back to it
  find("textarea", form).focus();
});
