// Builds elements. Nothing here parses HTML: whatever a user or a model wrote stays text.

import { label, say } from "./language.js";

export const byId = (id) => document.getElementById(id);

/**
 * Build an element.
 *
 * Options: `class`, `on` (listeners by event), `t` (key of its text), `v` (values of that text), `label` (key of its
 * name for screen readers), `data` (data attributes). All others are attributes. Children are elements or strings.
 */
export function element(tag, options = {}, ...children) {
  const { class: classes, on = {}, t, v, label: name, data = {}, ...attributes } = options;
  const made = document.createElement(tag);
  if (classes) made.className = classes;
  if (t) say(made, t, v);
  if (name) label(made, name, v);
  Object.assign(made.dataset, data);
  for (const [attribute, value] of Object.entries(attributes)) made.setAttribute(attribute, value);
  for (const [event, listener] of Object.entries(on)) made.addEventListener(event, listener);
  made.append(...children.filter((child) => child !== null && child !== undefined && child !== ""));
  return made;
}

export function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
  use.setAttribute("href", `#i-${name}`);
  svg.setAttribute("aria-hidden", "true");
  svg.append(use);
  return svg;
}

/** Build a button with an icon and the text of a key. */
export function button(key, { icon: symbol, class: classes = "quiet", on }) {
  const made = element("button", { type: "button", class: classes, on: { click: on } });
  made.append(...(symbol ? [icon(symbol)] : []), element("span", { t: key }));
  return made;
}

/**
 * Build a bar of parts and its legend.
 *
 * Parts are `{name, key, value, text}`: colour, key of the label, size and written size. Those of size 0 are left out.
 * `total` is the written sum, as the last line of the legend.
 */
export function bar(parts, { legend = "legend", total = "" } = {}) {
  const sum = parts.reduce((before, part) => before + part.value, 0);
  const shown = parts.filter((part) => part.value > 0);
  const pieces = shown.map((part) => {
    const piece = element("span", { data: { part: part.name } });
    piece.style.width = `${(100 * part.value) / sum}%`;
    return piece;
  });
  const entries = shown.map((part) =>
    element("div", {}, element("dt", { t: part.key, data: { part: part.name } }), element("dd", {}, part.text)),
  );
  if (total) entries.push(element("div", { class: "total" }, element("dt", { t: "part_total" }), element("dd", {}, total)));
  return [
    element("div", { class: "parts", "aria-hidden": "true" }, ...pieces),
    element("dl", { class: legend }, ...entries),
  ];
}

/** Tell a screen reader something without moving the focus. */
export function announce(text) {
  byId("announcer").textContent = text;
}
