"use strict";
// Keeps the page's figures fresh: it is asked for again, and what changed is taken over. Names from
// elsewhere are only ever set as text.

const POLL_MS = 2000;
const IMAGES_EVERY = 5;
const TOKEN = "discobot-proxy.token";
const by = (id) => document.getElementById(id);
const taken = new Map();
let paused = false;
let polls = 0;

document.documentElement.classList.add("js");

async function call(method, path) {
  const token = sessionStorage.getItem(TOKEN);
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  const options = { method, headers, cache: "no-store", credentials: "omit", redirect: "error" };
  return fetch(path, { ...options, signal: AbortSignal.timeout(10000) });
}

function say(text) {
  if (by("status").textContent !== text) by("status").textContent = text;
}

// Replaces what is in `old` unless it is the same, or somebody is marking text in it.
function take(old, html, nodes) {
  if (taken.get(old.id) === html) return;
  const selection = getSelection();
  if (!selection.isCollapsed && selection.containsNode(old, true)) return;
  taken.set(old.id, html);
  old.replaceChildren(...nodes);
}

function wantToken(wanted) {
  if (wanted && sessionStorage.getItem(TOKEN) !== null) {
    sessionStorage.removeItem(TOKEN);
    by("token-error").textContent = "The proxy does not take this token.";
  }
  by("token").hidden = !wanted;
  by("main").hidden = wanted;
  by("pause").hidden = wanted;
  if (wanted) by("figures").replaceChildren();
}

async function refresh() {
  const answer = await call("GET", "/?figures");
  if (!answer.ok) throw new Error(`status ${answer.status}`);
  const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
  const parts = fresh.querySelectorAll("[data-live]");
  wantToken(parts.length === 0);
  if (parts.length === 0) return;
  if (!by("now")) {
    taken.clear();
    by("figures").replaceChildren(...fresh.getElementById("figures").childNodes);
  } else {
    for (const part of parts) take(by(part.id), part.innerHTML, part.childNodes);
  }
  if (polls++ % IMAGES_EVERY === 0) await images();
}

async function poll() {
  if (!paused && !document.hidden && !by("ask").open) {
    try {
      await refresh();
      if (by("status").dataset.lost) say("");
      delete by("status").dataset.lost;
    } catch {
      by("status").dataset.lost = "1";
      say("The proxy does not answer: these are its last figures.");
    }
  }
  setTimeout(poll, POLL_MS);
}

// --- Images

function size(bytes) {
  const unit = Math.min(5, Math.max(0, Math.floor(Math.log10(Math.max(bytes, 1)) / 3)));
  const digits = unit === 0 ? 0 : 1;
  return `${(bytes / 1000 ** unit).toFixed(digits)} ${["B", "kB", "MB", "GB", "TB", "PB"][unit]}`;
}

function cell(tag, content) {
  const made = document.createElement(tag);
  made.append(content);
  return made;
}

function button(action, image) {
  const made = cell("button", action[0].toUpperCase() + action.slice(1));
  made.type = "button";
  made.dataset.action = action;
  made.dataset.image = image;
  made.setAttribute("aria-label", `${made.textContent} ${image}`);
  if (action === "purge") made.className = "danger";
  return made;
}

function row(image) {
  const made = document.createElement("tr");
  const name = cell("th", cell("code", image.image));
  name.scope = "row";
  if (image.tags?.length) name.append(" ", cell("small", image.tags.join(", ")));
  if (image.pinned) name.append(" ", Object.assign(cell("span", "pinned"), { className: "reason" }));
  const used = image.last_use ? image.last_use.slice(0, 16).replace("T", " ") : "–";
  const controls = cell("td", button(image.pinned ? "unpin" : "pin", reference(image)));
  controls.append(" ", button("purge", reference(image)));
  made.append(name, cell("td", size(image.size)), cell("td", `${image.hits}`), cell("td", used), controls);
  return made;
}

// The image by its first tag, or by its digest.
function reference(image) {
  if (image.tags?.length) return `${image.image}:${image.tags[0]}`;
  return image.digest ? `${image.image}@${image.digest}` : image.image;
}

