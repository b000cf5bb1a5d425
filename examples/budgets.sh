#!/usr/bin/env bash
# Money for a pilot: a plan for all of its keys, a budget for each user, and what happens when it is gone.
# Wants a running daemon with a provider key for OpenAI, and curl.
set -euo pipefail

proxy=${1:-http://127.0.0.1:4141}

echo "== each key of the pilot has a dollar a day, all of them together have fifty a month"
sidekey plan create --name pilot --models 'gpt-4o-mini*' --rpm 20 --budget 1/day --shared-budget 50/month

echo "== a user has two dollars a week, whatever keys they hold; they are told of at half, and at the end"
sidekey user set carol --budget '2/week,zone=America/New_York,alert=50:100'
key=$(sidekey key create --name carol-laptop --user carol --plan pilot)

echo "== what would become of a request, without sending it"
sidekey explain --key carol-laptop --model gpt-4o-mini --input-tokens 2000 --max-tokens 500

echo "== it is sent"
curl -sS -f "$proxy/openai/v1/chat/completions" \
  -H "Authorization: Bearer $key" -H 'Content-Type: application/json' \
  -d '{"model": "gpt-4o-mini", "max_tokens": 50, "messages": [{"role": "user", "content": "Say hello."}]}'
echo

echo "== the money is cut to a thousandth of a cent: the next request is refused, and says whose budget it was"
sidekey user set carol --budget 0.00001/week >/dev/null
curl -sS "$proxy/openai/v1/chat/completions" \
  -H "Authorization: Bearer $key" -H 'Content-Type: application/json' \
  -d '{"model": "gpt-4o-mini", "max_tokens": 50, "messages": [{"role": "user", "content": "Say hello."}]}'
echo

echo "== how it stands"
sidekey user show carol
sidekey plan show pilot
sidekey alerts --limit 5

echo "== all of it goes"
sidekey key delete carol-laptop
sidekey user delete carol
sidekey plan delete pilot
