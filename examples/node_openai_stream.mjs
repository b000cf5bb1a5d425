// Streams a chat through sidekey with OpenAI's SDK.
// Wants OPENAI_BASE_URL and OPENAI_API_KEY, as `sidekey exec` and `sidekey env` set them.

import OpenAI from "openai";

// The SDK reads both variables; nothing here knows of sidekey.
const client = new OpenAI();
const asked = {
  model: process.env.MODEL ?? "gpt-4o-mini",
  messages: [{ role: "user", content: "Say hello in five words." }],
  stream: true,
  // So that the provider reports the usage; sidekey estimates it otherwise.
  stream_options: { include_usage: true },
};
const { data, response } = await client.chat.completions.create(asked).withResponse();
// The chunk with the usage has no choices.
for await (const chunk of data) process.stdout.write(chunk.choices[0]?.delta?.content ?? "");
console.log(`\nrequest ${response.headers.get("x-sidekey-request-id")}`);
