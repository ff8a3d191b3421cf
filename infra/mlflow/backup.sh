#!/usr/bin/env bash
# backup.sh save|restore FOLDER: the registry and runs, the users, and the artifacts of an MLflow server.
# Runs where its variables are (PG…, AWS_…, MLFLOW_ARTIFACTS_DESTINATION), so in its container. Stop training before
# a restore. The databases must exist (`createdb mlflow`), and what they hold is replaced. Artifacts in the bucket are
# overwritten, none is deleted. pg_dump must be as new as the server.
set -euo pipefail
action=${1:-} folder=${2:-} artifacts=${MLFLOW_ARTIFACTS_DESTINATION:?set it to where the artifacts lie}
copy() { # get|put FOLDER: all artifacts; a bucket without any is no error
  python -c 'import sys, fsspec
action, folder, remote = sys.argv[1:]
files, path = fsspec.core.url_to_fs(remote)
if action == "get" and files.exists(path):
    files.get(path + "/", folder + "/", recursive=True)
if action == "put" and any(fsspec.filesystem("file").find(folder)):
    files.put(folder + "/", path + "/", recursive=True)' "$1" "$2" "$artifacts"
}
[ -n "$folder" ] || action=
case $action in
  save)
    mkdir -p "$folder/artifacts"
    for name in mlflow mlflow_auth; do pg_dump --format=custom --file="$folder/$name.dump" "$name"; done
    copy get "$folder/artifacts"
    ;;
  restore)
    for name in mlflow mlflow_auth; do
      pg_restore --clean --if-exists --no-owner --single-transaction --dbname="$name" "$folder/$name.dump"
    done
    copy put "$folder/artifacts"
    ;;
  *)
    echo "usage: backup.sh save|restore FOLDER" >&2
    exit 2
    ;;
esac
