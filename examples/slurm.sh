#!/usr/bin/env bash
# Train under Slurm on all GPUs of one node or of several, and queue again when the time is up.
#
#   sbatch examples/slurm.sh IMAGES/ runs/cells
#   sbatch --nodes=2 examples/slurm.sh IMAGES/ runs/cells trainer.max_epochs=200
#
# Two minutes before the time limit Slurm sends SIGTERM to this script. The script passes it on, byol saves a
# checkpoint, and the job goes back into the queue. The same command then continues the run.
#SBATCH --job-name=byol
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=16
#SBATCH --time=08:00:00
#SBATCH --signal=B:TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
set -u
images=$1
run=$2
shift 2

interrupted=
job=
trap 'interrupted=yes; kill -TERM "$job"' TERM

head_node=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
srun torchrun --nnodes="$SLURM_JOB_NUM_NODES" --nproc-per-node=gpu \
  --rdzv-id="$SLURM_JOB_ID" --rdzv-backend=c10d --rdzv-endpoint="$head_node:29500" \
  -m byol train "$images" -o "$run" "$@" &
job=$!

# `wait` returns early when the signal arrives, so wait until the job has really ended.
code=0
wait "$job" || code=$?
while kill -0 "$job" 2> /dev/null; do
  code=0
  wait "$job" || code=$?
done
if [ -n "$interrupted" ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
