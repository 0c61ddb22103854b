#!/bin/bash
# Train under Slurm until the run is complete, over as many time limits as needed (docs/slurm.md):
#
#   sbatch --nodes 2 --ntasks-per-node 8 --gpus-per-node 8 --cpus-per-task 12 --time 8:00:00 \
#       tools/slurm_train.sh --config CONFIG --out RUN
#
# The arguments are passed to `sparsevideo train`. Each task is a process of the run, with one GPU or none.
#
#SBATCH --job-name=sparsevideo
#SBATCH --ntasks-per-node=1
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
# Sent to the tasks, not to this shell (B:USR1), two to three minutes before the time limit: the tasks save and end.
#SBATCH --signal=USR1@120

command -v sparsevideo > /dev/null || {
    echo "no sparsevideo on PATH: activate its environment, then call sbatch" >&2
    exit 127
}

[[ -z ${SLURM_GPUS_PER_TASK-} ]] || {
    echo "--gpus-per-task hides the GPUs of the other tasks: use --gpus-per-node" >&2
    exit 2
}

# At the time limit this shell also gets SIGTERM. It ignores the signal and waits for the exit code of the tasks.
trap : TERM USR1

# Since Slurm 22.05 srun does not inherit this setting from sbatch.
[[ -z ${SLURM_CPUS_PER_TASK-} ]] || export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK
# Sums depend on the number of threads, so it must stay equal when the job is requeued.
export OMP_NUM_THREADS=${OMP_NUM_THREADS-${SLURM_CPUS_PER_TASK-1}}

echo "job $SLURM_JOB_ID, requeued ${SLURM_RESTART_COUNT-0} times, on $SLURM_JOB_NODELIST"
# Tasks that have saved end one after the other with a nonzero code, and the first one must not end the others.
# If a task fails, the others may wait for it forever; they are ended after two minutes.
srun --kill-on-bad-exit=0 --wait=120 sparsevideo train "$@" --resume
code=$?
((code == 75)) || exit $code

# 75: interrupted and saved. Requeue the job, unless it ends for another reason than its time limit: a user has canceled
# it, or Slurm preempts it and requeues it by itself.
job=$(scontrol show job "$SLURM_JOB_ID")
if [[ $job == *JobState=RUNNING* || $job == *Reason=TimeLimit* ]]; then
    scontrol requeue "$SLURM_JOB_ID" || echo "not requeued: submit the same command again to continue" >&2
else
    echo "canceled or preempted: if Slurm does not requeue the job, submit the same command again to continue" >&2
fi
exit $code
