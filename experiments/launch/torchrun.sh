#!/usr/bin/env bash
# One node, from the repository root: experiments/launch/torchrun.sh
# Several, the same on each node: NODES=2 MASTER_ADDR=FIRST_NODE TRAINER=configs/trainer/multi_node.yaml …/torchrun.sh
set -u
CONFIG=${CONFIG:-configs/llama3_8b_zh_tw.yaml}
TRAINER=${TRAINER:-configs/trainer/fsdp_8gpu.yaml}
NODES=${NODES:-1}
GPUS=${GPUS:-8} # per node

if ((NODES > 1)); then
    endpoint=${MASTER_ADDR:?must be the host name of the first node}:${MASTER_PORT:-29500}
    meeting=(--rdzv-backend c10d --rdzv-id "${RUN_ID:-inscp}" --rdzv-endpoint "$endpoint")
else
    meeting=(--standalone)
fi

# Seconds that the other workers have to exit after the first one; torchrun's default of 30 can interrupt a checkpoint.
# (As in torch 2.13; the oldest versions that inscp allows may ignore it.)
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-120}

# torchrun exits with 1 whatever its workers exit with; this runs torchrun and exits as the first failed worker did.
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

# Signals go to the workers only: torchrun itself would exit with 1 (SIGTERM) or leave them running (SIGUSR1).
# Before there are workers, a signal ends torchrun.
trap 'pkill -TERM -P "$agent" || kill -TERM "$agent"' TERM
trap : INT # the terminal signals the workers itself
trap 'pkill -USR1 -P "$agent" || kill -TERM "$agent"' USR1

while # a signal interrupts wait before torchrun has exited
    wait "$agent"
    status=$?
    kill -0 "$agent" 2>/dev/null
do :; done
exit "$status"
