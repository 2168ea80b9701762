#!/bin/bash
# An instance's first boot, run once by cloud-init as root. It carries only what must work without a download: log, endings,
# which run, killer 1, scratch and the fetch. The rest of the setup is the files that it fetches: host/downloaded.
# It holds no settings, only where to look: the stack's pointer names the run, and run.json has everything else.
# At synth the names between at signs are replaced. Paths take the prefix ${DESTDIR:-}, which is empty on EC2.
set -Eeuo pipefail

BUCKET='@OUTPUTS_BUCKET@'
STACK='@STACK_SUFFIX@'
HOST_BUCKET='@HOST_BUCKET@'
HOST_KEY='@HOST_KEY@'
export AWS_DEFAULT_REGION='@REGION@'
ROOT=${DESTDIR:-}
BOOTED_AT=$(date +%s)
LIB=$ROOT/usr/local/lib/llm-tuning-lab
UNITS=$ROOT/etc/systemd/system
LOG=$ROOT/var/log/training.log
SETUP_LOG=$ROOT/var/log/training-setup.log
# shellcheck disable=SC2034 # they are used by ending.sh, and written into the environment file
INSTANCE_ID='' RUN_ID='' GROUP='' AUTO_SHUTDOWN=true INSTANCE_STORE='' WORK=$ROOT/opt/training
mkdir -p "$LIB" "$UNITS" "$ROOT/var/log" "$ROOT/usr/local/bin"
touch "$LOG"
exec >>"$SETUP_LOG" 2>&1
echo "setup of stack $STACK began at $(date -u +%FT%TZ)"

# --- how an instance ends: whatever goes wrong below uploads the log and ends the spending ----------------------------
# At synth the files of host/in_user_data take this line's place, each as it lies there.
@IN_USER_DATA@
. "$LIB/ending.sh"

setup_failed() { # where
  ((BASH_SUBSHELL == 0)) || exit 1 # the shell that waits for this one ends the run, once
  trap - ERR
  set +e
  echo "setup failed at $1"
  put_outcome failed "Setup of the instance failed at $1; see boots/$INSTANCE_ID/training-setup.log."
  end_run now
  exit 1
}
trap 'setup_failed "line $LINENO ($BASH_COMMAND)"' ERR

# Every other script's facts, quoted for the shell. Replaced at once: killer 1 may be reading it.
write_environment() {
  local name
  for name in ROOT LIB UNITS LOG SETUP_LOG BOOTED_AT INSTANCE_ID INSTANCE_STORE WORK BUCKET RUN_ID GROUP AUTO_SHUTDOWN; do
    printf '%s=%q\n' "$name" "${!name}"
  done >"$LIB/environment.new"
  printf 'export AWS_DEFAULT_REGION=%q\n' "$AWS_DEFAULT_REGION" >>"$LIB/environment.new"
  mv "$LIB/environment.new" "$LIB/environment"
}

# IMDSv2; the address can be moved by the AWS SDKs' own variable.
imds() {
  local base=${AWS_EC2_METADATA_SERVICE_ENDPOINT:-http://169.254.169.254} token
  token=$(curl -sf --retry 5 -X PUT "${base%/}/latest/api/token" -H 'X-aws-ec2-metadata-token-ttl-seconds: 300')
  curl -sf --retry 5 -H "X-aws-ec2-metadata-token: $token" "${base%/}/latest/$1"
}
INSTANCE_ID=$(imds meta-data/instance-id)
imds dynamic/instance-identity/document >"$LIB/identity.json" || true

# --- which run, and whether it is over --------------------------------------------------------------------------------
RUN_ID=$(aws s3 cp "s3://$BUCKET/stacks/$STACK/current.json" - |
  python3 -c 'import json, sys; print(json.load(sys.stdin)["run_id"])')
aws s3 cp --only-show-errors "s3://$BUCKET/runs/$RUN_ID/run.json" "$LIB/run.json"
limits
echo "run $RUN_ID, deadline $DEADLINE"
if aws s3api head-object --bucket "$BUCKET" --key "runs/$RUN_ID/outcome.json" >/dev/null 2>&1; then
  echo 'this run has ended already'
  end_run now
  exit 0
fi
if [ "$EXPIRED" = true ]; then
  put_outcome expired 'The deadline passed before an instance could finish.'
  end_run now
  exit 0
fi

# --- killer 1, before anything that can hang: a timer that outlives cloud-init and a reboot ---------------------------
write_environment
chmod 755 "$LIB/arm" "$LIB/expire"
sed "s|=/usr/local/|=$ROOT/usr/local/|" "$LIB/training-deadline.service" >"$UNITS/training-deadline.service"
"$LIB/arm" "$DEADLINE"

# --- scratch: the type's instance store, faster than the root volume and free of charge -------------------------------
# The machine image's own service mounts it: this waits until it has.
systemctl start dlami-nvme.service 2>/dev/null || true
if mountpoint -q "$ROOT/opt/dlami/nvme"; then
  INSTANCE_STORE=$ROOT/opt/dlami/nvme
  WORK=$INSTANCE_STORE/training
fi
mkdir -p "$WORK"
write_environment

# --- the rest: fetched, checked (the archive's checksums) and started -------------------------------------------------
fetch() { # leaves in $why what went wrong
  why=$(aws s3api get-object --bucket "$HOST_BUCKET" --key "$HOST_KEY" "$LIB/host.zip" 2>&1) &&
    why=$(python3 -m zipfile -e "$LIB/host.zip" "$LIB" 2>&1)
}
for pause in 5 10 20 end; do
  if fetch; then break; fi
  echo "the host files did not come: $why"
  if [ "$pause" != end ]; then
    sleep "$pause"
  # A redeploy replaces the files, this script and the permission to read exactly that object. An instance that was launched
  # just before is refused: it ends alone, and the group replaces it by one with the new script (max_attempts bounds how
  # often). A key that may not be used is no such race: a new instance would be refused too.
  elif [[ $why == *AccessDenied* && $why != *kms:* ]]; then
    end_instance
    exit 1
  else
    setup_failed "the fetch of s3://$HOST_BUCKET/$HOST_KEY (${why##*$'\n'})"
  fi
done
bash "$LIB/setup" || setup_failed "$(cat "$LIB/failed" 2>/dev/null || echo setup)"
echo "setup done after $(($(date +%s) - BOOTED_AT)) s"
