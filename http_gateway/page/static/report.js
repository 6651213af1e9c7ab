// How an answer came about: time, caches, tokens, release.

import { bar, element, icon } from "./dom.js";
import { count, milliseconds } from "./numbers.js";
import { timeline } from "./timeline.js";

const LEVELS = ["miss", "gateway", "shared", "vision", "in_flight", "similar"];
const NOTABLY_SOONER = 1.15;

/**
 * Build the report of an answer.
 *
 * `facts` is the server's `tandem` object, `usage` its tokens, `before` the facts of an earlier answer to the same
 * question or null.
 */
export function report(facts, usage, before) {
  return element(
    "div",
    { class: "report card", role: "group", label: "report" },
    time(facts.timings_ms, before?.timings_ms),
    facts.images.length ? images(facts.images) : null,
    usage ? tokens(usage, facts) : null,
    origin(facts),
  );
}

function time(times, before) {
  const parts = Object.entries(timeline(times)).map(([name, ms]) => ({
    name,
    key: `part_${name}`,
    value: ms,
    text: milliseconds(ms),
  }));
  const factor = before ? before.first_token / times.first_token : 0;
  return element(
    "div",
    {},
    element(
      "p",
      { class: "report-time" },
      element("strong", {}, milliseconds(times.first_token)),
      element("span", { t: "first_token" }),
    ),
    ...bar(parts, { total: milliseconds(Math.max(times.total, times.first_token)) }),
    factor >= NOTABLY_SOONER
      ? element("p", {
          class: "sooner",
          t: "sooner",
          v: { factor: factor.toFixed(1), before: milliseconds(before.first_token) },
        })
      : null,
  );
}

function images(reports) {
  const entries = reports.map((image, index) => {
    const level = LEVELS.includes(image.cache_level) ? image.cache_level : "miss";
    const cached = level !== "miss";
    return element(
      "li",
      {},
      element("span", { t: "image_n", v: { n: index + 1 } }),
      element(
        "span",
        { class: cached ? "badge good" : "badge", data: { level } },
        icon(cached ? "check" : "eye"),
        element("span", { t: `level_${level}` }),
      ),
    );
  });
  return element("div", { class: "report-block" }, element("h3", { t: "images" }), element("ul", { class: "report-images" }, ...entries));
}

function tokens(usage, facts) {
  const { decode } = facts.timings_ms;
  const details = usage.prompt_tokens_details ?? {};
  const imageTokens = facts.images.reduce((sum, image) => sum + image.num_visual_tokens, 0);
  const row = (key, value, classes) => [element("dt", { t: key, class: classes }), element("dd", {}, count(value))];
  const rows = row("prompt_tokens", usage.prompt_tokens);
  if (imageTokens) rows.push(...row("image_tokens", imageTokens, "sub"));
  if (details.cached_tokens) rows.push(...row("cached_tokens", details.cached_tokens, "sub"));
  rows.push(...row("answer_tokens", usage.completion_tokens));
  if (decode > 0 && usage.completion_tokens > 1) {
    const speed = ((usage.completion_tokens - 1) / decode) * 1000;
    const values = { n: speed.toFixed(speed < 10 ? 1 : 0) };
    rows.push(element("dt", { t: "speed" }), element("dd", { t: "tokens_per_second", v: values }));
  }
  return element("div", { class: "report-block" }, element("h3", { t: "tokens" }), element("dl", { class: "facts" }, ...rows));
}

function origin(facts) {
  return element(
    "dl",
    { class: "facts report-block" },
    element("dt", { t: "release" }),
    element("dd", { class: "mono" }, facts.release),
  );
}