async function images() {
  const answer = await call("GET", "/api/cache/images?limit=10&sort=hits&order=desc");
  const note = by("images-note");
  if (!answer.ok) {
    note.textContent = "The list of images is not to be had.";
    return;
  }
  const { images: list, total } = await answer.json();
  note.textContent = list.length === 0 ? "No image is stored." : `${list.length} of ${total} images.`;
  by("images-table").hidden = list.length === 0;
  const focused = document.activeElement?.dataset?.image;
  const action = document.activeElement?.dataset?.action;
  take(by("images-table").tBodies[0], JSON.stringify(list), list.map(row));
  if (focused !== undefined && document.activeElement === document.body) {
    const all = [...by("images-table").querySelectorAll("button")];
    const same = all.filter((one) => one.dataset.image === focused);
    (same.find((one) => one.dataset.action === action) ?? same[0])?.focus();
  }
}

// --- Changes, each with its question

const CHANGES = {
  purge: { method: "DELETE", path: "/api/cache?image=", verb: "Purge" },
  pin: { method: "POST", path: "/api/cache/pins?image=", verb: "Pin" },
  unpin: { method: "DELETE", path: "/api/cache/pins?image=", verb: "Unpin" },
  all: { method: "DELETE", path: "/api/cache", verb: "Purge" },
};

const TEXTS = {
  purge: "What other images use, too, stays. The next pull fetches the rest again.",
  pin: "It is kept when room is made for others.",
  unpin: "It may be evicted again when room is needed.",
  all: "Every entry that is not pinned is removed; running transfers finish. The next pulls fetch everything again.",
};

// Ends the question that is open.
let settle = null;

function confirmed(title, text, verb) {
  const dialog = by("ask");
  settle?.(false);
  by("ask-title").textContent = title;
  by("ask-text").textContent = text;
  by("ask-yes").textContent = verb;
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((done) => {
    settle = done;
  });
}

async function told(answer) {
  const body = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Error(body.errors?.[0]?.message ?? `status ${answer.status}`);
  return body;
}

async function change(action, image) {
  const { method, path, verb } = CHANGES[action];
  const [where, what] = [path + encodeURIComponent(image), image || "everything"];
  try {
    let text = TEXTS[action];
    if (action === "purge") {
      const would = await told(await call("DELETE", `${where}&dry_run=1`));
      text = `${would.removed} entries, ${size(would.freed)}. ${text}`;
    }
    if (!(await confirmed(`${verb} ${what}?`, text, verb))) return;
    const done = await told(await call(method, where));
    const freed = done.freed === undefined ? "" : `: ${done.removed} entries, ${size(done.freed)} freed`;
    const stay = done.pinned ? `; ${done.pinned} pinned entries stay` : "";
    say(`${verb}: done, ${what}${freed}${stay}.`);
    polls = 0;
    await refresh();
  } catch (error) {
    say(`${verb} ${what} failed: ${error.message}`);
  }
}

by("ask").addEventListener("close", () => {
  // It comes a moment late: by then the next question may be open.
  if (by("ask").open) return;
  settle?.(by("ask").returnValue === "yes");
  settle = null;
});
by("ask-no").addEventListener("click", () => by("ask").close(""));
by("ask-yes").addEventListener("click", () => by("ask").close("yes"));
by("purge-all").addEventListener("click", () => change("all", ""));
by("images-table").addEventListener("click", (event) => {
  const pressed = event.target.closest("button[data-action]");
  if (pressed) change(pressed.dataset.action, pressed.dataset.image);
});
by("image-form").addEventListener("submit", (event) => {
  event.preventDefault();
  change(event.submitter?.value ?? "pin", by("image-name").value.trim());
});
by("token").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem(TOKEN, by("token-value").value);
  by("token-value").value = "";
  by("token-error").textContent = "";
  polls = 0;
  refresh().catch((error) => say(error.message));
});
by("pause").addEventListener("click", () => {
  paused = !paused;
  by("pause").setAttribute("aria-pressed", `${paused}`);
  say(paused ? "Paused." : "");
});

poll();
