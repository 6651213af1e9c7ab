// The images of the next question: dropped, pasted, chosen or photographed.

import { announce, byId, element, icon } from "./dom.js";
import { say, text } from "./language.js";

const TYPES = ["image/jpeg", "image/png", "image/webp", "image/gif", "image/bmp", "image/avif"];
const MAX_IMAGES = 8;
const MAX_MEGABYTES = 20;

/** @type {{name: string, url: string, data: string}[]} with `url` for this page and `data` for the server */
let images = [];

/** Return the images and forget them. */
export function takeImages() {
  const taken = images;
  images = [];
  draw();
  return taken;
}

export const hasImages = () => images.length > 0;

/** Read a file into an image. */
export async function readImage(file) {
  const data = await new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.addEventListener("load", () => resolve(reader.result));
    reader.addEventListener("error", () => reject(reader.error));
    reader.readAsDataURL(file);
  });
  return { name: file.name || "image", url: URL.createObjectURL(file), data };
}

async function addFiles(files) {
  byId("attach-problem").hidden = true;
  for (const file of files) {
    if (images.length >= MAX_IMAGES) {
      complain("too_many_images", { limit: MAX_IMAGES });
    } else if (file.size > MAX_MEGABYTES * 2 ** 20) {
      complain("image_too_large", { name: file.name, limit: MAX_MEGABYTES });
    } else if (!TYPES.includes(file.type) || !(await isImage(file))) {
      complain("not_an_image", { name: file.name });
    } else {
      images.push(await readImage(file));
    }
  }
  draw();
  announce(text("image_added", { n: images.length }));
  byId("question").focus();
}

async function isImage(file) {
  try {
    (await createImageBitmap(file)).close();
    return true;
  } catch {
    return false;
  }
}

function complain(key, values) {
  byId("attach-problem").hidden = false;
  say(byId("attach-problem"), key, values);
}

function draw() {
  const list = byId("attachments");
  list.hidden = images.length === 0;
  list.replaceChildren(
    ...images.map((image) =>
      element(
        "li",
        {},
        element("img", { src: image.url, alt: image.name }),
        element("button", { type: "button", label: "remove_image", v: image, on: { click: () => remove(image) } }, icon("close")),
      ),
    ),
  );
}

function remove(image) {
  images = images.filter((other) => other !== image);
  URL.revokeObjectURL(image.url);
  draw();
  byId("question").focus();
}

/** Listen for images. */
export function startAttachments() {
  for (const [opener, input] of [["add-images", "files"], ["take-photo", "camera"]]) {
    byId(input).accept = TYPES.join(",");
    byId(opener).addEventListener("click", () => byId(input).click());
    byId(input).addEventListener("change", ({ target }) => {
      addFiles([...target.files]);
      target.value = ""; // so that the same file can be chosen again
    });
  }
  document.addEventListener("paste", (event) => {
    if (byId("view-ask").hidden || document.querySelector("dialog[open]") || !event.clipboardData?.files.length) return;
    event.preventDefault();
    addFiles([...event.clipboardData.files]);
  });
  startDropping();
}

function startDropping() {
  const zone = byId("drop-zone");
  const brings = (event) => !byId("view-ask").hidden && event.dataTransfer?.types.includes("Files");
  document.addEventListener("dragenter", (event) => {
    if (brings(event)) zone.hidden = false;
  });
  document.addEventListener("dragover", (event) => {
    if (brings(event)) event.preventDefault();
  });
  zone.addEventListener("dragleave", () => {
    zone.hidden = true;
  });
  document.addEventListener("drop", (event) => {
    zone.hidden = true;
    if (!brings(event)) return;
    event.preventDefault();
    addFiles([...event.dataTransfer.files]);
  });
}
