"""A probe of one checkpoint outside a sweep, in this process: the same code as in a sweep, so the same numbers."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

from raysweep.errors import UserError
from raysweep.store.store import Store
from trainables import snapshot as snapshots
from trainables.config import ProbeSpec
from trainables.datasets import autoencoders
from trainables.datasets.autoencoders import Autoencoder
from trainables.datasets.catalog import DataSet
from trainables.evaluation.probing import ProbeResult, probe
from trainables.snapshot import Snapshot
from trainables.training.loop import Context
from trainables.training.worker_cache import WorkerCache


class CheckpointProbe:
    """Everything that a probe of `snapshot` needs, loaded and checked.

    Args:
        autoencoder: the folder of an autoencoder to decode with; None: the data set's own.
        store: its cache keeps the statistics of the real images.

    Raises:
        UserError: the autoencoder does not fit, or the cache cannot be written.
    """

    def __init__(self, snapshot: Snapshot, data: DataSet, autoencoder: Path | None, store: Store):
        self._snapshot, self._data = snapshot, data
        self._cache = WorkerCache(Context(snapshots.best_device()), store.cache)
        self._autoencoder = self._load_autoencoder(autoencoder) if autoencoder else self._cache.autoencoder(data.name)
        with contextlib.suppress(OSError):
            store.cache.mkdir(parents=True, exist_ok=True)
        if not os.access(store.cache, os.W_OK):
            raise UserError(f"--storage {store.uri}: cannot write to its cache, {store.cache}; give another")

    def run(self, spec: ProbeSpec, progress: Callable[[int | None], None]) -> ProbeResult:
        """Probe the snapshot.

        Args:
            progress: is called with None when sampling begins, then with the number of samples drawn so far.

        Raises:
            UserError: the reference statistics cannot be used.
        """
        try:
            reference = self._cache.reference(self._data.name, spec)
        except (LookupError, ValueError) as error:  # the file has the expected SHA-256 but the wrong content
            raise UserError(str(error.args[0])) from None
        progress(None)
        return probe(
            self._snapshot.backbone,
            spec,
            autoencoder=self._autoencoder,
            detector=self._cache.detector(spec),
            reference=reference,
            latent_shape=self._snapshot.latent_shape,
            num_classes=self._snapshot.num_classes,
            device=self._cache.context.device,
            path=self._snapshot.path,
            progress=progress,
        )

    def _load_autoencoder(self, path: Path) -> Autoencoder:
        if not (path / "config.json").is_file():
            raise UserError(f"--autoencoder {path}: no config.json there; give a folder of diffusers' AutoencoderKL")
        try:
            autoencoder = autoencoders.load_autoencoder(path).to(self._cache.context.device)
        except (OSError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"--autoencoder {path}: {reason}; give a folder of diffusers' AutoencoderKL") from None
        channels, needed = autoencoder.config.latent_channels, self._snapshot.latent_shape[0]
        if channels != needed:
            raise UserError(
                f"--autoencoder {path}: its latents have {channels} channels, but the checkpoint's have {needed}"
            )
        return autoencoder
