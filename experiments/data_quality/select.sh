#!/usr/bin/env bash
# Four selections from the same pool, for experiment.yaml; finished ones are skipped.
#   bash experiments/data_quality/select.sh        (from the repository root, with the data in ./data)
set -euo pipefail
here=experiments/data_quality
out=outputs/data_quality
instructions='{path: data/train/zh-TW/alpaca.jsonl, limit: 2000}'
encyclopaedia='{path: data/train/zh-TW/wiki.jsonl, limit: 600}'
declare -A data=([lowest]=$instructions [highest]=$instructions [random]=$instructions [wiki]=$encyclopaedia)
declare -A band=([lowest]='{upper: 0.3333}' [highest]='{lower: 0.6667}' [random]='{}' [wiki]='{}')

[ -f $out/pool_scores/_report.json ] || python -m inscp score --config $here/score_pool.yaml
for arm in lowest highest random wiki; do
  chosen=$out/$arm
  [ -d $chosen/selected ] || python -m inscp select --config $here/select.yaml --data "${data[$arm]}" \
    --filters+ "{class_path: Perplexity, init_args: ${band[$arm]}}" --out $chosen/selected
done
