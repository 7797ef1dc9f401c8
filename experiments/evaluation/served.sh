#!/usr/bin/env bash
# Evaluate a model through a server started here, by default vLLM on this node's GPUs; from the repository root:
#   MODEL=outputs/…/model CONFIG=configs/evaluate/paper.yaml OUT=served.json experiments/evaluation/served.sh --only '[bold]'
# Rerun the same command to resume. Arguments are passed on to evaluate (--server.concurrency 256).
# Another server: SERVE="transformers serve" SERVE_OPTIONS="--device cuda --dtype bfloat16 --continuous-batching"
set -eu
: "${MODEL:?must be the folder or Hub id of a model}" "${CONFIG:?must be a configuration of evaluate}"
OUT=${OUT:-results.json}
PORT=${PORT:-8000}
SERVE=${SERVE:-vllm serve}
# Ignore the sampling settings that come with the model, as evaluate does without a server.
SERVE_OPTIONS=${SERVE_OPTIONS---generation-config vllm}
address=http://127.0.0.1:$PORT

# shellcheck disable=SC2086 # each holds several words
$SERVE "$MODEL" --host 127.0.0.1 --port "$PORT" $SERVE_OPTIONS >"$OUT.server.log" 2>&1 &
server=$!
trap 'kill "$server" 2>/dev/null || true; wait "$server" || true' EXIT

answers="import urllib.request; urllib.request.urlopen('$address/health', timeout=5)"
until python -c "$answers" 2>/dev/null; do
    kill -0 "$server" 2>/dev/null || { tail -n 20 "$OUT.server.log" >&2; exit 1; }
    sleep 1
done

python -m inscp evaluate --config "$CONFIG" --model "$MODEL" --out "$OUT" \
    --server.address "$address/v1" --server.model "$MODEL" --server.concurrency 64 "$@"
