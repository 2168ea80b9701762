#!/usr/bin/env bash
# Runs a command with a Docker engine of its own: scripts/private_docker.sh make test-docker
# For machines where none runs, or where no registry can be reached: the engine has its own socket and data, its base image
# is made from Debian packages, and pip gets its wheels from this machine. What it started is gone when the command ends; a
# system's engine is never touched. Needs root, and on Debian: docker.io, mmdebstrap.
set -euo pipefail
cd "$(dirname "$0")/.."
say() { printf 'private docker: %s\n' "$*"; }
[ $# -gt 0 ] || { echo "usage: $0 COMMAND [ARGUMENT...]" >&2; exit 2; }
for program in dockerd docker mmdebstrap python3; do
  command -v "$program" >/dev/null || { echo "private docker: no $program. On Debian: apt-get install docker.io mmdebstrap" >&2; exit 1; }
done

state=$(mktemp -d "${TMPDIR:-/var/tmp}/lab-docker-XXXXXX") # never below the clone: it would be part of a build context
engine='' server=''
finish() {
  set +e
  [ -z "$server" ] || kill "$server"
  if [ -n "$engine" ]; then
    docker ps --all --quiet | xargs --no-run-if-empty docker rm --force >/dev/null
    kill "$engine"
    wait "$engine"
  fi
  umount "$state"/data/overlay2/*/merged "$state/exec/netns/default" 2>/dev/null # the engine leaves the latter mounted
  rm -rf "$state"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

say "starting the engine"
export DOCKER_HOST="unix://$state/docker.sock"
dockerd --iptables=false --ip6tables=false --bridge=none --data-root "$state/data" --exec-root "$state/exec" \
  -H "$DOCKER_HOST" --pidfile "$state/docker.pid" >"$state/dockerd.log" 2>&1 &
engine=$!
for _ in $(seq 300); do
  docker version >/dev/null 2>&1 && break
  kill -0 "$engine" 2>/dev/null || { tail -n 5 "$state/dockerd.log" >&2; exit 1; }
  sleep 0.2
done
docker version >/dev/null

say "making the base image"
mmdebstrap --quiet --variant=minbase --include=ca-certificates,python3,python3-venv bookworm - | docker import - lab-base >/dev/null

say "fetching the wheels of the CPU variant"
fetch() {
  python3 -m pip --quiet --disable-pip-version-check download --no-deps --require-hashes --only-binary :all: \
    --dest "$state/wheels" --requirement "$1"
}
# First without torch's own index, which pip would ask for every package: this machine may have the wheel, and no internet.
sed '/^--extra-index-url/d' training_image/requirements-cpu.lock >"$state/offline.lock"
fetch "$state/offline.lock" 2>"$state/pip.log" || fetch training_image/requirements-cpu.lock
# The port is chosen by the system, and read from the server's first line.
python3 -u -m http.server 0 --bind 127.0.0.1 --directory "$state/wheels" >"$state/wheels.log" 2>&1 &
server=$!
for _ in $(seq 100); do
  port=$(sed -n 's/.* port \([0-9]*\) .*/\1/p' "$state/wheels.log")
  [ -n "$port" ] && break
  sleep 0.1
done
export LAB_DOCKER_BUILD_ARGS="BASE_IMAGE=lab-base PIP_NO_INDEX=1 PIP_FIND_LINKS=http://127.0.0.1:${port:?}/"

say "running: $*"
"$@"
