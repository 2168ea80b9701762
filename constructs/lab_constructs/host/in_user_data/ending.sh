# shellcheck shell=bash
# How an instance ends: for user data, killer 1 and finish, which have the environment file's variables. Each step is tried
# whatever became of the one before.
upload_logs() {
  local prefix="s3://$BUCKET/runs/$RUN_ID/boots/$INSTANCE_ID"
  [ -n "$RUN_ID" ] || return 0
  aws s3 cp --only-show-errors "$SETUP_LOG" "$prefix/training-setup.log" || true
  [ ! -s "$LOG" ] || aws s3 cp --only-show-errors "$LOG" "$prefix/training.log" || true
}
let_go() { # release the lifecycle hook that holds a terminating instance; without effect on any other
  aws autoscaling complete-lifecycle-action --lifecycle-hook-name drain --auto-scaling-group-name "$GROUP" \
    --lifecycle-action-result CONTINUE --instance-id "$INSTANCE_ID" 2>/dev/null || true
}
put_outcome() { # reason, sentence. Created once: an outcome that exists already stands.
  [ -n "$RUN_ID" ] || return 0
  python3 "$LIB/outcome.py" "$1" "$2" >"$LIB/outcome.json" || true
  aws s3api put-object --bucket "$BUCKET" --key "runs/$RUN_ID/outcome.json" --if-none-match '*' \
    --body "$LIB/outcome.json" --content-type application/json >/dev/null || true
}
limits() { # deadline and auto_shutdown as they hold now: a deploy may change them under the run
  aws s3 cp --only-show-errors "s3://$BUCKET/runs/$RUN_ID/control.json" "$LIB/control.json" 2>/dev/null || true
  python3 "$LIB/fields.py" "$LIB/run.json" "$LIB/control.json" >"$LIB/run.sh" && . "$LIB/run.sh"
}
end_run() { # the group goes down with this instance: nothing replaces it
  upload_logs
  [ ! -e "$LIB/run.json" ] || limits || true
  if [ "$AUTO_SHUTDOWN" = false ] && [ "${1:-}" != now ]; then
    echo 'auto_shutdown is false: the instance stays for review until the deadline'
    return 0
  fi
  aws autoscaling terminate-instance-in-auto-scaling-group --instance-id "$INSTANCE_ID" \
    --should-decrement-desired-capacity ||
    aws autoscaling update-auto-scaling-group --auto-scaling-group-name "$GROUP" --min-size 0 --desired-capacity 0 ||
    poweroff
  let_go
}
end_expired() {
  put_outcome expired 'The deadline passed before the run could finish.'
  end_run now
}
end_instance() { # only this instance: the group replaces it if the run is not over
  upload_logs
  let_go
  poweroff
}
