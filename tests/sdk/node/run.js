// Runs every check of the Node SDKs against a running sidekey. What it is given, and what the relay is for, is told in
// ../python/harness.py: this is the same in another language.

import http from "node:http";
import Anthropic from "@anthropic-ai/sdk";
import OpenAI, { AzureOpenAI } from "openai";

const {
  SIDEKEY_URL,
  SIDEKEY_KEY: KEY,
  SIDEKEY_KEY_WRONG: WRONG,
  SIDEKEY_KEY_DISABLED: DISABLED,
  SIDEKEY_KEY_OTHER_MODELS: OTHER_MODELS,
  SIDEKEY_KEY_LIMITED: LIMITED,
} = process.env;

const statuses = [];
let requests = 0;
const relay = http.createServer((incoming, outgoing) => {
  requests += 1;
  const { host, ...headers } = incoming.headers;
  const target = new URL(incoming.url, SIDEKEY_URL);
  const upstream = http.request(target, { method: incoming.method, headers, agent: false }, (answer) => {
    statuses.push(answer.statusCode);
    outgoing.writeHead(answer.statusCode, answer.headers);
    answer.pipe(outgoing);
  });
  upstream.on("error", () => outgoing.destroy());
  incoming.pipe(upstream);
});
await new Promise((listening) => relay.listen(0, "127.0.0.1", listening));
const url = `http://127.0.0.1:${relay.address().port}`;

function clear() {
  requests = 0;
  statuses.length = 0;
}

const results = [];
async function check(name, run) {
  clear();
  try {
    await run();
    console.log(`ok ${name}`);
    results.push(true);
  } catch (error) {
    console.log(`FAIL ${name}: ${error?.constructor?.name}: ${error?.message}`);
    results.push(false);
  }
}

function equal(got, want, what = "value") {
  if (JSON.stringify(got) !== JSON.stringify(want)) {
    throw new Error(`${what} is ${JSON.stringify(got)} instead of ${JSON.stringify(want)}`);
  }
}

async function raises(errorClass, status, run) {
  try {
    await run();
  } catch (error) {
    equal(error.constructor.name, errorClass.name, "the class raised");
    equal(error.status, status, "status");
    equal(requests, 1, "number of requests");
    return error;
  }
  throw new Error(`did not raise ${errorClass.name}`);
}

async function exhaust() {
  for (let n = 0; n < 1000; n += 1) {
    const answer = await fetch(`${SIDEKEY_URL}/openai/v1/chat/completions`, {
      method: "POST",
      headers: { authorization: `Bearer ${LIMITED}`, "content-type": "application/json" },
      body: '{"model":"gpt-4o-mini","messages":[]}',
    });
    await answer.arrayBuffer();
    if (answer.status === 429) {
      clear();
      return;
    }
  }
  throw new Error("the limited key is never refused");
}

async function waits(run) {
  await exhaust();
  const started = performance.now();
  await run();
  const elapsed = performance.now() - started;
  if (!statuses.includes(429)) throw new Error(`was not refused: ${statuses}`);
  equal(statuses.at(-1), 200, "last status");
  if (elapsed > 3000) throw new Error(`slept ${elapsed} ms; retry-after-ms asked for one second`);
}

async function refused(errorClass, run) {
  await exhaust();
  await raises(errorClass, 429, run);
}

const HELLO = "Hello from the provider";
const messages = [{ role: "user", content: "Say hello." }];

