// Cards of the releases: state, share, times, KV cache.

import { bar, element } from "./dom.js";
import { count, percent, seconds } from "./numbers.js";

const MAX_POINTS = 180;
const WIDTH = 300;
const HEIGHT = 44;

/** The last minutes of each release's time to first token. */
export class History {
  constructor() {
    this.points = new Map();
  }

  add(status) {
    for (const { info, recent } of status.releases) {
      const name = nameOf(info);
      const points = this.points.get(name) ?? [];
      points.push(recent.first_token?.p50_s ?? null);
      if (points.length > MAX_POINTS) points.shift();
      this.points.set(name, points);
    }
  }

  of(info) {
    return this.points.get(nameOf(info)) ?? [];
  }
}

export function nameOf({ release: { vision_tag: vision, language_tag: language } }) {
  return vision === language ? language : `${vision},${language}`;
}

/** Build the card of one release. */
export function releaseCard(release, status, history) {
  const { info, recent } = release;
  const name = nameOf(info);
  const isCanary = status.rollout.phase === "ROLLOUT_PHASE_RUNNING" && status.rollout.plan.canary === name;
  return element(
    "section",
    { class: status.releases.length > 1 ? "card half" : "card" },
    element(
      "div",
      { class: "section-title" },
      element("h3", { class: "release-name" }, name),
      element("span", { class: info.ready ? "badge good" : "badge warn", t: info.ready ? "ready" : "loading" }),
      info.is_default ? element("span", { class: "badge", t: "in_force" }) : null,
      isCanary ? element("span", { class: "badge accent", t: "canary" }) : null,
    ),
    element(
      "dl",
      { class: "measures" },
      measure("share", percent(release.weight_percent / 100)),
      measure("answered_count", count(recent.answered), {
        t: "failed_cancelled",
        v: { failed: count(recent.failed), cancelled: count(recent.cancelled) },
      }),
      measure("in_flight", count(release.in_flight)),
      quantiles("measure_first_token", recent.first_token),
      quantiles("measure_inter_token", recent.inter_token),
    ),
    sparkline(history.of(info)),
    ...release.engines.map(engine),
  );
}

function measure(key, value, note = null) {
  return element(
    "div",
    { class: "measure" },
    element("dt", { t: key }),
    element("dd", {}, value, note ? element("small", note) : null),
  );
}

function quantiles(key, { p50_s: half, p95_s: most } = {}) {
  if (half === undefined) return measure(key, "–", { t: "no_requests" });
  return measure(key, seconds(half), { t: "p95", v: { time: seconds(most) } });
}

/** Draw a line of times. Gaps are moments without requests. */
function sparkline(points) {
  const known = points.filter((point) => point !== null);
  if (known.length < 2) return null;
  const most = 1.25 * Math.max(...known);
  let path = "";
  points.forEach((point, index) => {
    if (point === null) return;
    const x = (index / (points.length - 1)) * WIDTH;
    const y = HEIGHT - 3 - (point / most) * (HEIGHT - 6);
    const starts = index === 0 || points[index - 1] === null;
    path += `${starts ? "M" : "L"}${x.toFixed(1)} ${y.toFixed(1)}`;
  });
  const space = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(space, "svg");
  svg.setAttribute("viewBox", `0 0 ${WIDTH} ${HEIGHT}`);
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("class", "spark");
  svg.setAttribute("aria-hidden", "true");
  const line = document.createElementNS(space, "path");
  line.setAttribute("d", path);
  line.setAttribute("vector-effect", "non-scaling-stroke");
  svg.append(line);
  const note = element("p", { class: "muted spark-note" }, element("span", { t: "spark" }), element("span", { class: "number" }, `0 – ${seconds(most)}`));
  return element("div", {}, svg, note);
}

function engine(load, index) {
  const blocks = Number(load.num_blocks);
  const used = Number(load.used_blocks);
  const kept = Number(load.kept_blocks);
  const part = (name, value) => ({ name, key: `kv_${name}`, value, text: percent(blocks ? value / blocks : 0) });
  return element(
    "div",
    { class: "engine" },
    element(
      "div",
      { class: "engine-head" },
      element("h4", { t: "engine", v: { n: index + 1 } }),
      element("span", { class: "number", t: "engine_load", v: { running: count(load.running), waiting: count(load.waiting) } }),
    ),
    ...bar([part("used", used), part("kept", kept), part("free", blocks - used - kept)], { legend: "legend row" }),
  );
}
