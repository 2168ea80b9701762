#!/usr/bin/env bash
# SBOM (CycloneDX, JSON) of the training image's packages, from the hashed lock files: .lab/sbom-gpu.json, .lab/sbom-cpu.json
set -euo pipefail
cd "$(dirname "$0")/.."
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
python3 -m venv "$scratch/venv" # its own, because its dependencies are not ours
"$scratch/venv/bin/pip" --quiet --disable-pip-version-check install cyclonedx-bom==7.5.0
mkdir -p .lab
for variant in gpu cpu; do
  "$scratch/venv/bin/cyclonedx-py" requirements --output-reproducible --of JSON \
    --output-file ".lab/sbom-$variant.json" "training_image/requirements-$variant.lock"
  echo ".lab/sbom-$variant.json"
done
