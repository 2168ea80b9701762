#!/usr/bin/env bash
# Locks the training image's packages with hashes, for both variants, from training_image/requirements.txt. Reads package
# metadata only: no CUDA wheel is downloaded. Run it after a change of that file, and commit the result.
# Behind a mirror, uv's own variables say where to look (UV_DEFAULT_INDEX, UV_FIND_LINKS, ...).
set -euo pipefail
cd "$(dirname "$0")/../training_image"
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
python3 -m venv "$scratch/venv"
"$scratch/venv/bin/pip" --quiet --disable-pip-version-check install uv==0.13.9

lock() { # variant, source
  {
    echo "# Made by scripts/lock_image.sh from requirements.txt: do not edit."
    [ "$1" = gpu ] || echo "--extra-index-url https://download.pytorch.org/whl/cpu"
    "$scratch/venv/bin/uv" pip compile "$2" --quiet --generate-hashes --only-binary :all: --no-header --no-annotate \
      --python-version 3.11 --python-platform x86_64-manylinux_2_28 --no-emit-index-url ${3:+--find-links "$3"}
  } >"$scratch/$1.lock"
  mv "$scratch/$1.lock" "requirements-$1.lock"
}

lock gpu requirements.txt
# The CPU build of torch is on its own index. That index is asked for torch only, then its wheel is at hand.
sed 's/^torch==\(.*\)$/torch==\1+cpu/' requirements.txt >"$scratch/cpu.txt"
torch=$(grep '^torch==' "$scratch/cpu.txt")
"$scratch/venv/bin/pip" --quiet --disable-pip-version-check download --no-deps --only-binary :all: \
  --python-version 3.11 --platform manylinux_2_28_x86_64 --dest "$scratch/wheels" "$torch" ||
  "$scratch/venv/bin/pip" --quiet --disable-pip-version-check download --no-deps --only-binary :all: \
    --python-version 3.11 --platform manylinux_2_28_x86_64 --dest "$scratch/wheels" "$torch" \
    --index-url https://download.pytorch.org/whl/cpu
lock cpu "$scratch/cpu.txt" "$scratch/wheels"
