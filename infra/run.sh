#!/usr/bin/env bash
# The driver of a cluster, on one of its nodes (RAY_ADDRESS; default: the head on this machine, port 6379):
#   infra/run.sh [STAGE...]    check, then each stage of dvc.yaml; after each its results go to the DVC remote
# Started again, also on another machine, it continues: finished stages come from the remote, training from its last
# checkpoint. SIGTERM makes the driver save a checkpoint and leave.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export PATH="$PWD/.venv/bin:$PATH" RAY_ADDRESS=${RAY_ADDRESS:-127.0.0.1:6379} DVC_NO_ANALYTICS=true MPLBACKEND=Agg

driver=
trap 'echo "asked to stop: saving" >&2; stopped=1; [ -z "$driver" ] || kill -INT -- "-$driver" 2> /dev/null || true' TERM INT
stopped=

# Runs a command in a process group of its own, so that a signal reaches all of it; exits where it fails. The command
# ignores SIGTERM, which `ray job stop` sends to every process: dvc would leave its stage alone.
run() {
  local status=0
  [ -z "$stopped" ] || exit 130
  set -m
  (trap '' TERM; exec "$@") &
  driver=$!
  set +m
  while :; do
    status=0
    wait "$driver" || status=$?
    kill -0 "$driver" 2> /dev/null || break
  done
  driver=
  [ "$status" -eq 0 ] || { echo "$* ended with status $status; the same command continues" >&2; exit "$status"; }
}

run python -m pipeline.doctor --wait 180
run python -m pipeline.results prepare
if [ $# -gt 0 ]; then stages=("$@"); else mapfile -t stages < <(dvc stage list --name-only); fi
for stage in "${stages[@]}"; do
  echo "== $stage"
  run dvc repro --pull --single-item "$stage"
  run python -m pipeline.results store
done
run python -m pipeline.summary
