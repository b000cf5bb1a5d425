"""What the checks share: the addresses and keys given by the test, a relay that counts, and the report.

Every check prints one line, "ok ..." or "FAIL ...". The relay stands between an SDK and sidekey and counts what the
SDK really sends, retries included.
"""

import http.client
import os
import sys
import threading
import time
import traceback
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

SIDEKEY = os.environ["SIDEKEY_URL"]
KEY = os.environ["SIDEKEY_KEY"]
WRONG = os.environ["SIDEKEY_KEY_WRONG"]
DISABLED = os.environ["SIDEKEY_KEY_DISABLED"]
OTHER_MODELS = os.environ["SIDEKEY_KEY_OTHER_MODELS"]
LIMITED = os.environ["SIDEKEY_KEY_LIMITED"]

HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "te", "trailer", "upgrade", "content-length", "host"}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def _relay(self):
        self.server.requests.append((time.monotonic(), self.path))
        target = urlsplit(SIDEKEY)
        length = int(self.headers.get("content-length") or 0)
        body = self.rfile.read(length)
        upstream = http.client.HTTPConnection(target.hostname, target.port, timeout=30)
        upstream.putrequest(self.command, self.path, skip_accept_encoding=True)
        for name, value in self.headers.items():
            if name.lower() not in HOP_BY_HOP - {"host"} and name.lower() != "host":
                upstream.putheader(name, value)
        upstream.putheader("content-length", str(len(body)))
        upstream.endheaders(body)
        answer = upstream.getresponse()
        self.server.statuses.append(answer.status)
        self.send_response_only(answer.status, answer.reason)
        for name, value in answer.getheaders():
            if name.lower() not in HOP_BY_HOP:
                self.send_header(name, value)
        self.send_header("connection", "close")
        self.end_headers()
        while piece := answer.read1(65536):
            self.wfile.write(piece)
            self.wfile.flush()
        self.close_connection = True
        upstream.close()

    do_GET = do_POST = do_DELETE = _relay

    def log_message(self, *args):
        pass


class Relay:
    """Forwards to sidekey and remembers when what was asked for, and the statuses answered."""

    def __init__(self):
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self.server.daemon_threads = True
        self.server.requests = []
        self.server.statuses = []
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def clear(self):
        self.server.requests.clear()
        self.server.statuses.clear()

    @property
    def count(self):
        return len(self.server.requests)

    @property
    def statuses(self):
        return list(self.server.statuses)


relay = Relay()
_results = []


def check(name, run):
    """Runs one check; an exception is its failure."""
    relay.clear()
    try:
        run()
    except Exception as error:  # noqa: BLE001: whatever an SDK raises is a finding
        where = traceback.extract_tb(error.__traceback__)[-1]
        print(f"FAIL {name}: {type(error).__name__}: {error} ({os.path.basename(where.filename)}:{where.lineno})", flush=True)
        _results.append(False)
    else:
        print(f"ok {name}", flush=True)
        _results.append(True)


def equal(got, want, what="value"):
    if got != want:
        raise AssertionError(f"{what} is {got!r} instead of {want!r}")


def raises(error_class, run, status=None, requests=1):
    """`run` must raise exactly this class, after exactly so many requests."""
    try:
        run()
    except error_class as error:
        if type(error) is not error_class:
            raise AssertionError(f"raised {type(error).__name__} instead of {error_class.__name__}") from error
        if status is not None:
            got = getattr(error, "status_code", None) or getattr(error, "code", None)
            equal(got, status, "status")
        equal(relay.count, requests, "number of requests")
        return error
    raise AssertionError(f"did not raise {error_class.__name__}")


def exhaust(path="/openai/v1/chat/completions"):
    """Uses up the requests of the limited key; what follows is refused for about a second."""
    target = urlsplit(SIDEKEY)
    connection = http.client.HTTPConnection(target.hostname, target.port, timeout=30)
    for _ in range(1000):
        body = b'{"model":"gpt-4o-mini","messages":[]}'
        headers = {"authorization": f"Bearer {LIMITED}", "content-type": "application/json"}
        connection.request("POST", path, body, headers)
        answer = connection.getresponse()
        answer.read()
        if answer.status == 429:
            return
    raise AssertionError("the limited key is never refused")


def waits(run):
    """`run` is refused once or more, waits as told, and succeeds, all within three seconds.

    Its client must exist already: making one can take as long as the wait.
    """
    exhaust()
    relay.clear()
    started = time.monotonic()
    run()
    elapsed = time.monotonic() - started
    if 429 not in relay.statuses:
        raise AssertionError(f"was not refused: {relay.statuses}")
    equal(relay.statuses[-1], 200, "last status")
    if elapsed > 3:
        raise AssertionError(f"slept {elapsed:.1f} s; retry-after-ms asked for one")


def refused(error_class, run):
    """`run`, told not to retry, raises the class of a rate limit. Its client must exist already."""
    exhaust()
    relay.clear()
    raises(error_class, run, 429)


def finish():
    """Ends the script: 0 when checks ran and all passed."""
    print(f"{sum(_results)} of {len(_results)} checks passed", flush=True)
    sys.exit(0 if _results and all(_results) else 1)
