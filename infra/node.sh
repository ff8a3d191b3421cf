#!/usr/bin/env bash
# One Ray node in the foreground:
#   infra/node.sh head [OPTIONS OF ray start]               a head without CPUs for work, on port 6379
#   infra/node.sh worker HEAD:PORT [OPTIONS OF ray start]   a worker, started again when Ray gave the node up
# RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH holds the token that all nodes share. A worker ends when the head has been
# silent for DGUNET_TIMEOUT_SECONDS. SIGTERM stops the node; its exit status is then 0.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
export PATH="$root/.venv/bin:$PATH"
export RAY_AUTH_MODE=${RAY_AUTH_MODE:-token} RAY_raylet_start_wait_time_s=${RAY_raylet_start_wait_time_s:-180}
export RAY_worker_niceness=${RAY_worker_niceness:-0}  # Ray's own 15: workers wait for all else that runs on the node
timeout_seconds=${DGUNET_TIMEOUT_SECONDS:-600}

fail() { echo "error: $*" >&2; exit 2; }
usage="usage: infra/node.sh head | worker HEAD:PORT, then options of ray start"
[ $# -ge 1 ] || fail "$usage"
command -v ray > /dev/null || fail "ray is not installed: run make setup in $root"
if [ "$RAY_AUTH_MODE" = token ] && [ -z "${RAY_AUTH_TOKEN:-}" ] && [ ! -s "${RAY_AUTH_TOKEN_PATH:-$HOME/.ray/auth_token}" ]; then
  fail "set RAY_AUTH_TOKEN to a secret that all nodes share (openssl rand -hex 32), or RAY_AUTH_MODE=disabled to use none"
fi

stopped=
node=
trap 'stopped=1; [ -z "$node" ] || kill -TERM "$node" 2> /dev/null || true' TERM INT

# Runs `ray start --block` until it ends; returns its exit status. `wait` returns early where a signal is handled.
start() {
  ray start --block --disable-usage-stats --object-store-memory=268435456 "$@" &
  node=$!
  local status=0
  while :; do
    status=0
    wait "$node" || status=$?
    kill -0 "$node" 2> /dev/null || break
  done
  node=
  return "$status"
}

reachable() { timeout 5 bash -c "exec 3<> /dev/tcp/${1%:*}/${1##*:}" 2> /dev/null; }

case $1 in
  head)
    shift
    status=0
    start --head --port=6379 --num-cpus=0 --num-gpus=0 "$@" || status=$?
    [ -z "$stopped" ] || status=0
    exit "$status"
    ;;
  worker)
    [ $# -ge 2 ] && [[ $2 =~ ^[^:]+:[0-9]+$ ]] || fail "$usage"
    head=$2
    shift 2
    silent_since=
    while [ -z "$stopped" ]; do
      if reachable "$head"; then
        silent_since=
        started=$SECONDS
        start --address="$head" "$@" || echo "this node ended with status $? after $((SECONDS - started)) s" >&2
        [ -n "$stopped" ] || sleep 5
      else
        [ -n "$silent_since" ] || { silent_since=$SECONDS; echo "waiting for the head at $head" >&2; }
        [ $((SECONDS - silent_since)) -lt "$timeout_seconds" ] ||
          fail "no head has answered at $head for $timeout_seconds s"
        sleep 2
      fi
    done
    ;;
  *) fail "$usage" ;;
esac
