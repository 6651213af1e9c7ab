// Save the conversation as a file.

import { questionMessage } from "./conversation.js";
import { text } from "./language.js";
import { milliseconds } from "./numbers.js";

/** Save messages as the API takes them, with images, times, caches and release of each answer. */
export function saveAsJson(conversation) {
  const messages = conversation.turns.flatMap((turn) => [
    questionMessage(turn),
    { role: "assistant", content: turn.answer, finish_reason: turn.finishReason, usage: turn.usage, tandem: turn.facts },
  ]);
  save("conversation.json", "application/json", JSON.stringify({ messages }, null, 2));
}

/** Save questions and answers as Markdown, without the images. */
export function saveAsText(conversation) {
  const turns = conversation.turns.map((turn) => {
    const images = turn.images.map((image, index) => `_${text("asked_image", { n: index + 1, name: image.name })}_`);
    const facts = turn.facts
      ? [`${turn.facts.release}, ${milliseconds(turn.facts.timings_ms.first_token)} ${text("first_token")}`]
      : [];
    return [`## ${turn.text}`, ...images, turn.answer, ...facts].filter(Boolean).join("\n\n");
  });
  save("conversation.md", "text/markdown", `${turns.join("\n\n")}\n`);
}

function save(name, type, content) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([content], { type }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}
