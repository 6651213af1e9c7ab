// The card of the caches: images by level, prompt tokens found.

import { bar, element } from "./dom.js";
import { count, percent } from "./numbers.js";

// By level, the colour of its part of the bar.
const PARTS = {
  miss: "miss",
  gateway: "gateway",
  shared: "shared",
  vision: "vision_cache",
  in_flight: "in_flight",
  similar: "similar",
};

/** Build the card for all releases together. */
export function cachesCard(releases) {
  const byLevel = {};
  let prompt = 0;
  let cached = 0;
  for (const { recent } of releases) {
    prompt += Number(recent.prompt_tokens);
    cached += Number(recent.cached_prompt_tokens);
    for (const { level, images } of recent.images) {
      const name = level.replace("CACHE_LEVEL_", "").toLowerCase();
      byLevel[name] = (byLevel[name] ?? 0) + images;
    }
  }
  const images = Object.values(byLevel).reduce((sum, one) => sum + one, 0);
  const levels = Object.keys(PARTS).map((level) => part(PARTS[level], `level_${level}`, byLevel[level] ?? 0));
  const tokens = [part("prefill", "part_cached", cached), part("miss", "part_computed", prompt - cached)];
  return element(
    "section",
    { class: "card" },
    element("div", { class: "section-title" }, element("h3", { t: "caches" })),
    images || prompt ? null : element("p", { class: "muted", t: "nothing_yet" }),
    images ? ratio((images - (byLevel.miss ?? 0)) / images, "image_hits", levels) : null,
    prompt ? ratio(cached / prompt, "prompt_hits", tokens) : null,
  );
}

const part = (name, key, value) => ({ name, key, value, text: count(value) });

function ratio(share, key, parts) {
  return element(
    "div",
    { class: "ratio" },
    element("p", { class: "ratio-head" }, element("span", { class: "big" }, percent(share)), element("span", { t: key })),
    ...bar(parts, { legend: "legend row" }),
  );
}
