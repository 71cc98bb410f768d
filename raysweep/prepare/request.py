"""Checks a request of `raysweep prepare` and opens a preparation, or the finished set if it exists."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from raysweep.errors import UserError
from raysweep.prepare.encoding import EncodingOptions
from raysweep.prepare.preparation import Preparation, PreparationConfig, images_per_shard, refuse_other
from raysweep.prepare.sources import Latents, Source, open_source
from raysweep.store.files import Files
from trainables.config import ProbeSpec
from trainables.datasets import catalog, checks, prepared
from trainables.datasets.autoencoders import Autoencoder, autoencoder_identity, open_autoencoder
from trainables.datasets.prepared import Prepared

DETECTORS = {"effnet_lite0": ProbeSpec(detector="effnet_lite0", metrics=("fid",)), "inception": ProbeSpec()}


@dataclass(frozen=True)
class Request:
    """A data set to prepare; the fields are the options of `raysweep prepare`."""

    source: str
    out: str
    autoencoder: str | None = None  # None: emoji9's
    size: int = 256  # pixels
    mirrored: bool = False
    keep_images: bool = False
    normalise: str = "autoencoder"  # or "channels"
    detectors: Sequence[str] | None = None  # None: those that this machine has
    images_per_shard: int | None = None  # None: about 64 MiB in each
    split: str = "train"


def open_request(request: Request) -> Prepared | Preparation:
    """Check a request, and open what it asks for: the finished set, or a preparation to run.

    Raises:
        UserError: an option is wrong, the source cannot be read, or something else is in the place.
    """
    place = Files(request.out, option="--out")
    source = open_source(request.source, request.split)
    autoencoder = _autoencoder(request, source)
    shape = _latent_shape(request, source, autoencoder)
    options = EncodingOptions(request.size, request.mirrored, request.keep_images, _probes(request, source))
    config = PreparationConfig(
        source=source.fingerprint(),
        autoencoder=autoencoder_identity(autoencoder),
        size=None if source.latents else request.size,
        mirrored=request.mirrored,
        keep_images=request.keep_images,
        normalise=request.normalise,
        detectors=[spec.detector_name for spec in options.probes],
        images_per_shard=request.images_per_shard or images_per_shard(shape, options),
    )
    return _finished(place, config) or Preparation(place, source, options, config, autoencoder, shape)


def _autoencoder(request: Request, source: Source) -> Autoencoder:
    if not request.autoencoder and source.latents:
        raise UserError("--autoencoder: name the autoencoder that made these latents; probes decode with it")
    try:
        return open_autoencoder(request.autoencoder or str(catalog.files("emoji9")[1]))
    except ValueError as error:
        raise UserError(f"--autoencoder {error}") from None


def _latent_shape(request: Request, source: Source, autoencoder: Autoencoder) -> tuple[int, int, int]:
    config = autoencoder.config
    if source.latents:
        first = next(iter(source.reader(source.items[:1])))
        assert isinstance(first, Latents), "a source of latents reads latents"
        channels, height, width = first.latent.shape[1:]
        if channels != config.latent_channels:
            has = f"{channels} channels, but the autoencoder's latents have {config.latent_channels}"
            raise UserError(
                f"--autoencoder {request.autoencoder}: {first.source} has {has}: was it made by another autoencoder?"
            )
        if request.keep_images:
            raise UserError("--keep-images: the source has latents and no images; leave this out")
        return channels, height, width
    factor = 2 ** (len(config.block_out_channels) - 1)
    if request.size % factor:
        raise UserError(f"--size {request.size}: the autoencoder needs a multiple of {factor}")
    return config.latent_channels, request.size // factor, request.size // factor


def _probes(request: Request, source: Source) -> tuple[ProbeSpec, ...]:
    """A probe for each detector whose statistics are computed."""
    if source.latents:
        if request.detectors:
            raise UserError("--detectors: they need images, and the source has latents; leave this out")
        return ()
    asked = request.detectors
    names = list(DETECTORS) if asked is None else [name for name in asked if name != "none"]
    faults = {name: checks.probe_fault(DETECTORS[name]) for name in names}
    for name, fault in faults.items():
        if asked and fault:
            raise UserError(f"--detectors {name}: {fault.split(': --set')[0]}")
    return tuple(DETECTORS[name] for name, fault in faults.items() if not fault)


def _finished(place: Files, config: PreparationConfig) -> Prepared | None:
    """The finished set in that place, or None.

    Raises:
        UserError: another set is there, or other files are.
    """
    try:
        finished = prepared.read(place.uri)
    except prepared.Absent:
        others = [] if Preparation.in_progress(place) else place.names("")
        if others:
            raise UserError(f"--out {place.uri}: not empty, it contains {others[0]}; give another place") from None
        return None
    except LookupError as error:
        raise UserError(f"--out {error.args[0]}") from None
    refuse_other(PreparationConfig.model_validate(finished.about["job"]), config, place.uri)
    return finished
