// The conversation: what was asked, what was answered, and the answer that runs.

import { ApiError, streamAnswer } from "./api.js";
import { byId } from "./dom.js";
import { TurnView } from "./turn.js";

/**
 * @typedef Turn
 * @property {string} text of the question
 * @property {{name: string, url: string, data: string}[]} images of the question
 * @property {string} answer as far as it arrived
 * @property {object | null} facts times, caches and release of a complete answer
 * @property {object | null} usage tokens of a complete answer
 * @property {object | null} before facts of the last complete answer to the same question
 * @property {string | null} finishReason of a complete answer
 */

export class Conversation {
  /** @param onChange called when a turn begins or ends */
  constructor({ onChange }) {
    this.turns = [];
    this.id = newId();
    this.onChange = onChange;
    this.views = new Map();
    this.running = null; // an AbortController
  }

  async ask(text, images) {
    const turn = { text, images, answer: "", facts: null, usage: null, before: null, finishReason: null };
    const view = new TurnView(turn, { onAgain: () => this.#answer(turn) });
    this.turns.push(turn);
    this.views.set(turn, view);
    byId("turns").append(view.node);
    await this.#answer(turn);
  }

  stop() {
    this.running?.abort();
  }

  clear() {
    this.stop();
    this.running = null;
    for (const turn of this.turns) for (const image of turn.images) URL.revokeObjectURL(image.url);
    this.turns = [];
    this.views.clear();
    this.id = newId();
    byId("turns").replaceChildren();
    this.onChange();
  }

  async #answer(turn) {
    if (this.running) return; // one answer at a time
    const view = this.views.get(turn);
    const controller = new AbortController();
    this.running = controller;
    Object.assign(turn, { answer: "", before: turn.facts ?? turn.before, facts: null, usage: null, finishReason: null });
    view.start();
    this.onChange();
    try {
      await this.#read(turn, view, controller.signal);
      view.finish();
    } catch (error) {
      if (error.name === "AbortError") {
        view.stopped();
      } else {
        view.fail(error instanceof ApiError ? error : unexpected(error));
        document.dispatchEvent(new Event("tandem-failed"));
      }
    } finally {
      if (this.running === controller) this.running = null;
      this.onChange();
    }
  }

  async #read(turn, view, signal) {
    const chunks = streamAnswer({ messages: this.#messages(turn), conversation: this.id, signal });
    for await (const chunk of chunks) {
      const [choice] = chunk.choices ?? [];
      const piece = choice?.delta?.content;
      if (piece) {
        turn.answer += piece;
        view.update();
      }
      turn.finishReason = choice?.finish_reason ?? turn.finishReason;
      turn.usage = chunk.usage ?? turn.usage;
      turn.facts = chunk.tandem ?? turn.facts;
    }
  }

  /** Return the messages up to a question. Turns without an answer are left out. */
  #messages(last) {
    const messages = [];
    for (const turn of this.turns) {
      if (turn === last) return [...messages, questionMessage(turn)];
      if (turn.answer) messages.push(questionMessage(turn), { role: "assistant", content: turn.answer });
    }
    return messages;
  }
}

/** Return a question as the API takes it. */
export function questionMessage(turn) {
  if (!turn.images.length) return { role: "user", content: turn.text };
  const images = turn.images.map((image) => ({ type: "image_url", image_url: { url: image.data } }));
  return { role: "user", content: [...images, { type: "text", text: turn.text }] };
}

function newId() {
  return Array.from(crypto.getRandomValues(new Uint8Array(12)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

function unexpected(error) {
  console.error(error);
  return new ApiError("PAGE", { message: String(error.message), status: 500 });
}
