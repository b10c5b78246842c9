#!/usr/bin/env bash
# Pack a large set of images with the tasks of a Slurm array: task 3 of 64 packs part 3/64. Tasks need no GPU.
#
#   sbatch --array=1-64 examples/slurm-pack.sh IMAGES/ /shared/packs 'data_transforms.input_shape=[224,224,null]'
#
# A task that was stopped continues when it is given again. Say how many parts there are if not all are given:
#
#   sbatch --array=7,19 --export=ALL,PARTS=64 examples/slurm-pack.sh IMAGES/ /shared/packs
#
# When all tasks have ended, one command joins the parts. It names those that are missing:
#
#   byol pack IMAGES/ -o /shared/packs 'data_transforms.input_shape=[224,224,null]'
#SBATCH --job-name=byol-pack
#SBATCH --cpus-per-task=4
#SBATCH --time=04:00:00
#SBATCH --requeue
set -eu
images=$1
packs=$2
shift 2

exec byol pack "$images" -o "$packs" --part "$SLURM_ARRAY_TASK_ID/${PARTS:-$SLURM_ARRAY_TASK_COUNT}" \
  trainer.num_workers="${SLURM_CPUS_PER_TASK:-4}" "$@"