async function runOpenAI() {
  const client = (apiKey = KEY, more = {}, provider = "openai") =>
    new OpenAI({ apiKey, baseURL: `${url}/${provider}/v1`, ...more });
  const chat = (made, more = {}) => made.chat.completions.create({ model: "gpt-4o-mini", messages, ...more });

  await check("node-openai chat", async () => {
    const answer = await chat(client());
    equal(answer.choices[0].message.content, HELLO);
    equal(answer.usage.total_tokens, 12);
  });
  await check("node-openai stream", async () => {
    let text = "";
    for await (const chunk of await chat(client(), { stream: true })) text += chunk.choices[0]?.delta?.content ?? "";
    equal(text, HELLO);
  });
  await check("node-openai tools", async () => {
    const tools = [{ type: "function", function: { name: "get_weather", parameters: { type: "object", properties: {} } } }];
    equal((await chat(client(), { tools })).choices[0].message.tool_calls[0].function.name, "get_weather");
  });
  await check("node-openai responses", async () => {
    equal((await client().responses.create({ model: "gpt-4o-mini", input: "Say hello." })).output_text, HELLO);
  });
  await check("node-openai embeddings", async () => {
    const asked = { model: "text-embedding-3-small", input: "x", encoding_format: "float" };
    equal((await client().embeddings.create(asked)).data[0].embedding, [0.5, -0.25]);
  });
  await check("node-openai azure", async () => {
    const azure = new AzureOpenAI({ apiKey: KEY, endpoint: `${url}/azure-openai`, apiVersion: "2024-10-21" });
    equal((await chat(azure)).choices[0].message.content, HELLO);
  });
  await check("node-openai 401", () => raises(OpenAI.AuthenticationError, 401, () => chat(client(WRONG))));
  await check("node-openai 403 disabled", () => raises(OpenAI.PermissionDeniedError, 403, () => chat(client(DISABLED))));
  await check("node-openai 403 model", () => raises(OpenAI.PermissionDeniedError, 403, () => chat(client(OTHER_MODELS))));
  await check("node-openai 429 raised", () => refused(OpenAI.RateLimitError, () => chat(client(LIMITED, { maxRetries: 0 }))));
  await check("node-openai 429 waited for", () => waits(() => chat(client(LIMITED, { maxRetries: 3 }))));
  await check("node-openai 502 not retried", () =>
    raises(OpenAI.InternalServerError, 502, () => chat(client(KEY, {}, "refusing-node-openai"))),
  );
}

async function runAnthropic() {
  const client = (apiKey = KEY, more = {}, provider = "anthropic") =>
    new Anthropic({ apiKey, authToken: null, baseURL: `${url}/${provider}`, ...more });
  const asked = { model: "claude-sonnet-4-20250514", max_tokens: 64, messages };
  const message = (made, more = {}) => made.messages.create({ ...asked, ...more });

  await check("node-anthropic message", async () => {
    const answer = await message(client());
    equal(answer.content[0].text, HELLO);
    equal(answer.usage.output_tokens, 5);
  });
  await check("node-anthropic stream", async () => {
    const stream = client().messages.stream(asked);
    equal(await stream.finalText(), HELLO);
  });
  await check("node-anthropic tools", async () => {
    const tools = [{ name: "get_weather", input_schema: { type: "object", properties: {} } }];
    equal((await message(client(), { tools })).content[0].name, "get_weather");
  });
  await check("node-anthropic 401", () => raises(Anthropic.AuthenticationError, 401, () => message(client(WRONG))));
  await check("node-anthropic 403 disabled", () =>
    raises(Anthropic.PermissionDeniedError, 403, () => message(client(DISABLED))),
  );
  await check("node-anthropic 403 model", () =>
    raises(Anthropic.PermissionDeniedError, 403, () => message(client(OTHER_MODELS))),
  );
  await check("node-anthropic 429 raised", () =>
    refused(Anthropic.RateLimitError, () => message(client(LIMITED, { maxRetries: 0 }))),
  );
  await check("node-anthropic 429 waited for", () => waits(() => message(client(LIMITED, { maxRetries: 3 }))));
  await check("node-anthropic 502 not retried", () =>
    raises(Anthropic.InternalServerError, 502, () => message(client(KEY, {}, "refusing-node-anthropic"))),
  );
}

await runOpenAI();
await runAnthropic();
const passed = results.filter(Boolean).length;
console.log(`${passed} of ${results.length} checks passed`);
process.exit(results.length > 0 && passed === results.length ? 0 : 1);
