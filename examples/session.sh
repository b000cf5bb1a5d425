#!/usr/bin/env bash
# A whole session, from nothing to the ledger, in a directory that is thrown away.
# Wants a real OpenAI key in REAL, and curl.
set -euo pipefail

: "${REAL:?put a real OpenAI key in REAL}"
folder=$(mktemp -d)
export SIDEKEY_DATA_DIR="$folder/data" SIDEKEY_CONFIG="$folder/sidekey.toml"

echo "== the data directory, the master key, the store"
sidekey init

echo "== the daemon"
sidekey run 2>"$folder/log" &
daemon=$!
trap 'kill "$daemon"; wait "$daemon" || true; rm -rf "$folder"' EXIT
curl -sS --retry 20 --retry-connrefused --retry-delay 1 -f http://127.0.0.1:4143/readyz

echo "== the real key goes in by a pipe, and is sealed"
printf %s "$REAL" | sidekey provider-key add openai --name main --stdin

echo "== the app gets a virtual key"
key=$(sidekey key create --name app --user alice --models 'gpt-4o*' --rpm 60)

echo "== the app streams"
curl -sS -N -f http://127.0.0.1:4141/openai/v1/chat/completions \
  -H "Authorization: Bearer $key" -H 'Content-Type: application/json' \
  -d '{"model": "gpt-4o-mini", "stream": true, "messages": [{"role": "user", "content": "Say hello."}]}'

echo "== another model is refused"
curl -sS http://127.0.0.1:4141/openai/v1/chat/completions \
  -H "Authorization: Bearer $key" -H 'Content-Type: application/json' \
  -d '{"model": "o3", "messages": [{"role": "user", "content": "Say hello."}]}'
echo

echo "== what was used"
sidekey usage --by model
sidekey ledger --limit 5

echo "== a revoked key is refused"
sidekey key revoke app >/dev/null
curl -sS http://127.0.0.1:4141/openai/v1/models -H "Authorization: Bearer $key"
echo
