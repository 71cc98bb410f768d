#!/usr/bin/env bash
# deploy/mlflow.sh: serves MLflow on the head's loopback interface while Ray is up there. Artifacts go into the store. Runs
# go into SQLite; for PostgreSQL set MLFLOW_BACKEND_STORE_URI=postgresql://… in deploy/node.sh, with psycopg2-binary.
set -euo pipefail
. ~/.raysweep_env
mkdir -p ~/mlflow
if [ "${1:-}" != serve ]; then
  setsid nohup "$0" serve >~/mlflow/server.log 2>&1 </dev/null &
  for _ in $(seq 120); do # a sweep that starts before the server answers is refused
    if (: >/dev/tcp/127.0.0.1/5000) 2>/dev/null; then exit; fi
    sleep 1
  done
  echo "MLflow does not answer on 127.0.0.1:5000 yet: see ~/mlflow/server.log"
  exit
fi
exec 9>~/mlflow/lock
flock --nonblock 9 || exit 0 # it is running already
cd ~/mlflow
artifacts=$(python - <<'PYTHON'
import os

from raysweep.store.files import Files
from raysweep.tracking.artifacts import artifact_uri

print(artifact_uri(Files(os.environ["RAYSWEEP_STORAGE"]), "mlflow-artifacts"))
PYTHON
)
server=
while pgrep -x gcs_server >/dev/null; do
  if ! kill -0 "$server" 2>/dev/null; then
    # On a busy machine a worker may take longer than 5 s, uvicorn's default, to answer; it would be killed and restarted.
    mlflow server --host 127.0.0.1 --port 5000 --workers 2 --uvicorn-opts '--timeout-worker-healthcheck 60' \
      --backend-store-uri "${MLFLOW_BACKEND_STORE_URI:-sqlite:///$PWD/mlflow.db}" \
      --artifacts-destination "$artifacts" 9>&- &
    server=$!
  fi
  sleep 3
done
kill "$server"
wait "$server" || true
