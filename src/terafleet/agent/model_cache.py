"""Brings models to the car's disk, whole and checked, and hands them out ready to be loaded."""

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import msgspec
import structlog
from structlog.typing import FilteringBoundLogger

from terafleet.agent.gateway import Gateway, GatewayFault
from terafleet.agent.model_check import ModelFault, ModelReason, checked_file, checked_manifest
from terafleet.agent.model_disk import FULL_ERRNOS, FileTooLong, ModelDisk, PartFile
from terafleet.agent.ports import RuntimeModel
from terafleet.agent.waking import Sleep
from terafleet.core.ids import ModelId
from terafleet.protocol.manifest import Manifest, ManifestFile, ModelOffer, SignedManifest

OFFER_BYTES_MAX = 4 * 1024 * 1024
FETCH_TRIES_MAX = 5
"""So many tries in a row may bring nothing; one that brings bytes begins the count anew."""
RETRY_S_MIN = 1.0
RETRY_S_MAX = 30.0
DIGEST_TRIES = 2
ADDRESSES_MAX = 256

log: FilteringBoundLogger = structlog.get_logger()


class ModelCache:
    """The models of one car; all methods belong to the thread of the event loop.

    `changed` is called when a model has come or gone.
    """

    def __init__(
        self,
        disk: ModelDisk,
        gateway: Gateway,
        manifest_key: Callable[[], bytes],
        sleep: Sleep = asyncio.sleep,
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        self._disk = disk
        self._gateway = gateway
        self._manifest_key = manifest_key
        self._sleep = sleep
        self._changed = changed
        self._addresses: dict[ModelId, str] = {}
        self._in_use: set[ModelId] = set()
        self._checked: set[ModelId] = set()
        self._coming: dict[ModelId, _Coming] = {}
        self._file_locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def models(self) -> tuple[ModelId, ...]:
        """The models that lie on the disk, whole; in the order of their ids."""
        return tuple(sorted(self._disk.models()))

    def name_of(self, model_id: ModelId) -> str:
        """What a model on the disk is called, for people."""
        return self._disk.name_of(model_id)

    def learn_address(self, model_id: ModelId, address: str) -> None:
        """Note where a model's offer is; the newest address replaces those before."""
        self._addresses.pop(model_id, None)
        self._addresses[model_id] = address
        if len(self._addresses) > ADDRESSES_MAX:
            del self._addresses[next(iter(self._addresses))]

    async def prepared(self, model_id: ModelId) -> RuntimeModel | ModelFault:
        """The model on the disk, checked; it is fetched if it is not there.

        Calls for one model share one download, which is given up when nobody waits for it any
        more. The model counts as in use, and stays, until `release`.
        """
        coming = self._coming.get(model_id)
        if coming is None:
            coming = self._coming[model_id] = _Coming(self._prepare(model_id))
        coming.waiting += 1
        try:
            # Shielded, because others may wait for the same download.
            return await asyncio.shield(coming.task)
        finally:
            coming.waiting -= 1
            if coming.waiting == 0:
                coming.task.cancel()
                if self._coming.get(model_id) is coming:
                    del self._coming[model_id]

    def release(self) -> None:
        """The runtime holds no model any more."""
        self._in_use &= self._coming.keys()

    async def _prepare(self, model_id: ModelId) -> RuntimeModel | ModelFault:
        self._in_use.add(model_id)
        model: RuntimeModel | ModelFault | None = None
        try:
            model = await self._from_disk(model_id) or await self._from_gateway(model_id)
        except OSError as error:
            is_full = error.errno in FULL_ERRNOS
            reason = ModelReason.DISK_FULL if is_full else ModelReason.DISK_FAILED
            model = ModelFault(reason, error.strerror or str(error))
        finally:
            if not isinstance(model, RuntimeModel):
                self._in_use.discard(model_id)
                self._disk.give_up(model_id)
        if isinstance(model, ModelFault):
            cause, detail = model.reason, model.detail
            log.warning("model_unavailable", model_id=model_id, cause=cause, detail=detail)
        return model

    async def _from_disk(self, model_id: ModelId) -> RuntimeModel | None:
        """The model if it lies here whole; its bytes are looked at once in a process's life."""
        signed = self._disk.signed(model_id)
        if signed is None:
            return None
        manifest = checked_manifest(signed, model_id, self._manifest_key())
        fault: ModelFault | None = manifest if isinstance(manifest, ModelFault) else None
        if isinstance(manifest, Manifest) and model_id not in self._checked:
            fault = await asyncio.to_thread(self._files_fault, manifest)
        if isinstance(manifest, ModelFault) or fault is not None:
            log.warning("model_on_disk_damaged", model_id=model_id, cause=str(fault))
            self._disk.remove(model_id)
            self._changed()
            return None
        self._checked.add(model_id)
        self._disk.touch(model_id)
        return self._runtime_model(model_id, manifest)

    def _files_fault(self, manifest: Manifest) -> ModelFault | None:
        for file in manifest.files:
            fault = _fault_of(self._disk.path_of(file), file)
            if fault is not None:
                return fault
        return None

    async def _from_gateway(self, model_id: ModelId) -> RuntimeModel | ModelFault:
        offer = await self._fetch_offer(model_id)
        if isinstance(offer, ModelFault):
            return offer
        manifest = checked_manifest(offer.signed, model_id, self._manifest_key())
        if isinstance(manifest, ModelFault):
            return manifest
        fault = self._disk.begin(model_id, manifest, self._in_use)
        for file in manifest.files:
            if fault is None:
                fault = await self._fetch_file(file, offer.addresses.get(file.name, ""))
        if fault is not None:
            return fault
        return self._keep(model_id, offer.signed, manifest)

    def _keep(self, model_id: ModelId, signed: SignedManifest, manifest: Manifest) -> RuntimeModel:
        self._disk.add(model_id, signed)
        self._checked.add(model_id)
        log.info("model_fetched", model_id=model_id, name=manifest.name)
        self._changed()
        return self._runtime_model(model_id, manifest)

    def _runtime_model(self, model_id: ModelId, manifest: Manifest) -> RuntimeModel:
        folder = self._disk.folder_of(model_id)
        return RuntimeModel(model_id, manifest.runtime, folder, manifest.options)

    async def _fetch_offer(self, model_id: ModelId) -> ModelOffer | ModelFault:
        address = self._addresses.get(model_id)
        if address is None:
            return ModelFault(ModelReason.ADDRESS_MISSING, "nobody has said where it is")
        text = await self._gateway.fetch(address, OFFER_BYTES_MAX)
        for failures in range(FETCH_TRIES_MAX - 1):
            if not isinstance(text, GatewayFault) or not text.is_passing:
                break
            await self._sleep(_retry_s(failures))
            text = await self._gateway.fetch(address, OFFER_BYTES_MAX)
        if isinstance(text, GatewayFault):
            return _fetch_failed(text)
        try:
            return msgspec.json.decode(text, type=ModelOffer)
        except msgspec.MsgspecError as error:
            return ModelFault(ModelReason.MANIFEST_INVALID, str(error))

    async def _fetch_file(self, file: ManifestFile, address: str) -> ModelFault | None:
        """Bring one file to its place, unless it lies there, put by another model."""
        lock = self._file_locks.setdefault(file.sha256, asyncio.Lock())
        async with lock:
            if self._disk.has(file):
                return None
            fault: ModelFault | None = None
            for _ in range(DIGEST_TRIES):
                fault = await self._fetch_once(file, address)
                if fault is None or fault.reason is not ModelReason.FILE_DIGEST_WRONG:
                    break
            return fault

    async def _fetch_once(self, file: ManifestFile, address: str) -> ModelFault | None:
        part = self._disk.part_path(file)
        fault = await self._pour(part, file, address)
        if fault is None:
            fault = await asyncio.to_thread(_fault_of, part, file)
        if fault is None:
            self._disk.finish_part(file)
        elif fault.reason is not ModelReason.FETCH_FAILED:
            self._disk.drop_part(file)
        return fault

    async def _pour(self, part: Path, file: ManifestFile, address: str) -> ModelFault | None:
        """Download the rest of a file, through as many cut connections as it takes."""
        sink = PartFile(part, file.size_bytes)
        try:
            failures = 0
            while not sink.is_whole:
                had = sink.offset
                fault = await self._gateway.download(address, had, sink)
                if sink.is_whole:
                    break
                failures = 0 if sink.offset > had else failures + 1
                if fault is not None and not fault.is_passing and sink.offset == had:
                    return _fetch_failed(fault)
                if failures >= FETCH_TRIES_MAX:
                    cut_off = GatewayFault("cut_off", f"{sink.offset} of {file.size_bytes} bytes")
                    return _fetch_failed(fault or cut_off)
                await self._sleep(_retry_s(failures))
        except FileTooLong:
            return ModelFault(ModelReason.FILE_DIGEST_WRONG, f"{file.name} is too long")
        finally:
            sink.close()
        return None


class _Coming:
    """A model on its way to the disk, and how many wait for it."""

    def __init__(self, preparing: Coroutine[Any, Any, RuntimeModel | ModelFault]) -> None:
        self.task = asyncio.ensure_future(preparing)
        self.waiting = 0


def _fault_of(path: Path, file: ManifestFile) -> ModelFault | None:
    """As `checked_file`; a file that can't be read is a damaged one. For a thread."""
    try:
        return checked_file(path, file)
    except OSError as error:
        return ModelFault(ModelReason.DISK_FAILED, f"{file.name}: {error.strerror}")


def _fetch_failed(fault: GatewayFault) -> ModelFault:
    return ModelFault(ModelReason.FETCH_FAILED, f"{fault.code}: {fault.detail}")


def _retry_s(failures: int) -> float:
    return min(RETRY_S_MAX, RETRY_S_MIN * 2.0**failures)
