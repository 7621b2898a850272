"""What operators ask of a control plane: keys, enrolment codes, models, cars, status, stories."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from terafleet.protocol.admin import (
    CODES_PATH,
    KEYS_PATH,
    MODELS_PATH,
    STATUS_PATH,
    VEHICLES_PATH,
    CodeCreate,
    CodeCreated,
    KeyCreate,
    KeyCreated,
    KeyList,
    KeyView,
    ModelCreate,
    ModelFileView,
    ModelList,
    ModelRemoved,
    ModelView,
    ModelWarm,
    Status,
    StoryPage,
    VehicleChanged,
    VehiclesPage,
    key_path,
    model_file_path,
    model_path,
    story_path,
    vehicle_path,
    warm_path,
)
from terafleet.protocol.manifest import Manifest, ManifestFile
from terafleet.protocol.shard import WarmView
from terafleet.sdk.gateway import Gateway, segment
from terafleet.sdk.local_files import Progress, ignore_progress

CODE_VALID_S = 86_400
STORY_LINES = 100

FileProgress = Callable[[str, int, int], None]
"""Called with a file's name, the bytes of it that are done, and the bytes of all of it."""


def ignore_file_progress(_: str, __: int, ___: int) -> None:
    """Tell nobody."""


class AdminClient:
    """A control plane, as an operator sees it; a context manager that closes its connections.

    Every method raises TerafleetError.
    """

    def __init__(self, url: str, api_key: str) -> None:
        """`url` is the control plane's root, `api_key` the secret of an operator's key."""
        self._gateway = Gateway(url, api_key)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self.close()

    @property
    def url(self) -> str:
        """Where the control plane is."""
        return self._gateway.url

    def close(self) -> None:
        """Close the connections."""
        self._gateway.close()

    def create_key(
        self, name: str, role: str = "customer", customer_id: str | None = None
    ) -> KeyCreated:
        """Make an API key; the answer is the only place where its secret ever is.

        `role` is `customer` or `operator`; without `customer_id` the key is of a customer of its
        own.
        """
        return self._gateway.post(KEYS_PATH, KeyCreate(name, role, customer_id), KeyCreated)

    def keys(self) -> KeyList:
        """All API keys, also revoked ones, oldest first."""
        return self._gateway.get(KEYS_PATH, KeyList)

    def revoke_key(self, key_id: str) -> KeyView:
        """Revoke an API key at once."""
        return self._gateway.delete(key_path(segment(key_id)), KeyView)

    def create_code(self, valid_s: int = CODE_VALID_S) -> CodeCreated:
        """Make a one-time code with which one car can enrol for `valid_s` seconds."""
        return self._gateway.post(CODES_PATH, CodeCreate(valid_s), CodeCreated)

    def models(self) -> ModelList:
        """The models, oldest first."""
        return self._gateway.get(MODELS_PATH, ModelList)

    def find_model_file(self, sha256: str) -> ModelFileView | None:
        """A stored file of models, by the SHA-256 of its bytes in hex."""
        return self._gateway.find(model_file_path(segment(sha256)), ModelFileView)

    def put_model_file(
        self, path: Path, file: ManifestFile, progress: Progress = ignore_progress
    ) -> bool:
        """Store the file of a model unless it is there; whether it was sent. Raises OSError too."""
        stored = self.find_model_file(file.sha256)
        if stored is not None and stored.size_bytes == file.size_bytes:
            progress(file.size_bytes, file.size_bytes)
            return False
        address = model_file_path(segment(file.sha256))
        with path.open("rb") as body:
            self._gateway.put_file(address, body, file.size_bytes, ModelFileView, progress)
        return True

    def add_model(
        self,
        manifest: Manifest,
        paths: Mapping[str, Path],
        progress: FileProgress = ignore_file_progress,
    ) -> ModelView:
        """Store the files of a model that are not there yet, then publish it.

        `paths` says where each file of the manifest lies. Raises OSError too.
        """
        for file in manifest.files:
            self.put_model_file(paths[file.name], file, partial(progress, file.name))
        return self.create_model(manifest)

    def create_model(self, manifest: Manifest) -> ModelView:
        """Publish a model whose files are all stored; the same model again changes nothing."""
        return self._gateway.post(MODELS_PATH, ModelCreate(manifest), ModelView)

    def remove_model(self, model_id: str) -> ModelRemoved:
        """Remove a model; accepted work on it goes on."""
        return self._gateway.delete(model_path(segment(model_id)), ModelRemoved)

    def warm_model(self, model_id: str, slots: int) -> WarmView:
        """Keep a model in memory in so many slots of the fleet; 0 ends that.

        What is said is how far it is at this moment: cars need a while to load.
        """
        return self._gateway.put(warm_path(segment(model_id)), ModelWarm(slots), WarmView)

    def vehicles(self) -> VehiclesPage:
        """All cars."""
        return self._gateway.get(VEHICLES_PATH, VehiclesPage)

    def drain_vehicle(self, vehicle_id: str) -> VehicleChanged:
        """Grant a car nothing new; what it has it may end."""
        return self._gateway.post(vehicle_path(segment(vehicle_id), "drain"), None, VehicleChanged)

    def undrain_vehicle(self, vehicle_id: str) -> VehicleChanged:
        """Grant a car work again."""
        address = vehicle_path(segment(vehicle_id), "undrain")
        return self._gateway.post(address, None, VehicleChanged)

    def vehicle_policy(self, vehicle_id: str) -> dict[str, Any]:
        """The owner policy that was set for a car, in the form of owner.toml."""
        return self._gateway.get(vehicle_path(segment(vehicle_id), "policy"), dict[str, Any])

    def set_vehicle_policy(self, vehicle_id: str, policy: Mapping[str, Any]) -> VehicleChanged:
        """Set an owner policy for a car; what its owner says in the car goes before it."""
        address = vehicle_path(segment(vehicle_id), "policy")
        return self._gateway.put(address, policy, VehicleChanged)

    def clear_vehicle_policy(self, vehicle_id: str) -> VehicleChanged:
        """Take back the owner policy that was set for a car."""
        return self._gateway.delete(vehicle_path(segment(vehicle_id), "policy"), VehicleChanged)

    def remove_vehicle(self, vehicle_id: str) -> VehicleChanged:
        """Take a car out of the fleet for good."""
        return self._gateway.delete(vehicle_path(segment(vehicle_id)), VehicleChanged)

    def status(self) -> Status:
        """How the control plane is; also when its shard does not answer."""
        return self._gateway.get(STATUS_PATH, Status)

    def story(self, about: str, limit: int = STORY_LINES) -> StoryPage:
        """What happened to a batch, work unit, lease, car or model; the newest `limit` lines."""
        return self._gateway.get(story_path(segment(about)), StoryPage, {"limit": limit})
