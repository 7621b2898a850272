"""The models on the car's disk: files by their digest, a folder of names for each model.

It bounds what they take and decides which model goes; it checks nothing and fetches nothing.
"""

import errno
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

import msgspec

from terafleet.agent.files import replace_file
from terafleet.agent.model_check import ModelFault, ModelReason
from terafleet.core.ids import ModelId
from terafleet.protocol.manifest import Manifest, ManifestFile, SignedManifest

DISK_BYTES_FREE_MIN = 256 * 1024 * 1024
"""Models leave so much of the disk to everything else: a full disk would stop the journal."""

MANIFEST_BYTES_MAX = 1024 * 1024
FULL_ERRNOS = frozenset((errno.ENOSPC, errno.EDQUOT))
PART_ENDING = ".part"


class FileTooLong(Exception):
    """More bytes came than the manifest says; they are not this file."""


class PartFile:
    """A file on its way: what has come of it stays when the way is cut. A `gateway.Sink`."""

    def __init__(self, path: Path, size_bytes: int) -> None:
        """Take up what is there. Raises OSError."""
        self._size_bytes = size_bytes
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        self._file: BinaryIO = os.fdopen(descriptor, "r+b")
        self.offset = self._file.seek(0, os.SEEK_END)
        if self.offset > size_bytes:
            self.begin(0)

    @property
    def is_whole(self) -> bool:
        """Whether as many bytes are there as the manifest says."""
        return self.offset == self._size_bytes

    def begin(self, offset: int) -> None:
        """What follows stands from this byte on."""
        self._file.seek(offset)
        self._file.truncate()
        self.offset = offset

    def write(self, chunk: bytes) -> None:
        """The next bytes. Raises OSError and FileTooLong."""
        if self.offset + len(chunk) > self._size_bytes:
            self.begin(0)
            raise FileTooLong
        self._file.write(chunk)
        self.offset += len(chunk)

    def close(self) -> None:
        """Let go of the file. Raises OSError where the last bytes found no room."""
        self._file.close()


