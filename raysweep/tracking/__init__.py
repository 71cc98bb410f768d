"""MLflow as a mirror of a study: one run for the sweep, one for each trial and each teacher, and a LoggedModel for each
checkpoint. No other package imports MLflow.

Everything that is logged, times included, comes from the journal and the store. Logging a trial again adds only what is
missing. So a restarted sweep continues the same runs (`background.py`), and a lost MLflow server can be
rebuilt from the store (`raysweep sync-mlflow`).
"""

import os

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # the caller retries without a limit
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # it would print a line per run
