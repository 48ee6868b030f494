#!/bin/bash
# Train one run on several machines without a scheduler. They must share a disk. Type on each of them:
#   NODES=2 NODE=0 DEVICES=8 MAIN=10.0.0.1 bash experiments/cluster/torchrun.sh mask.k=4 ...     (NODE=1 on the second)
set -euo pipefail
run_dir=$(goldfish-train --freeze strategy=ddp strategy.num_nodes="$NODES" strategy.devices="$DEVICES" "$@")
torchrun --nnodes "$NODES" --node-rank "$NODE" --nproc-per-node "$DEVICES" --master-addr "$MAIN" --master-port 29500 \
    -m goldfish.jobs.process "$run_dir"
