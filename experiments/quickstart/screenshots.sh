#!/usr/bin/env bash
# Screenshots of a study: its report at desktop and phone width, light and dark, and its runs in MLflow.
#   bash experiments/quickstart/screenshots.sh outputs/experiments/quickstart pictures [EXPERIMENT]
# EXPERIMENT is its MLflow experiment, if that differs from the study's name. Needs chromium and mlflow.db.
set -euo pipefail
study=$1
out=$2
name=${3:-$(basename "$study")}
port=5057
mkdir -p "$out"
profile=$(mktemp -d)
browser=(chromium --headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking --hide-scrollbars
    "--user-data-dir=$profile")
mlflow ui --backend-store-uri sqlite:///mlflow.db --port "$port" >"$profile/mlflow.log" 2>&1 &
server=$!
trap 'kill "$server"; rm -rf "$profile"' EXIT

page="file://$(realpath "$study")/report/report.html"
for scheme in dark light; do
    setting=preferredColorScheme=$([[ $scheme == dark ]] && echo 0 || echo 1)
    "${browser[@]}" --blink-settings="$setting" --window-size=1200,2400 --screenshot="$out/report_$scheme.png" "$page"
    "${browser[@]}" --blink-settings="$setting" --window-size=500,2400 --screenshot="$out/phone_$scheme.png" "$page"
done
until curl --silent --fail "http://127.0.0.1:$port/health" >/dev/null; do sleep 1; done
experiment=$(mlflow experiments search 2>/dev/null | awk -v name="$name" '$2 == name {print $1}')
test -n "$experiment" || { echo "error: mlflow.db has no experiment $name. Give the one in the study's mlflow section." >&2; exit 2; }
"${browser[@]}" --window-size=1500,900 --virtual-time-budget=20000 --screenshot="$out/mlflow.png" \
    "http://127.0.0.1:$port/#/experiments/$experiment/runs?workflowType=machine_learning"
