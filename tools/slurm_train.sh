#!/bin/bash
# Train under Slurm until the run is done, however often a job's time is up before (docs/slurm.md):
#
#   sbatch --nodes 2 --ntasks-per-node 8 --gpus-per-node 8 --cpus-per-task 12 --time 8:00:00 \
#       tools/slurm_train.sh --config CONFIG --out RUN
#
# What follows the script goes to `sparsevideo train`. A task is a process of the run, with one GPU of its node or none.
#
#SBATCH --job-name=sparsevideo
#SBATCH --ntasks-per-node=1
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
# To the tasks, not to this shell (that would be B:USR1), two to three minutes before the time is up: they save and end.
#SBATCH --signal=USR1@120

command -v sparsevideo > /dev/null || {
    echo "no sparsevideo on PATH: activate its environment, then call sbatch" >&2
    exit 127
}

[[ -z ${SLURM_GPUS_PER_TASK-} ]] || {
    echo "--gpus-per-task hides from each task the GPUs of the others: ask for --gpus-per-node" >&2
    exit 2
}

# At the time limit this shell, too, gets SIGTERM. It stays, to see how the tasks end.
trap : TERM USR1

# Since Slurm 22.05 srun does not inherit this number from sbatch.
[[ -z ${SLURM_CPUS_PER_TASK-} ]] || export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK
# Sums depend on the number of threads. Wherever the job goes on, it is to be the same.
export OMP_NUM_THREADS=${OMP_NUM_THREADS-${SLURM_CPUS_PER_TASK-1}}

echo "job $SLURM_JOB_ID, requeued ${SLURM_RESTART_COUNT-0} times, on $SLURM_JOB_NODELIST"
# Tasks that have saved end one after the other, with a code that is not 0: the first to end must not end the others.
# When one fails, the others, which may wait for it for ever, have two minutes.
srun --kill-on-bad-exit=0 --wait=120 sparsevideo train "$@" --resume
code=$?
((code == 75)) || exit $code

# 75: asked to end, and saved. Go on, unless the job is being ended for another reason than its time: a person has
# cancelled it, or Slurm needs its nodes for others and requeues it by itself.
job=$(scontrol show job "$SLURM_JOB_ID")
if [[ $job == *JobState=RUNNING* || $job == *Reason=TimeLimit* ]]; then
    scontrol requeue "$SLURM_JOB_ID" || echo "not requeued: submit the same command again to go on" >&2
else
    echo "cancelled, or preempted: where Slurm has not requeued it, submit the same command again to go on" >&2
fi
exit $code
