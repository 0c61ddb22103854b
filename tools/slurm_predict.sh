#!/bin/bash
# Predict many files under Slurm, in independent parts (docs/slurm.md):
#
#   sbatch --array 1-16 --cpus-per-task 4 tools/slurm_predict.sh 16 OUT CHECKPOINT INPUTS
#
# The first argument is the number of parts; task I of the array predicts part I into OUT/I. The arguments after OUT are
# passed to `sparsevideo predict`. The same line continues what was interrupted; parts that are done are left alone.
#
#SBATCH --job-name=sparsevideo-predict
#SBATCH --output=%x-%A-%a.log
#SBATCH --open-mode=append
#SBATCH --requeue

command -v sparsevideo > /dev/null || {
    echo "no sparsevideo on PATH: activate its environment, then call sbatch" >&2
    exit 127
}

[[ -n ${SLURM_ARRAY_TASK_ID-} && $# -ge 4 ]] || {
    echo "usage: sbatch --array 1-PARTS tools/slurm_predict.sh PARTS OUT CHECKPOINT INPUTS" >&2
    exit 2
}

parts=$1 out=$2
[[ ! -e $out/$SLURM_ARRAY_TASK_ID/predictions.json ]] || {
    echo "$out/$SLURM_ARRAY_TASK_ID: done before; remove it to predict this part again"
    exit 0
}
decoders=$((${SLURM_CPUS_PER_TASK-1} - 1)) # and one processor for the network
exec sparsevideo predict "${@:3}" --part "$SLURM_ARRAY_TASK_ID/$parts" --out "$out/$SLURM_ARRAY_TASK_ID" \
    --num-workers "$decoders"
