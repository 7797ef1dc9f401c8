#!/usr/bin/env bash
# One node, from the repository's root: experiments/launch/torchrun.sh
# Several, the same on each: NODES=2 MASTER_ADDR=FIRST_NODE TRAINER=configs/trainer/multi_node.yaml …/torchrun.sh
set -u
CONFIG=${CONFIG:-configs/llama3_8b_zh_tw.yaml}
TRAINER=${TRAINER:-configs/trainer/fsdp_8gpu.yaml}
NODES=${NODES:-1}
GPUS=${GPUS:-8} # of one node

if ((NODES > 1)); then
    endpoint=${MASTER_ADDR:?is the first node}:${MASTER_PORT:-29500}
    meeting=(--rdzv-backend c10d --rdzv-id "${RUN_ID:-inscp}" --rdzv-endpoint "$endpoint")
else
    meeting=(--standalone)
fi

# How long the other workers may take to close once one has left; torchrun's own 30 seconds can cut a checkpoint short.
# (Seen in torch 2.13; the first versions that inscp allows may not read it.)
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-120}

# torchrun ends with 1 whatever its workers end with; this is torchrun, ending as the first of them did.
torchrun='
import sys
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import main
try:
    main()
except ChildFailedError as error:
    status = error.get_first_failure()[1].exitcode
    sys.exit(status if status > 0 else 128 - status)
'
python -c "$torchrun" --nnodes "$NODES" --nproc-per-node "$GPUS" "${meeting[@]}" \
    -m inscp fit --config "$CONFIG" --config "$TRAINER" \
    --trainer.devices "$GPUS" --trainer.num_nodes "$NODES" --ckpt_path last &
agent=$!

# A signal goes to the workers alone: torchrun itself would end with 1 (SIGTERM) or leave them behind (SIGUSR1).
# Before there are workers it ends torchrun.
trap 'pkill -TERM -P "$agent" || kill -TERM "$agent"' TERM
trap : INT # the terminal tells the workers itself
trap 'pkill -USR1 -P "$agent" || kill -TERM "$agent"' USR1

while # a signal ends wait before torchrun has ended
    wait "$agent"
    status=$?
    kill -0 "$agent" 2>/dev/null
do :; done
exit "$status"
