"""The SDKs of Google, Mistral and Cohere."""

import cohere
from google import genai
from google.genai import errors as google_errors
from google.genai import types
from mistralai.client import Mistral
from mistralai.client import errors as mistral_errors

from harness import DISABLED, KEY, LIMITED, WRONG, check, equal, raises, refused, relay, waits

HELLO = "Hello from the provider"
MESSAGES = [{"role": "user", "content": "Say hello."}]


def google(key=KEY):
    return genai.Client(api_key=key, http_options=types.HttpOptions(base_url=f"{relay.url}/gemini"))


def generate(client, **more):
    return client.models.generate_content(model="gemini-2.0-flash", contents="Say hello.", **more)


def google_plain():
    answer = generate(google())
    equal(answer.text, HELLO)
    equal(answer.usage_metadata.total_token_count, 12)


def google_stream():
    # A client closes its connections when it is collected, open streams included: it is kept.
    client = google()
    pieces = client.models.generate_content_stream(model="gemini-2.0-flash", contents="Say hello.")
    equal("".join(piece.text or "" for piece in pieces), HELLO)


def google_tools():
    declared = types.FunctionDeclaration(name="get_weather", parameters={"type": "OBJECT", "properties": {}})
    config = types.GenerateContentConfig(tools=[types.Tool(function_declarations=[declared])])
    equal(generate(google(), config=config).function_calls[0].name, "get_weather")


def google_embeddings():
    client = google()
    answer = client.models.embed_content(model="gemini-embedding-001", contents="x")
    equal(answer.embeddings[0].values, [0.5, -0.25])


def run_google():
    check("py-google generate", google_plain)
    check("py-google stream", google_stream)
    check("py-google tools", google_tools)
    check("py-google embeddings", google_embeddings)
    check("py-google 401", lambda: raises(google_errors.ClientError, lambda: generate(google(WRONG)), 401))
    check("py-google 403", lambda: raises(google_errors.ClientError, lambda: generate(google(DISABLED)), 403))
    limited = google(LIMITED)
    check("py-google 429", lambda: refused(google_errors.ClientError, lambda: generate(limited)))


def mistral(key=KEY):
    return Mistral(api_key=key, server_url=f"{relay.url}/mistral")


def complete(client, **more):
    return client.chat.complete(model="mistral-small-latest", messages=MESSAGES, **more)


def mistral_plain():
    equal(complete(mistral()).choices[0].message.content, HELLO)


def mistral_stream():
    events = mistral().chat.stream(model="mistral-small-latest", messages=MESSAGES)
    equal("".join(e.data.choices[0].delta.content or "" for e in events if e.data.choices), HELLO)


def mistral_tools():
    tools = [{"type": "function", "function": {"name": "get_weather", "parameters": {}}}]
    equal(complete(mistral(), tools=tools).choices[0].message.tool_calls[0].function.name, "get_weather")


def mistral_embeddings():
    answer = mistral().embeddings.create(model="mistral-embed", inputs=["x"])
    equal(answer.data[0].embedding, [0.5, -0.25])


def run_mistral():
    check("py-mistral chat", mistral_plain)
    check("py-mistral stream", mistral_stream)
    check("py-mistral tools", mistral_tools)
    check("py-mistral embeddings", mistral_embeddings)
    check("py-mistral 401", lambda: raises(mistral_errors.SDKError, lambda: complete(mistral(WRONG)), 401))
    check("py-mistral 403", lambda: raises(mistral_errors.SDKError, lambda: complete(mistral(DISABLED)), 403))
    limited = mistral(LIMITED)
    check("py-mistral 429", lambda: refused(mistral_errors.SDKError, lambda: complete(limited)))


def cohere_client(key=KEY):
    return cohere.ClientV2(api_key=key, base_url=f"{relay.url}/cohere")


def converse(client, retries=0, **more):
    return client.chat(model="command-r", messages=MESSAGES, request_options={"max_retries": retries}, **more)


def cohere_plain():
    equal(converse(cohere_client()).message.content[0].text, HELLO)


def cohere_stream():
    events = cohere_client().chat_stream(model="command-r", messages=MESSAGES)
    equal("".join(e.delta.message.content.text for e in events if e.type == "content-delta"), HELLO)


def cohere_embeddings():
    answer = cohere_client().embed(
        model="embed-v4.0", texts=["x"], input_type="search_query", embedding_types=["float"]
    )
    equal(answer.embeddings.float_[0], [0.5, -0.25])


def run_cohere():
    check("py-cohere chat", cohere_plain)
    check("py-cohere stream", cohere_stream)
    check("py-cohere embeddings", cohere_embeddings)
    check("py-cohere 401", lambda: raises(cohere.UnauthorizedError, lambda: converse(cohere_client(WRONG)), 401))
    check("py-cohere 403", lambda: raises(cohere.ForbiddenError, lambda: converse(cohere_client(DISABLED)), 403))
    limited = cohere_client(LIMITED)
    check("py-cohere 429 raised", lambda: refused(cohere.TooManyRequestsError, lambda: converse(limited)))
    check("py-cohere 429 waited for", lambda: waits(lambda: converse(limited, retries=3)))


def run():
    run_google()
    run_mistral()
    run_cohere()
