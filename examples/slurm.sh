#!/usr/bin/env bash
# A search whose trials are trained by Slurm jobs. Start it on a login node, best inside tmux or screen:
#
#   SBATCH_PARTITION=gpu SBATCH_GPUS_PER_NODE=1 examples/slurm.sh path/to/set
#
# JOBS workers are submitted, each trains one trial after another. sbatch reads what they ask for from its own
# variables: SBATCH_PARTITION, SBATCH_ACCOUNT, SBATCH_GPUS_PER_NODE, SBATCH_MEM_PER_NODE, SBATCH_TIMELIMIT (a
# worker at its time limit saves its trial, and a new job goes on with it). The folder of the studies, the data and the
# Python installation must be visible under the same paths on the nodes.
set -euo pipefail

data=${1:?give a data set, such as path/to/set}

detsearch assign search --executor slurm --jobs "${JOBS:-8}" --trials "${TRIALS:-100}" \
    --detector fcos --backbone "${BACKBONE:-resnet50}" --data "$data" --subset "${SUBSET:-0.25}" \
    --image-size "${IMAGE_SIZE:-800,1333}" --epochs "${EPOCHS:-12}" --batch-size "${BATCH_SIZE:-16}" \
    --name "${NAME:-slurm}" --out "${OUT:-studies}"

# The comparison, its trainings side by side on the same cluster; there is none where nothing better was found.
if grep -q '^assign:' "${OUT:-studies}/${NAME:-slurm}/best.yaml"; then
    detsearch assign train --study "${OUT:-studies}/${NAME:-slurm}" --baseline --seeds 3 --executor slurm --jobs 6
fi
