// What a visitor chose. The API key stays in this tab, everything else in this browser.

const NAME = "tandem";
const DEFAULTS = { theme: "auto", language: null, release: "", maxTokens: null, temperature: null };

export const settings = { ...DEFAULTS, ...read(localStorage, NAME) };
export const session = { apiKey: "", ...read(sessionStorage, NAME) };

export function change(values) {
  Object.assign(settings, values);
  write(localStorage, settings);
}

export function changeKey(apiKey) {
  session.apiKey = apiKey.trim();
  write(sessionStorage, session);
}

function read(storage, name) {
  try {
    return JSON.parse(storage.getItem(name)) ?? {};
  } catch {
    return {}; // storage is blocked or damaged
  }
}

function write(storage, values) {
  try {
    storage.setItem(NAME, JSON.stringify(values));
  } catch {
    // Storage is blocked or full: the choice lasts until the page is closed.
  }
}
