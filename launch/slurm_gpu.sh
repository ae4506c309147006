#!/usr/bin/env bash
# Trains on GPUs of several machines under SLURM.
#
#   sbatch --nodes=4 launch/slurm_gpu.sh --config=configs/pretrain.py \
#     --workdir=/shared/pretrain --config.prompter.checkpoint=/shared/prompter
#
# Submit it from the repository, with requirements.txt and the GPU's jax
# (pip install "jax[cuda12]==...", as in requirements.txt) installed in .venv. Or in a
# container (launch/Dockerfile with JAX=cuda12), where SLURM has Pyxis; MOUNTS are for what is
# not in a bucket, the key to it say:
#
#   IMAGE=REGISTRY#alpro_jax:gpu MOUNTS=$HOME/key.json:/key.json:ro \
#     GOOGLE_APPLICATION_CREDENTIALS=/key.json sbatch --nodes=4 launch/slurm_gpu.sh \
#     --config=configs/pretrain.py --workdir=gs://BUCKET/pretrain ...
#
# What follows goes to launch/main.py. jax takes one process for each GPU from
# SLURM: for other machines change both numbers below to their GPUs.
#SBATCH --job-name=alpro
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=12
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
# Five minutes before the end: the run saves its state and ends with 143.
#SBATCH --signal=TERM@300
set -euo pipefail
[ $# -gt 0 ] || { sed -n '2,/^#SBATCH/{/^#SBATCH/d;s/^# \{0,1\}//;p}' "$0" >&2
  exit 2; }

python=(.venv/bin/python)
if [ -n "${IMAGE:-}" ]; then
  python=(--container-image="$IMAGE" --container-workdir=/alpro_jax
    ${MOUNTS:+--container-mounts="$MOUNTS"} python)
fi

status=0
# 143 is no bad exit: give the others the time to finish saving.
srun --kill-on-bad-exit=0 --wait=300 \
  "${python[@]}" launch/main.py --distributed "$@" || status=$?
if [ "$status" -eq 143 ]; then
  scontrol requeue "$SLURM_JOB_ID"  # Goes on from the newest checkpoint.
fi
exit "$status"
