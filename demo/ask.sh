#!/usr/bin/env bash
# Ask a server that `asr serve demo/out/model` has started; headers tell the route.
set -euo pipefail
URL=${1:-http://127.0.0.1:8000}
curl --silent --show-error --include "$URL/v1/chat/completions" \
  --header 'content-type: application/json' \
  --data '{
    "model": "auto",
    "messages": [{"role": "user", "content": "rent is due on 3 august 2025. iso please"}],
    "max_tokens": 24
  }'
echo
