#!/usr/bin/env bash
# Measure embeddings, BERTScore and MAUVE of the runs of k_sweep that have none yet. Needs: pip install "goldfish[mauve]"
set -euo pipefail
for result in logs/k_sweep/*/result.json; do
  run=$(dirname "$result")
  [ -f "$run/evaluations/claims/summary.json" ] ||
    goldfish-eval run="$run" out="$run/evaluations/claims" similarity=minilm mauve=true evaluation.membership=false
done
