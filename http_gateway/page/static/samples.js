// Sample images for a first visit, with questions one click away.

import { readImage } from "./attachments.js";
import { byId, element, icon } from "./dom.js";
import { language } from "./language.js";

const SAMPLES = [
  {
    name: "bag-and-bottle.png",
    label: "sample_bag",
    questions: {
      en: ["Describe the picture.", "Is the bag made of leather?", "What colour is the item on the right?"],
      zh: ["描述一下这张图片。", "这个包是真皮的吗？", "右边的商品是什么颜色的？"],
    },
  },
  {
    name: "umbrellas-and-watch.png",
    label: "sample_watch",
    questions: {
      en: ["Describe the picture.", "How many umbrellas are there?", "Is the watch red?"],
      zh: ["描述一下这张图片。", "图里有几件商品？", "手表在哪里？"],
    },
  },
];

/** Draw the samples in the current language. `onAsk` gets a question and a promise of its image. */
export function drawSamples(onAsk) {
  byId("samples").replaceChildren(
    ...SAMPLES.map((sample) => {
      const questions = sample.questions[language()].map((question) => {
        const ask = element("button", { type: "button", on: { click: () => onAsk(question, fetchImage(sample.name)) } }, question);
        ask.append(icon("send"));
        return element("li", {}, ask);
      });
      return element(
        "li",
        { class: "sample card" },
        element("img", { src: `/page/samples/${sample.name}`, label: sample.label }),
        element("ul", {}, ...questions),
      );
    }),
  );
}

async function fetchImage(name) {
  const response = await fetch(`/page/samples/${name}`);
  return readImage(new File([await response.blob()], name, { type: "image/png" }));
}
