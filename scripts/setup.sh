#!/usr/bin/env bash
# Sets up a clone: .venv with pinned packages and the `lab` command, and the pinned CDK CLI. Run through `make setup`.
set -euo pipefail
cd "$(dirname "$0")/.."
say() { printf 'setup: %s\n' "$*"; }
die() { printf 'setup: %s\n' "$*" >&2; exit 1; }

command -v "$PYTHON" >/dev/null || die "no '$PYTHON' found. Install Python 3.11 or newer, or run: make PYTHON=/path/to/python3 setup"
"$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
  die "$("$PYTHON" --version) is too old. Install Python 3.11 or newer, or run: make PYTHON=/path/to/python3 setup"
command -v node >/dev/null || die "Node.js not found; the CDK CLI needs it. Install Node 20 or newer (https://nodejs.org), then run this again."
node -e 'process.exit(parseInt(process.versions.node) < 20 ? 1 : 0)' ||
  die "Node $(node --version) is too old for the CDK CLI. Install Node 20 or newer (https://nodejs.org), then run this again."

torch=$(sed -n 's/^torch==//p' training_image/requirements.txt)
pip_install() { # no bytecode: it takes longer than all the rest, and Python makes what it needs at the first import
  .venv/bin/python -m pip --disable-pip-version-check --quiet install --no-compile --no-deps "$@"
}

[ -x .venv/bin/python ] || { say "creating .venv"; "$PYTHON" -m venv .venv; }
npm_log=$(mktemp)
(npm install --no-audit --no-fund --loglevel=error >"$npm_log" 2>&1) & npm_pid=$!

# The CPU build, never the gigabytes of CUDA that plain `torch` brings on Linux. macOS wheels are CPU builds by themselves.
if ! .venv/bin/python -c "import importlib.metadata as m, sys; sys.exit(m.version('torch').split('+')[0] != '$torch')" 2>/dev/null; then
  say "installing torch $torch (CPU build)"
  if [ "$(uname -s)" = Darwin ]; then
    pip_install "torch==$torch"
  else
    pip_install "torch==$torch+cpu" 2>/dev/null ||
      pip_install "torch==$torch+cpu" --index-url https://download.pytorch.org/whl/cpu ||
      die "could not get the CPU build of torch $torch. Is the network up? Nothing else was changed; run this again."
  fi
fi
say "installing pinned packages"
pip_install -r requirements-dev.txt
pip_install --editable .

wait "$npm_pid" || { cat "$npm_log" >&2; die "npm could not install the CDK CLI named in package.json."; }
rm -f "$npm_log"
touch .venv/.ready
say "ready"
