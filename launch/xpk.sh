#!/usr/bin/env bash
# Trains on a GKE cluster that was made by xpk, from and into a bucket.
#
#   pip install xpk
#   IMAGE=REGION-docker.pkg.dev/PROJECT/REPOSITORY/alpro_jax SLICES=2 \
#     launch/xpk.sh RUN CLUSTER ZONE v5litepod-256 --config=configs/pretrain.py \
#     --workdir=gs://BUCKET/pretrain --config.prompter.checkpoint=gs://BUCKET/prompter
#
# The image is that of launch/Dockerfile; SLICES is 1 without. What follows the type goes to
# launch/main.py. The nodes' service account must be allowed to read and write the bucket.
# xpk starts the set again after exit codes from 42 on: 143 is a run that saved and stopped.
set -euo pipefail
usage() { sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "$0" >&2; exit 2; }
[ $# -ge 5 ] && [ -n "${IMAGE:-}" ] || usage
run=$1 cluster=$2 zone=$3 type=$4
shift 4

xpk workload create --workload="$run" --cluster="$cluster" --zone="$zone" \
  --tpu-type="$type" --num-slices="${SLICES:-1}" --docker-image="$IMAGE" \
  --max-restarts=100 --termination-grace-period-seconds=300 \
  --command="cd /alpro_jax && python launch/main.py --distributed $(printf '%q ' "$@")"
