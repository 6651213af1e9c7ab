// The page in English and Chinese. Elements remember the key of their text, so a switch needs no reload.

import { en } from "./english.js";
import { zh } from "./chinese.js";

const TEXTS = { en, zh };

export const language = () => (document.documentElement.lang === "zh" ? "zh" : "en");

/** Return the text of a key, its `{names}` replaced by values. */
export function text(key, values = {}) {
  const template = TEXTS[language()][key] ?? key;
  return template.replace(/\{(\w+)\}/g, (_, name) => String(values[name] ?? ""));
}

/** Give an element the text of a key, also after a switch. */
export function say(node, key, values = {}) {
  node.dataset.t = key;
  node.dataset.v = JSON.stringify(values);
  node.textContent = text(key, values);
}

/** Give an element the name of a key for screen readers, also after a switch. */
export function label(node, key, values = {}) {
  node.dataset.tLabel = key;
  node.dataset.v = JSON.stringify(values);
  node.setAttribute(node.tagName === "IMG" ? "alt" : "aria-label", text(key, values));
}

export function setLanguage(code) {
  document.documentElement.lang = code;
  for (const node of document.querySelectorAll("[data-t]")) say(node, node.dataset.t, valuesOf(node));
  for (const node of document.querySelectorAll("[data-t-label]")) label(node, node.dataset.tLabel, valuesOf(node));
  for (const node of document.querySelectorAll("[data-t-placeholder]")) {
    node.placeholder = text(node.dataset.tPlaceholder);
  }
}

const valuesOf = (node) => JSON.parse(node.dataset.v ?? "{}");
