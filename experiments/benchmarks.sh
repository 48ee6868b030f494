#!/usr/bin/env bash
# Measure three small benchmarks of the runs of extreme_memorization that have none yet.
# Needs: pip install "goldfish[benchmarks]"
set -euo pipefail
python "$(dirname "$0")/benchmarks_tasks.py" logs/benchmarks
for result in logs/extreme_memorization/*/result.json; do
  run=$(dirname "$result")
  [ -f "$run/evaluations/claims/summary.json" ] ||
    HF_HUB_OFFLINE=1 goldfish-eval run="$run" out="$run/evaluations/claims" evaluation.membership=false evaluation.training_overlap=false \
      evaluation.suffix_tokens=8 task_folder=logs/benchmarks task_limit=100 'tasks=[capitals,continents,nationalities]'
done
