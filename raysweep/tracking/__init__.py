"""MLflow as a mirror of a study: one run for the sweep, one per trial, one per teacher, a LoggedModel per checkpoint.
The only place that knows MLflow.

Everything it says comes from the journal and the store, times included, and is said once: saying a trial again adds
what is missing. So a restarted sweep goes on in the same runs, and a lost server can be filled again (mirroring.py does
the first, sync_mlflow.py the second).
"""

import os

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # who calls tries again himself
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # a line per run

from raysweep.tracking.mirror import Mirror

__all__ = ["Mirror"]
