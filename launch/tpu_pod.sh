#!/usr/bin/env bash
# Installs on all hosts of a TPU slice, or trains there.
#
#   gcloud compute tpus tpu-vm create NAME --zone=ZONE \
#     --accelerator-type=v5litepod-256 --version=v2-alpha-tpuv5-lite
#   launch/tpu_pod.sh install NAME ZONE GIT_URL
#   launch/tpu_pod.sh train NAME ZONE --config=configs/pretrain.py \
#     --workdir=gs://BUCKET/pretrain --config.prompter.checkpoint=gs://BUCKET/prompter
#
# Workdir and data must be the same storage on all hosts: a bucket, or a shared disk.
# The same `train` again goes on from the newest checkpoint. What follows NAME
# and ZONE goes to launch/main.py; --distributed lets the hosts find each other.
set -euo pipefail
usage() { sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "$0" >&2; exit 2; }
[ $# -ge 4 ] || usage
what=$1 name=$2 zone=$3
shift 3

case $what in
  install)
    command="git clone $(printf '%q' "$1") alpro_jax && cd alpro_jax && \
      python3 -m venv .venv && \
      .venv/bin/pip install -r requirements.txt -r requirements-tpu.txt" ;;
  train)
    command="cd alpro_jax && .venv/bin/python launch/main.py --distributed \
      $(printf '%q ' "$@")" ;;
  *) usage ;;
esac
gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all \
  --command="$command"
