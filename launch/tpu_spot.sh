#!/usr/bin/env bash
# Trains on a Spot slice of queued resources, and waits for another whenever it is taken.
#
#   IMAGE=REGION-docker.pkg.dev/PROJECT/REPOSITORY/alpro_jax SERVICE_ACCOUNT=NAME@PROJECT... \
#     launch/tpu_spot.sh NAME ZONE v5litepod-64 v2-alpha-tpuv5-lite \
#     --config=configs/pretrain.py --workdir=gs://BUCKET/pretrain \
#     --config.prompter.checkpoint=gs://BUCKET/prompter
#
# The image is that of launch/Dockerfile; the service account may pull it, and read and write
# the bucket. What follows the version of the TPU's software goes to launch/main.py. Keep
# this script running on a machine that stays, in tmux say: it asks for the slice, trains, and
# gives it back at the end. The same again goes on. It gives up after three failures in a
# row on slices that are still there: mistakes in the options, say.
set -euo pipefail
usage() { sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "$0" >&2; exit 2; }
[ $# -ge 5 ] && [ -n "${IMAGE:-}" ] && [ -n "${SERVICE_ACCOUNT:-}" ] || usage
name=$1 zone=$2 type=$3 version=$4
shift 4

queue() { gcloud compute tpus queued-resources "$1" "$name" --zone="$zone" "${@:2}"; }
state() { queue describe --format='value(state.state)' 2> /dev/null || echo NONE; }

# What still runs after a broken connection would hold the chips.
on_each_host="sudo gcloud auth configure-docker --quiet ${IMAGE%%/*} && \
  { sudo docker rm --force alpro 2> /dev/null || true; } && \
  sudo docker run --rm --name=alpro --privileged --network=host $(printf '%q' "$IMAGE") \
  python launch/main.py --distributed $(printf '%q ' "$@")"

failures=0
while true; do
  case $(state) in
    NONE)
      failures=0
      queue create --node-id="$name" --accelerator-type="$type" --runtime-version="$version" \
        --service-account="$SERVICE_ACCOUNT" --spot ;;
    ACTIVE)
      if gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all \
          --command="$on_each_host"; then
        queue delete --force --quiet
        exit 0
      fi
      sleep "${POLL_SECONDS:-60}"  # A slice that was taken is SUSPENDED by then.
      if [ "$(state)" = ACTIVE ] && [ $((failures += 1)) -ge 3 ]; then
        echo "error: failed three times; the slice $name is still there" >&2
        exit 1
      fi ;;
    SUSPENDED | FAILED)
      queue delete --force --quiet ;;
    *)
      sleep "${POLL_SECONDS:-60}" ;;
  esac
done
