// The card of the rollout: steps, guard, history, promote and roll back.

import { commandRollout } from "./api.js";
import { byId, element } from "./dom.js";
import { say } from "./language.js";
import { clock, count, percent, seconds } from "./numbers.js";

const GOING_ON = new Set(["preparing", "running"]);
const ratio = (number) => `× ${number.toFixed(2)}`;
const points = (number) => `${number < 0 ? "−" : number > 0 ? "+" : ""}${percent(Math.abs(number))}`;
const nats = (number) => number.toFixed(3).replace("-", "−");
// How values and effects of a metric are written. The other metrics are rates.
const FORMATS = {
  first_token: [seconds, ratio],
  inter_token: [seconds, ratio],
  length: [(number) => number.toFixed(1), ratio],
  logprob: [nats, nats],
};
const PHASE_BADGES = { preparing: "accent", running: "accent", promoted: "good", rolled_back: "bad" };
const EVENT_BADGES = { promoted: "good", rolled_back: "bad", held: "warn" };
const VERDICT_BADGES = { within: "good", beyond: "bad", open: "" };
const MAX_CHANGES = 8;

/** Build the card. `onFailed` gets the error of a command that failed. */
export function rolloutCard(rollout, { onFailed }) {
  const phase = word(rollout.phase, "ROLLOUT_PHASE_");
  return element(
    "section",
    { class: "card" },
    element(
      "div",
      { class: "section-title" },
      element("h3", { t: "rollout" }),
      rollout.id ? element("span", { class: `badge ${PHASE_BADGES[phase]}`, t: `phase_${phase}` }) : null,
      GOING_ON.has(phase) ? actions(rollout, phase, onFailed) : null,
    ),
    rollout.store_reachable ? null : element("p", { class: "notice bad", t: "store_lost" }),
    rollout.id ? details(rollout, phase) : none(rollout),
  );
}

const word = (name, prefix) => name.replace(prefix, "").toLowerCase();

function none({ in_force: release }) {
  const values = { release, command: "tandem rollout" };
  return element(
    "div",
    { class: "blank" },
    element("h4", { t: "no_rollout" }),
    element("p", { t: "no_rollout_text", v: values }),
  );
}

function details(rollout, phase) {
  return element(
    "div",
    {},
    element("p", { class: "release-name" }, `${rollout.plan.stable} → ${rollout.plan.canary}`),
    steps(rollout, phase),
    phase === "running" ? guard(rollout) : null,
    history(rollout.changes),
  );
}

function steps({ plan, step }, phase) {
  const state = (index) => {
    if (phase === "promoted" || (phase === "running" && index < step)) return { data: { step: "done" } };
    return phase === "running" && index === step ? { "aria-current": "step" } : {};
  };
  const items = plan.steps.map((one, index) =>
    element("li", { ...state(index), t: "step", v: { percent: one.weight_percent } }),
  );
  return element("ol", { class: "steps" }, ...items);
}

function guard(rollout) {
  const rows = [
    ["requests", "requests"],
    ["errors", "errors"],
  ].map(([key, field]) =>
    row(element("th", { scope: "row", t: key }), count(rollout.stable[field]), count(rollout.canary[field])),
  );
  rows.push(...rollout.findings.map(finding));
  const columns = ["metric", "stable", "canary", "effect", "bound", "verdict"];
  return element(
    "div",
    { class: "table-scroll", tabindex: "0", role: "group", label: "guard" },
    element(
      "table",
      {},
      element("caption", { t: "guard" }),
      element("thead", {}, element("tr", {}, ...columns.map((key) => element("th", { scope: "col", t: key })))),
      element("tbody", {}, ...rows),
    ),
  );
}

function finding(one) {
  const metric = word(one.metric, "ROLLOUT_METRIC_");
  const [value, difference] = (FORMATS[metric] ?? [percent, points]).map(
    (form) => (number) => (number === undefined ? "–" : form(number)),
  );
  const verdict = word(one.verdict, "ROLLOUT_VERDICT_");
  const name = element("th", { scope: "row" }, element("span", { t: `metric_${metric}` }), one.slice ? ` (${one.slice})` : "");
  const badge = element("span", { class: `badge ${VERDICT_BADGES[verdict]}`, t: `verdict_${verdict}` });
  return row(name, value(one.stable), value(one.canary), difference(one.effect), difference(one.bound), badge);
}

function row(name, ...cells) {
  const filled = [...cells, ...Array(5 - cells.length).fill("")];
  return element("tr", {}, name, ...filled.map((cell) => element("td", {}, cell)));
}

function history(changes) {
  const items = changes
    .slice(-MAX_CHANGES)
    .reverse()
    .map((change) => {
      const event = word(change.event, "ROLLOUT_EVENT_");
      return element(
        "li",
        {},
        element("time", { class: "muted number" }, clock(change.at_s)),
        element("span", { class: `badge ${EVENT_BADGES[event] ?? ""}`, t: `event_${event}` }),
        element("span", { class: "reason" }, change.reason),
      );
    });
  return element("div", { class: "spaced" }, element("h4", { t: "history" }), element("ol", { class: "history" }, ...items));
}

function actions(rollout, phase, onFailed) {
  const { stable, canary } = rollout.plan;
  const command = (name, key, release, classes) => {
    const run = () => confirm({ name, key, release, classes, onFailed });
    return element("button", { type: "button", class: classes, t: key, on: { click: run } });
  };
  return element(
    "div",
    { class: "rollout-actions" },
    command("rollback", "roll_back", stable, "danger"),
    phase === "running" ? command("promote", "promote", canary, "primary") : null,
  );
}

/** Ask before traffic moves, with a reason for the history. */
function confirm({ name, key, release, classes, onFailed }) {
  const dialog = byId("confirm");
  say(byId("confirm-title"), `confirm_${key}`, { release });
  say(byId("confirm-text"), `confirm_${key}_text`);
  say(byId("confirm-go"), key);
  byId("confirm-go").className = classes;
  byId("confirm-reason").value = "";
  dialog.returnValue = "cancel";
  dialog.addEventListener(
    "close",
    async () => {
      if (dialog.returnValue !== "go") return;
      try {
        await commandRollout(name, byId("confirm-reason").value);
      } catch (error) {
        onFailed(error);
      }
    },
    { once: true },
  );
  dialog.showModal();
}
