"""MLflow's artifacts in a store that is an object store: MLflow reads and writes them as the store's own files.

MLflow's own clients of object stores need a library for each cloud, and take credentials and endpoints in other ways
than raysweep does. The entry points in pyproject.toml name this class to `mlflow ui` too. There the credentials come
from where each cloud's own tools keep them.
"""

from __future__ import annotations

import posixpath
from dataclasses import replace
from pathlib import Path

from mlflow.entities import FileInfo
from mlflow.store.artifact import artifact_repository_registry
from mlflow.store.artifact.artifact_repo import ArtifactRepository, verify_artifact_path

from raysweep.store.files import Files
from trainables.location import Location

PREFIX = "raysweep+"  # of the scheme: raysweep+s3, raysweep+gs, raysweep+az
_credentials: dict[tuple[str, str], tuple[str, str]] = {}  # by scheme and bucket; MLflow's database must not have them


def artifact_uri(files: Files, folder: str) -> str:
    """The place of a folder of the store for MLflow, without the credentials that the storage's URI may contain."""
    local = files.local(folder)
    if local is not None:
        return local.as_uri()
    location = files.location / folder
    if location.credentials:
        _credentials[location.scheme, location.bucket] = location.credentials
    return f"{PREFIX}{replace(location, credentials=None)}"


class StoreArtifacts(ArtifactRepository):
    """The artifacts of one run or model.

    Args:
        artifact_uri: a place as `artifact_uri` spells it, or one below it.
    """

    def __init__(self, artifact_uri: str, tracking_uri: str | None = None, registry_uri: str | None = None):
        super().__init__(artifact_uri, tracking_uri, registry_uri)
        location = Location.parse(artifact_uri.removeprefix(PREFIX))
        self._files = Files(str(replace(location, credentials=_credentials.get((location.scheme, location.bucket)))))

    def log_artifact(self, local_file: str, artifact_path: str | None = None) -> None:
        """Store one file, in the folder `artifact_path`."""
        verify_artifact_path(artifact_path)
        self._files.copy_in(Path(local_file), posixpath.join(artifact_path or "", Path(local_file).name))

    def log_artifacts(self, local_dir: str, artifact_path: str | None = None) -> None:
        """Store all files of a folder of this machine."""
        for file in sorted(Path(local_dir).rglob("*")):
            if file.is_file():
                self._files.copy_in(file, posixpath.join(artifact_path or "", file.relative_to(local_dir).as_posix()))

    def list_artifacts(self, path: str | None = None) -> list[FileInfo]:
        """The files and folders in a folder, by name."""
        folder = f"{path.rstrip('/')}/" if path else ""
        found: dict[str, FileInfo] = {}
        for entry in self._files.walk(folder.rstrip("/")):
            name, below, _ = entry.path.removeprefix(folder).partition("/")
            found[name] = FileInfo(f"{folder}{name}", bool(below), None if below else entry.bytes)
        return [found[name] for name in sorted(found)]

    def _download_file(self, remote_file_path: str, local_path: str) -> None:
        if self._files.copy_out(remote_file_path, Path(local_path)) is None:
            raise FileNotFoundError(remote_file_path)

    def delete_artifacts(self, artifact_path: str | None = None) -> None:
        """Delete a file or a folder; without a path, everything."""
        self._files.delete_folder(artifact_path or "")
        if artifact_path:
            self._files.delete(artifact_path)


for _scheme in ("s3", "gs", "az"):  # also where raysweep was installed without entry points
    artifact_repository_registry._artifact_repository_registry.register(f"{PREFIX}{_scheme}", StoreArtifacts)
