# shellcheck shell=bash
# What the run's container and a rerun have in common: options of docker run.
CONTAINER=(--ipc=host)
[ "$GPUS" = 0 ] || CONTAINER+=(--gpus all)
CONTAINER+=(--read-only --tmpfs '/tmp:rw,exec,nosuid,nodev' -v "$WORK:$WORK"
  -e "HF_HOME=$WORK/huggingface" -e "AWS_DEFAULT_REGION=$AWS_DEFAULT_REGION")
