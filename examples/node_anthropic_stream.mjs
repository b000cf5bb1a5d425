// Streams a message through sidekey with Anthropic's SDK.
// Wants ANTHROPIC_BASE_URL and ANTHROPIC_API_KEY, as `sidekey exec` and `sidekey env` set them.

import Anthropic from "@anthropic-ai/sdk";

// The SDK reads both variables; nothing here knows of sidekey.
const client = new Anthropic();
const asked = {
  model: process.env.MODEL ?? "claude-sonnet-4-20250514",
  max_tokens: 64,
  messages: [{ role: "user", content: "Say hello in five words." }],
};
const stream = client.messages.stream(asked).on("text", (text) => process.stdout.write(text));
await stream.finalMessage();
console.log(`\nrequest ${stream.response?.headers.get("x-sidekey-request-id")}`);
