#!/usr/bin/env bash
# deploy/node.sh STORAGE [EXTRA]: prepares a node: the pinned Python environment, and the variables that shells need.
set -euo pipefail
cd "$(dirname "$0")/.."
if [ ! -e .venv/laptop ] && ! { command -v make && python3 -c 'import ensurepip'; } >/dev/null 2>&1; then
  sudo apt-get update -q && sudo apt-get install -y -q make python3-venv
fi
make --silent .venv/laptop
if [ "${2:-}" ]; then .venv/bin/python -m pip install --quiet --progress-bar off -c constraints.txt -e ".[$2]"; fi
fast=
if [ -d /opt/dlami/nvme ]; then # AWS's images mount local disks there
  mkdir -p /opt/dlami/nvme/tmp
  fast=/opt/dlami/nvme/tmp
fi
cat >~/.raysweep_env <<ENV
export PATH=$PWD/.venv/bin:\$PATH
export RAY_AUTH_MODE=token RAY_ADDRESS=auto RAY_USAGE_STATS_ENABLED=0
export RAYSWEEP_STORAGE=$1${fast:+ TMPDIR=$fast}
export MLFLOW_TRACKING_URI=http://127.0.0.1:5000 MLFLOW_DISABLE_TELEMETRY=true
ENV
grep -qs raysweep_env ~/.bashrc || echo '. ~/.raysweep_env' >>~/.bashrc
