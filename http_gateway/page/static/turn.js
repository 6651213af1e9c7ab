// One question with its answer, on the page.

import { failure } from "./failures.js";
import { announce, button, byId, element } from "./dom.js";
import { say, text } from "./language.js";
import { report } from "./report.js";

/**
 * Shows a turn.
 *
 * `status` goes from 'running' to 'done', 'stopped' or 'failed', and back when the question is asked again.
 */
export class TurnView {
  constructor(turn, { onAgain }) {
    this.turn = turn;
    this.onAgain = onAgain;
    this.answer = element("p", { class: "answer-text", dir: "auto" });
    this.below = element("div", {});
    this.report = null;
    this.frame = null;
    this.node = element(
      "li",
      { class: "turn" },
      element("div", { class: "turn-question" }, this.#images(), element("p", { dir: "auto" }, turn.text)),
      element("div", { class: "turn-answer" }, this.answer, this.below),
    );
  }

  #images() {
    const { images } = this.turn;
    if (!images.length) return null;
    const pieces = images.map((image, index) =>
      element("img", { src: image.url, label: "asked_image", v: { n: index + 1, name: image.name } }),
    );
    return element("div", { class: "turn-images" }, ...pieces);
  }

  start() {
    this.node.dataset.status = "running";
    this.node.setAttribute("aria-busy", "true");
    this.answer.textContent = "";
    this.answer.hidden = true;
    this.below.replaceChildren(element("p", { class: "waiting", t: "waiting" }));
    scrollDown(hiddenBelow(this.node));
    announce(text("waiting"));
  }

  /** Show what arrived of the answer, once per frame. */
  update() {
    this.frame ??= requestAnimationFrame(() => keepEndInView(this.node, () => this.#show()));
  }

  #show() {
    cancelAnimationFrame(this.frame);
    this.frame = null;
    const { answer } = this.turn;
    if (!answer) return;
    if (this.answer.hidden) {
      this.answer.hidden = false;
      this.below.replaceChildren();
    }
    if (!this.answer.firstChild) this.answer.append("");
    const shown = this.answer.firstChild;
    shown.appendData(answer.slice(shown.length));
  }

  finish() {
    const { answer, facts, usage, before, finishReason } = this.turn;
    this.#end("done");
    const notes = [];
    if (!answer.trim()) notes.push(element("p", { class: "muted", t: "no_text" }));
    if (finishReason === "length") notes.push(element("p", { class: "muted", t: "limit_note" }));
    if (finishReason === "content_filter") notes.push(element("p", { class: "muted", t: "filter_note" }));
    keepEndInView(this.node, () => this.below.replaceChildren(...notes, this.#actions()));
    if (facts) {
      const fresh = report(facts, usage, before);
      if (this.report) this.report.replaceWith(fresh);
      else this.node.append(fresh);
      this.report = fresh;
    }
    announce(text("answered", { answer }));
  }

  stopped() {
    this.#end("stopped");
    const note = element("p", { class: "muted", t: "stopped_note" });
    keepEndInView(this.node, () => this.below.replaceChildren(note, this.#actions()));
    announce(text("stopped"));
  }

  fail(error) {
    this.#end("failed");
    const again = button("try_again", { icon: "again", class: "outlined", on: this.onAgain });
    keepEndInView(this.node, () => this.below.replaceChildren(failure(error, again)));
  }

  #end(status) {
    this.#show();
    this.node.dataset.status = status;
    this.node.removeAttribute("aria-busy");
    this.answer.hidden = !this.answer.textContent;
  }

  #actions() {
    const copy = button("copy", {
      icon: "copy",
      on: async () => {
        await navigator.clipboard.writeText(this.turn.answer);
        say(copy.querySelector("span"), "copied");
        announce(text("copied"));
      },
    });
    const again = button("ask_again", { icon: "again", on: this.onAgain });
    // Browsers offer the clipboard only to secure pages.
    const shown = navigator.clipboard && this.turn.answer ? [again, copy] : [again];
    return element("div", { class: "turn-actions" }, ...shown);
  }
}

/** Change a turn. Its end stays in view, unless the reader has scrolled up from it. */
function keepEndInView(node, change) {
  const follows = hiddenBelow(node) < 120;
  change();
  if (follows) scrollDown(hiddenBelow(node));
}

/** Return how far the end of a turn's answer lies below the question field, in pixels. */
function hiddenBelow(node) {
  const end = node.querySelector(".turn-answer > :last-child").getBoundingClientRect().bottom;
  return end + byId("composer").offsetHeight + 16 - window.innerHeight;
}

function scrollDown(pixels) {
  if (pixels > 0) window.scrollBy({ top: pixels, behavior: "instant" });
}
