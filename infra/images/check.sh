#!/usr/bin/env bash
# Builds an image of the commit that is checked out, without a registry, starts it as its user, and prints its size:
#   infra/images/check.sh train|mlflow [OPTIONS OF buildah build]
# BASE becomes Debian 12 of mmdebstrap, with the certificate authorities of this machine. Needs root, git, and
# apt-get install buildah mmdebstrap. Nothing is kept. The training image is large: minutes, and up to 20 GB below TMPDIR.
set -euo pipefail
name=${1:-}
case $name in
  train)
    start='python -c "import cv2, ray, torch, pipeline.train"; python -m pipeline.validate; git rev-parse HEAD
      dvc stage list > /dev/null; touch data models; ray --version'
    ;;
  mlflow)
    start='python -c "import psycopg, s3fs"; mlflow server --help > /dev/null; pg_dump --version; touch /backup/written'
    ;;
  *) echo "usage: infra/images/check.sh train|mlflow [OPTIONS OF buildah build]" >&2; exit 2 ;;
esac
shift
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
work=$(mktemp -d)
container=
driver=overlay  # where it cannot be used: vfs, which copies all files for each layer
storage() { buildah --root "$work/storage" --runroot "$work/run" --storage-driver "$driver" "$@"; }
clean() {
  [ -z "$container" ] || storage rm "$container" > /dev/null || true
  rm -rf "$work"
}
trap clean EXIT
export BUILDAH_ISOLATION=chroot
storage images > /dev/null 2>&1 || { rm -rf "$work/storage"; driver=vfs; }

git clone --quiet . "$work/checkout"
# shellcheck disable=SC2016 # $1 is the folder that mmdebstrap gives to its hooks
mmdebstrap --quiet --variant=minbase --include=ca-certificates \
  --customize-hook='copy-in /usr/local/share/ca-certificates /usr/local/share' \
  --customize-hook='chroot "$1" update-ca-certificates' bookworm "$work/base.tar"
container=$(storage from scratch)
storage add --quiet "$container" "$work/base.tar" / > /dev/null
storage commit --quiet --rm "$container" dgunet-base > /dev/null
container=
storage build --network=host --pull=never --build-arg=BASE=localhost/dgunet-base "$@" --tag="$name" \
  --file="$work/checkout/infra/images/$name.Dockerfile" "$work/checkout"
container=$(storage from --pull=never "localhost/$name")
storage run "$container" -- tini -- bash -euxc "[ \"\$(id -u)\" = 10001 ]; ! touch /opt/venv/written || exit 1; $start"
echo "$name: starts as user 10001; $(du --summarize --si "$(storage mount "$container")" | cut -f1)"
