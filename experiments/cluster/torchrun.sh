#!/bin/bash
# One run over several machines without a scheduler. On each of them, with the same disk:
#   NODES=2 NODE=0 DEVICES=8 MAIN=10.0.0.1 bash experiments/cluster/torchrun.sh mask.k=4 ...     (NODE=1 on the second)
set -euo pipefail
run_dir=$(goldfish-train --freeze strategy=ddp strategy.num_nodes="$NODES" strategy.devices="$DEVICES" "$@")
torchrun --nnodes "$NODES" --node-rank "$NODE" --nproc-per-node "$DEVICES" --master-addr "$MAIN" --master-port 29500 \
    -m goldfish.jobs.process "$run_dir"
