// The official JavaScript client against a running door.
//
//   node openai.mjs BASE_URL IMAGE TOOLS_BASE_URL TOOLS_KEY
//
// Prints the name of each check that passed. The first that fails ends the process with its error.

import assert from "node:assert/strict";
import {createHash} from "node:crypto";
import {createReadStream, readFileSync} from "node:fs";
import {createRequire} from "node:module";
import {pathToFileURL} from "node:url";

const packages = createRequire(pathToFileURL(`${process.env.TANDEM_NODE}/package.json`));
const OpenAI = packages("openai");
const [baseURL, image, toolsURL, toolsKey] = process.argv.slice(2);
const client = new OpenAI({baseURL, apiKey: "none"});
const withTools = new OpenAI({baseURL: toolsURL, apiKey: toolsKey});

const bytes = readFileSync(image);
const url = `data:image/png;base64,${bytes.toString("base64")}`;
const ask = (of, text = "Is the bag made of leather?") =>
  [{role: "user", content: [{type: "image_url", image_url: {url: of}}, {type: "text", text}]}];
const request = {model: "default", messages: ask(url)};
const weather = {
  type: "function",
  function: {
    name: "weather",
    parameters: {
      type: "object",
      properties: {city: {enum: ["Oslo", "Zürich"]}},
      required: ["city"],
      additionalProperties: false,
    },
  },
};
const toolRequest = {
  model: "default",
  messages: [{role: "user", content: "How warm is it?"}],
  tools: [weather],
  tool_choice: "required",
  parallel_tool_calls: false,
  max_tokens: 200,
};

const checks = {
  async "a whole answer, and a stream with the same text"() {
    const whole = await client.chat.completions.create(request);
    const stream = await client.chat.completions.create({...request, stream: true, stream_options: {include_usage: true}});
    let text = "";
    let usage = null;
    for await (const chunk of stream) {
      text += chunk.choices[0]?.delta.content ?? "";
      usage = chunk.usage ?? usage;
    }
    assert.ok(text);
    assert.equal(text, whole.choices[0].message.content);
    assert.equal(usage.completion_tokens, whole.usage.completion_tokens);
  },
  async "an uploaded file"() {
    const file = await client.files.create({file: createReadStream(image), purpose: "vision"});
    assert.equal(file.id, createHash("sha256").update(bytes).digest("hex"));
    const named = await client.chat.completions.create({...request, messages: ask(`tandem:${file.id}`)});
    assert.ok(named.choices[0].message.content);
  },
  async "models"() {
    const names = [];
    for await (const model of client.models.list()) names.push(model.id);
    assert.deepEqual(names.sort(), ["default", "tandem-demo-v1.1.0"]);
  },
  async "structured output"() {
    const schema = {enum: ["leather", "cloth"]};
    const answer = await client.chat.completions.create({
      ...request, response_format: {type: "json_schema", json_schema: {name: "material", schema}},
    });
    assert.ok(schema.enum.includes(JSON.parse(answer.choices[0].message.content)));
  },
  async "a call of a tool, whole and streamed"() {
    const whole = await withTools.chat.completions.create(toolRequest);
    assert.equal(whole.choices[0].finish_reason, "tool_calls");
    const [call] = whole.choices[0].message.tool_calls;
    assert.ok(["Oslo", "Zürich"].includes(JSON.parse(call.function.arguments).city));
    const runner = withTools.chat.completions.stream(toolRequest);
    const streamed = await runner.finalChatCompletion();
    assert.equal(streamed.choices[0].message.tool_calls[0].function.arguments, call.function.arguments);
  },
  async "errors by class, code and place"() {
    const failing = async (promise, type, code) => {
      const error = await promise.then(() => null, (one) => one);
      assert.ok(error instanceof type, String(error));
      assert.equal(error.code, code);
      assert.ok(error.requestID);
    };
    await failing(client.chat.completions.create({...request, messages: []}), OpenAI.BadRequestError, "NO_MESSAGES");
    await failing(client.chat.completions.create({...request, model: "no-v1.0.0"}), OpenAI.NotFoundError, "UNKNOWN_RELEASE");
    await failing(
      client.chat.completions.create({...request, messages: ask("https://example.com/a.png")}),
      OpenAI.BadRequestError, "IMAGE_URLS_DISABLED",
    );
    const stranger = new OpenAI({baseURL: toolsURL, apiKey: "wrong"});
    const refused = await stranger.models.list().then(() => null, (one) => one);
    assert.ok(refused instanceof OpenAI.AuthenticationError, String(refused));
  },
  async "a stream that is left"() {
    const long = {...request, stream: true, max_tokens: 900, ignore_eos: true};
    const stream = await client.chat.completions.create(long);
    for await (const chunk of stream) {
      if (chunk.choices[0]?.delta.content) break;
    }
    assert.ok((await client.chat.completions.create(request)).choices[0].message.content);
  },
};

for (const [name, check] of Object.entries(checks)) {
  await check();
  console.log(name);
}
