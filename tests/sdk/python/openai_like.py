"""OpenAI's SDK, and Groq's, which is generated from the same mould."""

import groq
import openai

from harness import DISABLED, KEY, LIMITED, OTHER_MODELS, WRONG, check, equal, raises, refused, relay, waits

MESSAGES = [{"role": "user", "content": "Say hello."}]
TOOLS = [{"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object", "properties": {}}}}]


def openai_client(key=KEY, provider="openai", **more):
    return openai.OpenAI(api_key=key, base_url=f"{relay.url}/{provider}/v1", **more)


def groq_client(key=KEY, provider="groq", **more):
    return groq.Groq(api_key=key, base_url=f"{relay.url}/{provider}", **more)


def run_one(name, sdk, client, model):
    def chat(made, **more):
        return made.chat.completions.create(model=model, messages=MESSAGES, **more)

    def plain():
        answer = chat(client())
        equal(answer.choices[0].message.content, "Hello from the provider")
        equal(answer.usage.total_tokens, 12)

    def stream():
        parts = [c.choices[0].delta.content or "" for c in chat(client(), stream=True) if c.choices]
        equal("".join(parts), "Hello from the provider")

    def tools():
        answer = chat(client(), tools=TOOLS)
        equal(answer.choices[0].message.tool_calls[0].function.name, "get_weather")

    def raw_headers():
        answer = client().chat.completions.with_raw_response.create(model=model, messages=MESSAGES)
        equal(bool(answer.headers.get("x-sidekey-request-id")), True, "x-sidekey-request-id is there")

    check(f"{name} chat", plain)
    check(f"{name} stream", stream)
    check(f"{name} tools", tools)
    check(f"{name} headers", raw_headers)
    check(f"{name} 401", lambda: raises(sdk.AuthenticationError, lambda: chat(client(WRONG)), 401))
    check(f"{name} 403 disabled", lambda: raises(sdk.PermissionDeniedError, lambda: chat(client(DISABLED)), 403))
    check(f"{name} 403 model", lambda: raises(sdk.PermissionDeniedError, lambda: chat(client(OTHER_MODELS)), 403))
    hasty, patient = client(LIMITED, max_retries=0), client(LIMITED, max_retries=3)
    check(f"{name} 429 raised", lambda: refused(sdk.RateLimitError, lambda: chat(hasty)))
    check(f"{name} 429 waited for", lambda: waits(lambda: chat(patient)))
    # 502 is retried by default: `x-should-retry: false` must stop that.
    refusing = f"refusing-{name}"
    check(f"{name} 502 not retried", lambda: raises(sdk.InternalServerError, lambda: chat(client(provider=refusing)), 502))


def error_details():
    error = raises(openai.AuthenticationError, lambda: openai_client(WRONG).models.list(), 401)
    equal(error.code, "invalid_api_key", "code")
    equal(error.type, "invalid_request_error", "type")


def responses():
    answer = openai_client().responses.create(model="gpt-4o-mini", input="Say hello.")
    equal(answer.output_text, "Hello from the provider")


def responses_stream():
    events = list(openai_client().responses.create(model="gpt-4o-mini", input="Say hello.", stream=True))
    equal(events[-1].type, "response.completed")
    equal(events[-1].response.usage.total_tokens, 12)


def embeddings():
    answer = openai_client().embeddings.create(model="text-embedding-3-small", input="x", encoding_format="float")
    equal(answer.data[0].embedding, [0.5, -0.25])


def azure():
    client = openai.AzureOpenAI(api_key=KEY, azure_endpoint=f"{relay.url}/azure-openai", api_version="2024-10-21")
    answer = client.chat.completions.create(model="gpt-4o-mini", messages=MESSAGES)
    equal(answer.choices[0].message.content, "Hello from the provider")


def run():
    run_one("py-openai", openai, openai_client, "gpt-4o-mini")
    check("py-openai error details", error_details)
    check("py-openai responses", responses)
    check("py-openai responses stream", responses_stream)
    check("py-openai embeddings", embeddings)
    check("py-openai azure", azure)
    run_one("py-groq", groq, groq_client, "llama-3.1-8b-instant")
