#!/usr/bin/env bash
# backup.sh save|restore FOLDER: the registry and runs, the users, and the artifacts of an MLflow server.
# Runs where its variables are (PG…, AWS_…, MLFLOW_ARTIFACTS_DESTINATION), so in its container. Stop training before a
# restore. Databases that restore fills must exist: `createdb mlflow`; what they hold is replaced. Artifacts that lie in
# the bucket already are overwritten, none is deleted. pg_dump must be as new as the server.
set -euo pipefail
action=${1:-} folder=${2:-} artifacts=${MLFLOW_ARTIFACTS_DESTINATION:?set it to where the artifacts lie}
copy() { # recursively, from the first to the second, through fsspec
  python -c 'import sys, fsspec
remote, path = fsspec.core.url_to_fs(sys.argv[2])
getattr(remote, sys.argv[1])(*((path, sys.argv[3]) if sys.argv[1] == "get" else (sys.argv[3], path)), recursive=True)' "$@"
}
case $action in
  save)
    mkdir -p "$folder"
    for name in mlflow mlflow_auth; do pg_dump --format=custom --file="$folder/$name.dump" "$name"; done
    copy get "${artifacts%/}/" "$folder/artifacts/"
    ;;
  restore)
    for name in mlflow mlflow_auth; do
      pg_restore --clean --if-exists --no-owner --single-transaction --exit-on-error --dbname="$name" "$folder/$name.dump"
    done
    copy put "$folder/artifacts/" "${artifacts%/}/"
    ;;
  *)
    echo "usage: backup.sh save|restore FOLDER" >&2
    exit 2
    ;;
esac
