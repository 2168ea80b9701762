#!/bin/bash
# The box's first boot, run once by cloud-init as root. It holds no settings, only where to look: the stack's pointer names
# the run, and run.json has everything else. Whatever goes wrong here uploads the log and ends the spending.
# At synth the names between at signs are replaced. Paths take the prefix ${DESTDIR:-}, which is empty on EC2.
set -Eeuo pipefail

BUCKET='@OUTPUTS_BUCKET@'
STACK='@STACK_SUFFIX@'
export AWS_DEFAULT_REGION='@REGION@'
ROOT=${DESTDIR:-}
BOOTED_AT=$(date +%s)
LIB=$ROOT/usr/local/lib/llm-tuning-lab
UNITS=$ROOT/etc/systemd/system
LOG=$ROOT/var/log/training.log
SETUP_LOG=$ROOT/var/log/training-setup.log
mkdir -p "$LIB" "$UNITS" "$ROOT/var/log" "$ROOT/usr/local/bin"
touch "$LOG"
exec >>"$SETUP_LOG" 2>&1
echo "setup of stack $STACK began at $(date -u +%FT%TZ)"

imds() { # IMDSv2; the address can be moved by the AWS SDKs' own variable
  local base=${AWS_EC2_METADATA_SERVICE_ENDPOINT:-http://169.254.169.254} token
  token=$(curl -sf --retry 5 -X PUT "${base%/}/latest/api/token" -H 'X-aws-ec2-metadata-token-ttl-seconds: 300')
  curl -sf --retry 5 -H "X-aws-ec2-metadata-token: $token" "${base%/}/latest/$1"
}
INSTANCE_ID=$(imds meta-data/instance-id)

# --- how a box ends: one file, used here and by the units below ----------------------------------------------------
cat >"$LIB/ending.sh" <<'ENDING'
upload_logs() {
  local prefix="s3://$BUCKET/runs/$RUN_ID/boots/$INSTANCE_ID"
  [ -n "$RUN_ID" ] || return 0
  aws s3 cp --only-show-errors "$SETUP_LOG" "$prefix/training-setup.log" || true
  [ -s "$LOG" ] && aws s3 cp --only-show-errors "$LOG" "$prefix/training.log" || true
}
let_go() { # of the lifecycle hook that holds a terminating instance; fails when the instance is not terminating
  aws autoscaling complete-lifecycle-action --lifecycle-hook-name drain --auto-scaling-group-name "$GROUP" \
    --lifecycle-action-result CONTINUE --instance-id "$INSTANCE_ID" 2>/dev/null || true
}
put_outcome() { # reason, sentence. Created once: an outcome that exists already stands.
  local body
  [ -n "$RUN_ID" ] || return 0
  body=$(mktemp)
  REASON=$1 DETAIL=$2 python3 -c 'import datetime, json, os
print(json.dumps({"reason": os.environ["REASON"], "detail": os.environ["DETAIL"], "by": "box", "attempts": None,
                  "resumed_from_step": None, "step": None,
                  "at": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")}))' >"$body"
  aws s3api put-object --bucket "$BUCKET" --key "runs/$RUN_ID/outcome.json" --if-none-match '*' --body "$body" \
    --content-type application/json >/dev/null || true
  rm -f "$body"
}
limits() { # deadline and auto_shutdown as they hold now: a deploy may change them under the run
  aws s3 cp --only-show-errors "s3://$BUCKET/runs/$RUN_ID/control.json" "$LIB/control.json" 2>/dev/null || true
  python3 "$LIB/fields.py" "$LIB/run.json" "$LIB/control.json" >"$LIB/run.sh" && . "$LIB/run.sh"
}
end_run() { # the group goes down with this box: nothing replaces it
  upload_logs
  [ ! -e "$LIB/run.json" ] || limits
  if [ "$AUTO_SHUTDOWN" = false ] && [ "${1:-}" != now ]; then
    echo "auto_shutdown is false: the box stays for review until the deadline"
    return 0
  fi
  aws autoscaling terminate-instance-in-auto-scaling-group --instance-id "$INSTANCE_ID" \
    --should-decrement-desired-capacity ||
    aws autoscaling update-auto-scaling-group --auto-scaling-group-name "$GROUP" --min-size 0 --desired-capacity 0 ||
    poweroff
  let_go
}
end_box() { # only this box: the group replaces it if the run is not over
  upload_logs
  let_go
  poweroff
}
ENDING

write_environment() {
  {
    printf '%s=%q\n' LIB "$LIB" BUCKET "$BUCKET" INSTANCE_ID "$INSTANCE_ID" SETUP_LOG "$SETUP_LOG" LOG "$LOG" \
      RUN_ID "${RUN_ID:-}" GROUP "${GROUP:-}" AUTO_SHUTDOWN "${AUTO_SHUTDOWN:-true}"
    printf 'export AWS_DEFAULT_REGION=%q\n' "$AWS_DEFAULT_REGION"
  } >"$LIB/environment"
}
write_environment
RUN_ID='' GROUP='' AUTO_SHUTDOWN=true
. "$LIB/ending.sh"

setup_failed() {
  trap - ERR
  set +e
  echo "setup failed at line $1: $2"
  put_outcome failed "Setup of the instance failed at line $1 ($2); see boots/$INSTANCE_ID/training-setup.log."
  end_run now
  exit 1
}
trap 'setup_failed "$LINENO" "$BASH_COMMAND"' ERR

# --- which run ------------------------------------------------------------------------------------------------------
RUN_ID=$(aws s3 cp "s3://$BUCKET/stacks/$STACK/current.json" - |
  python3 -c 'import json, sys; print(json.load(sys.stdin)["run_id"])')
aws s3 cp --only-show-errors "s3://$BUCKET/runs/$RUN_ID/run.json" "$LIB/run.json"
cat >"$LIB/fields.py" <<'FIELDS'
import datetime, json, os, shlex, sys, time
run = json.load(open(sys.argv[1]))
if os.path.exists(sys.argv[2]):
    control = json.load(open(sys.argv[2]))
    run.update(control.get("limits", {}))
    run["auto_shutdown"] = run["auto_shutdown"] or "stop" in control  # who stops a run has reviewed it
deadline = datetime.datetime.fromisoformat(run["deadline"]).astimezone(datetime.timezone.utc)
values = {
    "GROUP": run["group"],
    "IMAGE": run["image"],
    "GPUS": str(run["gpus"]),
    "DATA_URI": run["data_uri"],
    "BASE_MODEL": run["settings"]["model"]["base_model"],
    "REVISION": run["settings"]["model"]["revision"] or "main",
    "TRAINING_BUCKET": run["training_bucket"],
    "AUTO_SHUTDOWN": str(run["auto_shutdown"]).lower(),
    "DEADLINE": deadline.strftime("%Y-%m-%d %H:%M:%S UTC"),
    "EXPIRED": str(deadline.timestamp() <= time.time()).lower(),
}
for name, value in values.items():
    print(f"{name}={shlex.quote(value)}")
FIELDS
limits
write_environment
echo "run $RUN_ID, deadline $DEADLINE, image $IMAGE"

if aws s3api head-object --bucket "$BUCKET" --key "runs/$RUN_ID/outcome.json" >/dev/null 2>&1; then
  echo "this run has ended already"
  end_run now
  exit 0
fi
if [ "$EXPIRED" = true ]; then
  put_outcome expired 'The deadline passed before a box could finish.'
  end_run now
  exit 0
fi

# --- killer 1, before anything that can hang: a timer that outlives cloud-init and a reboot ---------------------------
cat >"$LIB/finish" <<FINISH
#!/bin/bash
# systemd calls this when the container is gone, for whatever reason. Exit code 0 means: the run's outcome is durable.
. "$LIB/environment"
. "$LIB/ending.sh"
exec >>"$SETUP_LOG" 2>&1
echo "the container ended: \${SERVICE_RESULT:-?} \${EXIT_CODE:-?} \${EXIT_STATUS:-?}"
if [ -e "$LIB/expired" ]; then
  put_outcome expired 'The deadline passed before the run could finish.'
  end_run now
elif [ "\${EXIT_CODE:-}" = exited ] && [ "\${EXIT_STATUS:-}" = 0 ]; then
  end_run
else
  end_box
fi
FINISH
cat >"$LIB/arm" <<ARM
#!/bin/bash
# The timer at the run's deadline, as \$1 says it; it goes off again and again for a deadline that has been put off.
cat >"$UNITS/training-deadline.timer" <<UNIT
[Unit]
Description=The run's deadline
[Timer]
OnCalendar=\$1
Persistent=true
[Install]
WantedBy=timers.target
UNIT
systemctl daemon-reload
systemctl stop training-deadline.timer
systemctl enable --now training-deadline.timer
ARM
cat >"$LIB/expire" <<EXPIRE
#!/bin/bash
. "$LIB/environment"
. "$LIB/ending.sh"
limits
if [ "\$EXPIRED" = false ]; then
  exec "$LIB/arm" "\$DEADLINE"
fi
touch "$LIB/expired" # tells the unit's ExecStopPost why
if systemctl is-active --quiet training.service; then
  systemctl stop training.service
else
  "$LIB/finish"
fi
EXPIRE
cat >"$UNITS/training-deadline.service" <<UNIT
[Unit]
Description=End the box at the run's deadline
[Service]
Type=oneshot
ExecStart=$LIB/expire
UNIT
chmod +x "$LIB/arm" "$LIB/expire" "$LIB/finish"
"$LIB/arm" "$DEADLINE"

# --- where it works: the type's instance store, faster than the root volume and free of charge ---------------------------
WORK=$ROOT/opt/training
NVME=$ROOT/opt/dlami/nvme
store_images_on() {
  mkdir -p "$ROOT/etc/docker" "$UNITS/docker.service.d"
  # Docker 29 keeps images with containerd, wherever its own data lies: only its older store goes along.
  python3 - "$ROOT/etc/docker/daemon.json" "$1" <<'MERGE' || return
import json, os, sys
path, root = sys.argv[1:]
config = json.load(open(path)) if os.path.exists(path) else {}
config["data-root"] = root
config.setdefault("features", {})["containerd-snapshotter"] = False
json.dump(config, open(path, "w"), indent=1)
MERGE
  # At a reboot Docker must find the disk mounted; after a stop it is empty, and the unit below pulls again.
  printf '[Unit]\nAfter=dlami-nvme.service\n' >"$UNITS/docker.service.d/instance-store.conf"
  systemctl daemon-reload && systemctl restart docker.service
}
systemctl start dlami-nvme.service 2>/dev/null || true # the machine image's own, which mounts it: waits until it has
if mountpoint -q "$NVME"; then
  WORK=$NVME/training
  cp "$ROOT/etc/docker/daemon.json" "$LIB/daemon.json" 2>/dev/null || echo '{}' >"$LIB/daemon.json"
  if ! store_images_on "$NVME/docker"; then
    echo "Docker does not start with its data on $NVME: images go to the root volume"
    cp "$LIB/daemon.json" "$ROOT/etc/docker/daemon.json"
    systemctl reset-failed docker.service || true
    systemctl restart docker.service
  fi
fi
mkdir -p "$WORK"
now() { echo "${EPOCHREALTIME:-$(date +%s)}"; } # bash before 5 knows whole seconds only
took() { # phase, began, ended (now): the supervisor makes them the start of the attempt's timeline
  printf '{"phase": "%s", "from": %s, "to": %s}\n' "$1" "$2" "${3:-$(now)}" >>"$WORK/boot.jsonl"
}
launched=$(imds dynamic/instance-identity/document | python3 -c 'import datetime, json, sys
at = json.load(sys.stdin)["pendingTime"].replace("Z", "+00:00")
print(int(datetime.datetime.fromisoformat(at).timestamp()))') || launched=$BOOTED_AT
took instance_start "$launched" "$BOOTED_AT"
took setup "$BOOTED_AT"

# --- the image, and meanwhile what it will train on -------------------------------------------------------------------
prefetch() { # what fails here, or takes longer than a silent box may, the container fetches
  trap - ERR
  set +e
  local began hub=models--${BASE_MODEL//\//--} commit
  began=$(now)
  get() { timeout 600 aws s3 sync --only-show-errors "$@"; }
  get "$DATA_URI" "$WORK/data" --exclude '*' --include '*.jsonl' &
  if [[ $BASE_MODEL == s3://* ]]; then
    get "$BASE_MODEL" "$WORK/model"
  else
    commit=$(aws s3 cp "s3://$TRAINING_BUCKET/models/hub/$hub/refs/$REVISION" - 2>/dev/null)
    if [[ $commit =~ ^[0-9a-f]{40}$ ]]; then
      hub=$hub/snapshots/$commit
      get "s3://$TRAINING_BUCKET/models/hub/$hub" "$WORK/huggingface/hub/$hub"
    fi
  fi
  wait
  took prefetch "$began"
}
prefetch &
prefetching=$!
cat >"$LIB/pull" <<PULL
#!/bin/bash
. "$LIB/environment"
for pause in 5 10 0; do
  if aws ecr get-login-password | docker login --username AWS --password-stdin "${IMAGE%%/*}" &&
    docker pull "$IMAGE"; then exit 0; fi
  sleep \$pause
done
exit 1
PULL
chmod +x "$LIB/pull"
pulling=$(now)
"$LIB/pull"
took image_pull "$pulling"
wait "$prefetching" || true

# --- the training unit: its exit is observed, its stop leaves time for a checkpoint ---------------------------------
# The container's user is not root, and its root file system cannot be written.
chmod -R a+rwX "$WORK"
chmod 1777 "$WORK"
gpu_option=''
[ "$GPUS" -eq 0 ] || gpu_option='--gpus all'
container="--ipc=host $gpu_option --read-only --tmpfs /tmp:rw,exec,nosuid,nodev -v $WORK:$WORK \\
  -e HF_HOME=$WORK/huggingface -e AWS_DEFAULT_REGION=$AWS_DEFAULT_REGION"
cat >"$LIB/start" <<START
#!/bin/bash
mkdir -p $WORK && chmod 1777 $WORK
docker inspect $IMAGE >/dev/null 2>&1 || $LIB/pull >>$SETUP_LOG 2>&1
exec docker run --rm --name training $container \\
  $IMAGE --bucket $BUCKET --run-id $RUN_ID --work-dir $WORK --booted-at $BOOTED_AT >>$LOG 2>&1
START
chmod +x "$LIB/start"
cat >"$UNITS/training.service" <<UNIT
[Unit]
Description=Training run $RUN_ID
After=docker.service network-online.target dlami-nvme.service
Requires=docker.service
[Service]
ExecStart=$LIB/start
ExecStop=docker stop -t 110 training
ExecStopPost=$LIB/finish
TimeoutStopSec=130
[Install]
WantedBy=multi-user.target
UNIT
systemctl daemon-reload
systemctl enable --now training.service

# From here on a failure costs a convenience, not the run.
trap - ERR
set +e

# --- on a kept box: the trainer again, on the run's data and settings, with the caller's exported LLM_* on top --------
cat >"$ROOT/usr/local/bin/rerun-training" <<RERUN
#!/bin/bash
set -euo pipefail
if systemctl is-active --quiet training.service; then
  echo 'The run is still training: tmux attach -t training' >&2
  exit 1
fi
sudo=''
[ "\$(id -u)" = 0 ] || sudo='sudo --preserve-env' # the engine is root's
options=()
for name in \$(compgen -e LLM_); do options+=(-e "\$name"); done
mkdir -p $WORK/rerun
chmod 1777 $WORK/rerun 2>/dev/null || true
work=\$(mktemp -d "$WORK/rerun/\$(date -u +%Y%m%dT%H%M%SZ)-XXX")
chmod 1777 "\$work"
cp "$LIB/run.json" "\$work/"
for part in data model base_model.json; do
  [ ! -e "$WORK/\$part" ] || ln -s "$WORK/\$part" "\$work/"
done
echo "Settings of $RUN_ID, with: \$(compgen -e LLM_ | tr '\n' ' '). The box stays until $DEADLINE at most."
\$sudo docker run --rm --name rerun --entrypoint python $container "\${options[@]}" \\
  $IMAGE -m training_image.train --work-dir "\$work" 2>&1 | tee "\$work/training.log"
echo "Results: \$work/adapter and \$work/metrics, on this box only. To keep them:"
echo "aws s3 cp --recursive \$work/adapter s3://$BUCKET/runs/$RUN_ID/rerun/\${work##*/}/"
RERUN
chmod 755 "$ROOT/usr/local/bin/rerun-training"

# --- the viewer: `tmux attach -t training` for Session Manager's user; Ctrl-C there ends the viewer, never the run ---
if ! id ssm-user >/dev/null 2>&1; then
  useradd --create-home ssm-user
  # The agent gives the user its sudo only together with the user.
  install -D -m 440 /dev/stdin "$ROOT/etc/sudoers.d/ssm-agent-users" <<<'ssm-user ALL=(ALL) NOPASSWD:ALL'
fi
chmod 644 "$LOG" "$SETUP_LOG" "$LIB/run.json"
runuser -u ssm-user -- tmux new-session -d -s training "tail -n +1 -F $LOG"
echo "setup done after $(($(date +%s) - BOOTED_AT)) s"
exit 0
