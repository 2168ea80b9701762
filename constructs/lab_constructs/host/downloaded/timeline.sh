# shellcheck shell=bash
# The boot's own timeline: the supervisor makes it the start of the attempt's.
now() { echo "${EPOCHREALTIME:-$(date +%s)}"; } # bash before 5 knows whole seconds only
took() { # phase, began, ended (now)
  printf '{"phase": "%s", "from": %s, "to": %s}\n' "$1" "$2" "${3:-$(now)}" >>"$WORK/boot.jsonl"
}
