"""Anthropic's SDK."""

import anthropic

from harness import DISABLED, KEY, LIMITED, OTHER_MODELS, WRONG, check, equal, raises, refused, relay, waits

ARGS = {"model": "claude-sonnet-4-20250514", "max_tokens": 64, "messages": [{"role": "user", "content": "Say hello."}]}
TOOLS = [{"name": "get_weather", "input_schema": {"type": "object", "properties": {}}}]


def client(key=KEY, provider="anthropic", **more):
    return anthropic.Anthropic(api_key=key, base_url=f"{relay.url}/{provider}", **more)


def message(made, **more):
    return made.messages.create(**ARGS, **more)


def plain():
    answer = message(client())
    equal(answer.content[0].text, "Hello from the provider")
    equal(answer.usage.output_tokens, 5)


def bearer():
    answer = message(anthropic.Anthropic(auth_token=KEY, api_key=None, base_url=f"{relay.url}/anthropic"))
    equal(answer.content[0].text, "Hello from the provider")


def stream():
    with client().messages.stream(**ARGS) as streaming:
        equal("".join(streaming.text_stream), "Hello from the provider")
        equal(streaming.get_final_message().usage.output_tokens, 5)


def tools():
    equal(message(client(), tools=TOOLS).content[0].name, "get_weather")


def run():
    check("py-anthropic message", plain)
    check("py-anthropic bearer", bearer)
    check("py-anthropic stream", stream)
    check("py-anthropic tools", tools)
    check("py-anthropic 401", lambda: raises(anthropic.AuthenticationError, lambda: message(client(WRONG)), 401))
    check("py-anthropic 403 disabled", lambda: raises(anthropic.PermissionDeniedError, lambda: message(client(DISABLED)), 403))
    check("py-anthropic 403 model", lambda: raises(anthropic.PermissionDeniedError, lambda: message(client(OTHER_MODELS)), 403))
    hasty, patient = client(LIMITED, max_retries=0), client(LIMITED, max_retries=3)
    check("py-anthropic 429 raised", lambda: refused(anthropic.RateLimitError, lambda: message(hasty)))
    check("py-anthropic 429 waited for", lambda: waits(lambda: message(patient)))
    rejected = lambda: message(client(provider="refusing-py-anthropic"))  # noqa: E731
    check("py-anthropic 502 not retried", lambda: raises(anthropic.InternalServerError, rejected, 502))
