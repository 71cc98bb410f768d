"""MLflow as a mirror of a study: one run for the sweep, one for each trial and each teacher, and a LoggedModel for each
checkpoint. No other package imports MLflow.

Everything that is logged, times included, comes from the journal and the store. Logging a trial again adds only what is
missing. So a restarted sweep continues the same runs (`background.py`), and a lost MLflow server can be
rebuilt from the store (`raysweep sync-mlflow`).
"""

import os
import sys

if "mlflow" not in sys.modules:  # else it may be MLflow that loads `artifacts`, in a process that is not ours
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

import mlflow  # noqa: E402, F401  whole before `artifacts`, which it loads
