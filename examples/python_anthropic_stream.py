"""Streams a message through sidekey with Anthropic's SDK.

Wants ANTHROPIC_BASE_URL and ANTHROPIC_API_KEY, as `sidekey exec` and `sidekey env` set them.
"""

import os

import anthropic

# The SDK reads both variables; nothing here knows of sidekey.
client = anthropic.Anthropic()
with client.messages.stream(
    model=os.environ.get("MODEL", "claude-sonnet-4-20250514"),
    max_tokens=64,
    messages=[{"role": "user", "content": "Say hello in five words."}],
) as stream:
    for text in stream.text_stream:
        print(text, end="", flush=True)
    print()
    print("request", stream.response.headers["x-sidekey-request-id"])