class ModelDisk:
    """The folder of the models. Every method blocks for a moment and may raise OSError."""

    def __init__(self, folder: Path, bytes_max: int) -> None:
        """Make the folder, or take up what lies there; what a cut left stays for its download."""
        self._files = folder / "files"
        self._manifests = folder / "manifests"
        self.names = folder / "names"
        self._bytes_max = bytes_max
        for below in (self._files, self._manifests, self.names):
            below.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._kept: dict[ModelId, Manifest] = {}
        self._growing: dict[ModelId, Manifest] = {}
        for path in sorted(self._manifests.iterdir(), key=lambda path: path.stat().st_mtime_ns):
            self._read(path)
        for path in self.names.iterdir():
            if path.name not in self._kept:
                shutil.rmtree(path, ignore_errors=True)

    def models(self) -> tuple[ModelId, ...]:
        """The models that are whole, the least recently used first."""
        return tuple(self._kept)

    def name_of(self, model_id: ModelId) -> str:
        """What a model that is whole is called, for people."""
        return self._kept[model_id].name

    def signed(self, model_id: ModelId) -> SignedManifest | None:
        """The signed manifest of a model that is whole, or None."""
        if model_id not in self._kept:
            return None
        text = self._manifest_path(model_id).read_bytes()
        return msgspec.json.decode(text, type=SignedManifest)

    def folder_of(self, model_id: ModelId) -> Path:
        """Where a model's files lie under their names."""
        return self.names / model_id

    def path_of(self, file: ManifestFile) -> Path:
        """Where a file lies once it was checked."""
        return self._files / file.sha256

    def part_path(self, file: ManifestFile) -> Path:
        """Where a file grows."""
        return self._files / (file.sha256 + PART_ENDING)

    def has(self, file: ManifestFile) -> bool:
        """Whether a file lies here whole."""
        return self.path_of(file).exists()

    def finish_part(self, file: ManifestFile) -> None:
        """A part was checked: it is the file."""
        self.part_path(file).rename(self.path_of(file))

    def drop_part(self, file: ManifestFile) -> None:
        """A part is not what it should be."""
        self.part_path(file).unlink(missing_ok=True)

    def touch(self, model_id: ModelId) -> None:
        """Note that a model is used."""
        self._kept[model_id] = self._kept.pop(model_id)
        os.utime(self._manifest_path(model_id))

    def begin(
        self, model_id: ModelId, manifest: Manifest, in_use: Iterable[ModelId]
    ) -> ModelFault | None:
        """Make room for a model that is to come, the least recently used going first.

        From then on nothing of it goes, until `add` or `give_up`.
        """
        wanted = {file.sha256: file.size_bytes for file in manifest.files}
        if sum(wanted.values()) > self._bytes_max:
            detail = f"{sum(wanted.values())} bytes are more than all models together may take"
            return ModelFault(ModelReason.TOO_LARGE, detail)
        self._growing[model_id] = manifest
        spared = frozenset(in_use)
        while not self._fits(wanted):
            if self._remove_leftovers():
                continue
            gone = next((one for one in self._kept if one not in spared), None)
            if gone is None:
                self.give_up(model_id)
                return ModelFault(ModelReason.DISK_FULL, "no room that other models do not need")
            self.remove(gone)
        return None

    def add(self, model_id: ModelId, signed: SignedManifest) -> None:
        """Keep a model that was begun and whose files all lie here, checked."""
        manifest = self._growing.pop(model_id)
        folder = self.folder_of(model_id)
        growing = folder.with_suffix(PART_ENDING)
        shutil.rmtree(growing, ignore_errors=True)
        shutil.rmtree(folder, ignore_errors=True)
        growing.mkdir(mode=0o700)
        for file in manifest.files:
            os.link(self.path_of(file), growing / file.name)
        growing.rename(folder)
        replace_file(self._manifest_path(model_id), msgspec.json.encode(signed))
        self._kept[model_id] = manifest

    def give_up(self, model_id: ModelId) -> None:
        """A model that was begun does not come; what has come of it stays while there is room."""
        self._growing.pop(model_id, None)

    def remove(self, model_id: ModelId) -> None:
        """Remove a model, and the files that no other model has."""
        # The manifest goes first: without it what is left counts as left over.
        self._manifest_path(model_id).unlink(missing_ok=True)
        del self._kept[model_id]
        shutil.rmtree(self.folder_of(model_id), ignore_errors=True)
        self._remove_leftovers()

    def _fits(self, wanted: dict[str, int]) -> bool:
        """Whether these files, by digest, have room beside all else that lies here."""
        here = self._sizes()
        growth = sum(
            size - here.get(digest, here.get(digest + PART_ENDING, 0))
            for digest, size in wanted.items()
        )
        disk = os.statvfs(self._files)
        room = disk.f_bavail * disk.f_frsize - DISK_BYTES_FREE_MIN
        return sum(here.values()) + growth <= self._bytes_max and growth <= max(0, room)

    def _read(self, path: Path) -> None:
        """Take up a model if it is whole."""
        try:
            text = path.read_bytes()
            signed = msgspec.json.decode(text[:MANIFEST_BYTES_MAX], type=SignedManifest)
            manifest = msgspec.json.decode(signed.manifest, type=Manifest)
        except msgspec.MsgspecError:
            path.unlink()
            return
        here = self._sizes()
        model_id = ModelId(path.stem)
        names = [self.folder_of(model_id) / file.name for file in manifest.files]
        is_whole = all(here.get(file.sha256) == file.size_bytes for file in manifest.files)
        if is_whole and all(name.is_file() for name in names):
            self._kept[model_id] = manifest
        else:
            path.unlink()

    def _sizes(self) -> dict[str, int]:
        """All files and parts, by name."""
        return {path.name: path.stat().st_size for path in self._files.iterdir()}

    def _remove_leftovers(self) -> bool:
        """Remove files and parts of no model that is here or on its way; whether there were any."""
        manifests = (*self._kept.values(), *self._growing.values())
        named = {file.sha256 for manifest in manifests for file in manifest.files}
        leftovers = [
            path
            for path in self._files.iterdir()
            if path.name.removesuffix(PART_ENDING) not in named
        ]
        for path in leftovers:
            path.unlink()
        return bool(leftovers)

    def _manifest_path(self, model_id: ModelId) -> Path:
        return self._manifests / f"{model_id}.json"
