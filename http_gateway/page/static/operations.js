// The view of operators: connects, draws what arrives, connects again.

import { watchOperations } from "./api.js";
import { byId, button, element, icon } from "./dom.js";
import { failure } from "./failures.js";
import { clock } from "./numbers.js";
import { cachesCard } from "./caches.js";
import { History, releaseCard } from "./releases.js";
import { rolloutCard } from "./rollout.js";

const FIRST_PAUSE_MS = 1000;
const LONGEST_PAUSE_MS = 15_000;
const KEY_ERRORS = new Set([401, 403]);

/** Returns `start`, `stop` and `restart` of the view. `onKeyNeeded` opens the settings. */
export function startOperations({ onKeyNeeded }) {
  const history = new History();
  let controller = null;
  let last = null;

  function draw(status) {
    const view = byId("operations");
    if (last === null) view.replaceChildren(head(), element("div", { class: "grid" }));
    last = status;
    history.add(status);
    view.querySelector("#operations-lost").hidden = true;
    view.querySelector(".grid").classList.remove("stale");
    drawTime(status);
    const cards = [
      ...status.releases.map((release) => [`release ${release.info.release.language_tag}`, releaseCard(release, status, history)]),
      ["rollout", rolloutCard(status.rollout, { onFailed: showFailure })],
      ["caches", cachesCard(status.releases)],
    ];
    replaceCards(view.querySelector(".grid"), cards);
  }

  function showFailure(error) {
    const place = byId("operations-failure");
    place.replaceChildren(failure(error, button("close", { class: "outlined", on: () => place.replaceChildren() })));
  }

  function lost() {
    if (last === null) return;
    byId("operations").querySelector(".grid").classList.add("stale");
    const note = byId("operations-lost");
    note.hidden = false;
    note.firstChild.replaceWith(element("span", { t: "operations_lost", v: { time: clock(last.at_s) } }));
  }

  async function run(signal) {
    let pauseMs = FIRST_PAUSE_MS;
    if (last === null) byId("operations").replaceChildren(loading());
    while (!signal.aborted) {
      try {
        for await (const status of watchOperations(signal)) {
          draw(status);
          pauseMs = FIRST_PAUSE_MS;
        }
      } catch (error) {
        if (signal.aborted) return;
        if (KEY_ERRORS.has(error.status)) {
          last = null;
          byId("operations").replaceChildren(keyNeeded(error, onKeyNeeded));
          return;
        }
        if (last === null) byId("operations").replaceChildren(failure(error), loading());
        lost();
      }
      await pause(pauseMs, signal);
      pauseMs = Math.min(2 * pauseMs, LONGEST_PAUSE_MS);
    }
  }

  const start = () => {
    if (controller) return;
    controller = new AbortController();
    run(controller.signal);
  };
  const stop = () => {
    controller?.abort();
    controller = null;
  };
  const restart = () => {
    if (!controller) return;
    stop();
    last = null;
    start();
  };
  document.addEventListener("visibilitychange", () => {
    if (byId("view-operations").hidden) return;
    if (document.hidden) stop();
    else start();
  });
  return { start, stop, restart };
}

function head() {
  return element(
    "div",
    {},
    element(
      "div",
      { class: "operations-head" },
      element("h2", { t: "operations" }),
      element("p", { class: "muted number", id: "operations-time" }, " "),
    ),
    element("p", { class: "notice warn", id: "operations-lost", role: "status", hidden: "" }, " "),
    element("div", { id: "operations-failure" }),
  );
}

function drawTime(status) {
  const values = { minutes: Math.round(status.window_s / 60), time: clock(status.at_s) };
  const fresh = element("p", { class: "muted number", id: "operations-time", t: "live_note", v: values });
  byId("operations-time").replaceWith(fresh);
}

/** Put cards into the grid. Those that look the same stay. */
function replaceCards(grid, cards) {
  const old = new Map([...grid.children].map((card) => [card.dataset.name, card]));
  const names = new Set(cards.map(([name]) => name));
  for (const [name, card] of old) if (!names.has(name)) card.remove();
  cards.forEach(([name, card], index) => {
    card.dataset.name = name;
    const before = old.get(name);
    if (!before) grid.insertBefore(card, grid.children[index] ?? null);
    else if (!before.isEqualNode(card) && !byId("confirm").open) replaceCard(before, card);
  });
}

/** Replace a card, but keep the reader's focus and how far tables are scrolled. */
function replaceCard(before, card) {
  const focusable = (node) => [...node.querySelectorAll("button, [tabindex]")];
  const focused = focusable(before).indexOf(document.activeElement);
  const scrolled = before.querySelector(".table-scroll")?.scrollLeft ?? 0;
  before.replaceWith(card);
  focusable(card)[focused]?.focus({ preventScroll: true });
  if (scrolled) card.querySelector(".table-scroll")?.scrollTo({ left: scrolled });
}

function loading() {
  const blocks = Array.from({ length: 3 }, () => element("div", { class: "skeleton" }));
  return element("div", { class: "grid", "aria-busy": "true", label: "connecting", role: "status" }, ...blocks);
}

function keyNeeded(error, onKeyNeeded) {
  const isOff = error.code === "OPERATORS_OFF";
  return element(
    "div",
    { class: "card blank" },
    icon("key"),
    element("h2", { t: isOff ? "operations_off" : "operations_key" }),
    element("p", isOff ? {} : { t: "operations_key_text" }, isOff ? error.detail : ""),
    isOff ? null : button("enter_key", { class: "primary", on: onKeyNeeded }),
  );
}

function pause(ms, signal) {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, ms);
    signal.addEventListener("abort", () => {
      clearTimeout(timer);
      resolve();
    });
  });
}
