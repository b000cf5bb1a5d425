"""Streams a chat through sidekey with OpenAI's SDK.

Wants OPENAI_BASE_URL and OPENAI_API_KEY, as `sidekey exec` and `sidekey env` set them.
"""

import os

import openai

# The SDK reads both variables; nothing here knows of sidekey.
client = openai.OpenAI()
stream = client.chat.completions.create(
    model=os.environ.get("MODEL", "gpt-4o-mini"),
    messages=[{"role": "user", "content": "Say hello in five words."}],
    stream=True,
    # So that the provider reports the usage; sidekey estimates it otherwise.
    stream_options={"include_usage": True},
)
for chunk in stream:
    # The chunk with the usage has no choices.
    if chunk.choices:
        print(chunk.choices[0].delta.content or "", end="", flush=True)
print()
print("request", stream.response.headers["x-sidekey-request-id"])
