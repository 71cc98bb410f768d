#!/usr/bin/env bash
# deploy/mlflow.sh: MLflow on the head's loopback, unless it runs. Artifacts go into the store. Runs are kept in SQLite;
# for PostgreSQL set MLFLOW_BACKEND_STORE_URI=postgresql://…, and install psycopg2-binary.
set -euo pipefail
. ~/.raysweep_env
if (exec 3<>/dev/tcp/127.0.0.1/5000) 2>/dev/null; then exit 0; fi
mkdir -p ~/mlflow
cd ~/mlflow
setsid nohup mlflow server --host 127.0.0.1 --port 5000 --workers 2 \
  --backend-store-uri "${MLFLOW_BACKEND_STORE_URI:-sqlite:///$PWD/mlflow.db}" \
  --artifacts-destination "${RAYSWEEP_STORAGE%/}/mlflow-artifacts" >server.log 2>&1 </dev/null &
