// Starts the page and connects its parts.

import { listModels } from "./api.js";
import { hasImages, startAttachments, takeImages } from "./attachments.js";
import { watchConnection } from "./connection.js";
import { Conversation } from "./conversation.js";
import { byId, element } from "./dom.js";
import { saveAsJson, saveAsText } from "./exporting.js";
import { language, setLanguage } from "./language.js";
import { startOperations } from "./operations.js";
import { drawSamples } from "./samples.js";
import { change, changeKey, session, settings } from "./settings.js";

const conversation = new Conversation({ onChange: showConversation });
const operations = startOperations({ onKeyNeeded: () => openSettings({ keyNeeded: true }) });

function showConversation() {
  const { running, turns } = conversation;
  byId("welcome").hidden = turns.length > 0;
  byId("conversation-bar").hidden = turns.length === 0;
  byId("ask").hidden = Boolean(running);
  byId("stop").hidden = !running;
  for (const again of document.querySelectorAll(".turn-actions button, .failure button")) again.disabled = Boolean(running);
}

function submit() {
  const text = byId("question").value.trim();
  if (!text || conversation.running) {
    byId("question").focus();
    return;
  }
  byId("question").value = "";
  conversation.ask(text, takeImages());
}

function startComposer() {
  byId("composer").addEventListener("submit", (event) => {
    event.preventDefault();
    submit();
  });
  byId("question").addEventListener("keydown", (event) => {
    // While an input method composes Chinese, Enter chooses characters.
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    submit();
  });
  byId("stop").addEventListener("click", () => {
    conversation.stop();
    byId("question").focus();
  });
  byId("new-conversation").addEventListener("click", () => {
    conversation.clear();
    byId("question").focus();
  });
  byId("export-json").addEventListener("click", () => saveAsJson(conversation));
  byId("export-text").addEventListener("click", () => saveAsText(conversation));
  window.addEventListener("beforeunload", (event) => {
    if (conversation.running || hasImages()) event.preventDefault();
  });
}

async function askSample(question, image) {
  if (!conversation.running) conversation.ask(question, [await image]);
}

function startTabs() {
  const tabs = ["ask", "operations"];
  const show = (name, { focus = false } = {}) => {
    for (const tab of tabs) {
      const chosen = tab === name;
      byId(`tab-${tab}`).setAttribute("aria-selected", String(chosen));
      byId(`tab-${tab}`).tabIndex = chosen ? 0 : -1;
      byId(`view-${tab}`).hidden = !chosen;
    }
    if (focus) byId(`tab-${name}`).focus();
    history.replaceState(null, "", name === "ask" ? "/" : `#${name}`);
    if (name === "operations") operations.start();
    else operations.stop();
  };
  for (const [index, name] of tabs.entries()) {
    byId(`tab-${name}`).addEventListener("click", () => show(name));
    byId(`tab-${name}`).addEventListener("keydown", ({ key }) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[key];
      if (step) show(tabs[(index + step + tabs.length) % tabs.length], { focus: true });
    });
  }
  show(location.hash === "#operations" ? "operations" : "ask");
}

function startLanguage() {
  const apply = (code) => {
    setLanguage(code);
    const other = code === "zh" ? "en" : "zh";
    Object.assign(byId("language"), { textContent: other === "zh" ? "中文" : "English", lang: other });
    drawSamples(askSample);
  };
  byId("language").addEventListener("click", () => {
    change({ language: language() === "zh" ? "en" : "zh" });
    apply(settings.language);
  });
  apply(language());
}

function openSettings({ keyNeeded = false } = {}) {
  byId("key-needed").hidden = !keyNeeded;
  byId("api-key").value = session.apiKey;
  byId("theme").value = settings.theme;
  byId("release").value = settings.release;
  byId("max-tokens").value = settings.maxTokens ?? "";
  byId("temperature").value = settings.temperature ?? "";
  if (!byId("settings").open) byId("settings").showModal();
  if (keyNeeded) byId("api-key").focus();
}

function startSettings() {
  byId("open-settings").addEventListener("click", () => openSettings());
  byId("theme").addEventListener("change", ({ target }) => {
    document.documentElement.dataset.theme = target.value;
  });
  byId("settings").addEventListener("close", () => {
    const number = (id) => (byId(id).value === "" ? null : Number(byId(id).value));
    const key = byId("api-key").value.trim();
    const isNew = key !== session.apiKey;
    changeKey(key);
    change({
      theme: byId("theme").value,
      release: byId("release").value,
      maxTokens: number("max-tokens"),
      temperature: number("temperature"),
    });
    if (isNew) {
      loadReleases();
      operations.restart();
    }
  });
}

/** Offer the releases in the settings, or ask for a key. */
async function loadReleases() {
  let models;
  try {
    models = await listModels();
  } catch (error) {
    if (error.status === 401) openSettings({ keyNeeded: true });
    return; // the connection's state shows everything else
  }
  const [automatic] = byId("release").options;
  const releases = models.filter((model) => model.root === model.id); // the others are aliases
  byId("release").replaceChildren(automatic, ...releases.map(({ id }) => element("option", { value: id }, id)));
  byId("release").value = settings.release;
  if (!byId("release").value) change({ release: "" }); // it is no longer offered
}

startLanguage();
startComposer();
startAttachments();
startSettings();
startTabs();
watchConnection({ onBack: loadReleases });
