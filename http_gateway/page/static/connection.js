// Whether the server can answer, at the top of the page.

import { isReady } from "./api.js";
import { byId } from "./dom.js";
import { say } from "./language.js";

const QUIET_MS = 15_000;
const AWAY_MS = 2_000; // while something is away

const STATES = {
  ready: "connected",
  away: "not_ready",
  offline: "offline",
};

let timer = null;
let state = "unknown";

/** Watch the server. `onBack` is called when it can answer again. */
export function watchConnection({ onBack }) {
  const look = async () => {
    clearTimeout(timer);
    const before = state;
    try {
      state = (await isReady()) ? "ready" : "away";
    } catch {
      state = "offline";
    }
    byId("connection").dataset.state = state === "offline" ? "away" : state;
    say(byId("connection-text"), STATES[state]);
    if (state === "ready" && before !== "ready") onBack();
    timer = setTimeout(look, state === "ready" ? QUIET_MS : AWAY_MS);
  };
  document.addEventListener("visibilitychange", () => {
    if (document.hidden) clearTimeout(timer);
    else look();
  });
  window.addEventListener("offline", look);
  window.addEventListener("online", look);
  document.addEventListener("tandem-failed", look); // a question has just failed
  look();
}
