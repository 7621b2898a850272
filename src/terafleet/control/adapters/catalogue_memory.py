"""The catalogue in memory: for tests and simulations, with a capacity that can be full."""

from collections.abc import Sequence

from msgspec.structs import replace

from terafleet.control.ports import (
    CatalogueFull,
    CodeRow,
    FileRow,
    KeyRow,
    ModelRow,
    VehicleRow,
)


class MemoryCatalogue:
    """Keeps the promises of `Catalogue` as long as the process lives; for one thread."""

    def __init__(self, rows_max: int | None = None) -> None:
        """`rows_max` is the capacity over all tables; None has no limit."""
        self._rows_max = rows_max
        self._files: dict[str, FileRow] = {}
        self._keys: dict[str, KeyRow] = {}
        self._codes: dict[bytes, CodeRow] = {}
        self._vehicles: dict[str, VehicleRow] = {}
        self._models: dict[str, ModelRow] = {}

    def add_file(self, row: FileRow) -> None:
        """Keep a file's row. Raises ValueError if the id is taken."""
        self._check_new(row.file_id in self._files)
        self._files[row.file_id] = row

    def file(self, file_id: str) -> FileRow | None:
        """One file, or None."""
        return self._files.get(file_id)

    def files(
        self, customer_id: str, purpose: str, after: str, limit: int, is_ascending: bool
    ) -> Sequence[FileRow]:
        """A customer's files by time, behind the file `after`; an empty purpose is any."""
        rows = [row for row in self._files.values() if row.customer_id == customer_id]
        if after:
            position = self._files.get(after)
            if position is None or position.customer_id != customer_id:
                return []
            rows.remove(position)
            begin = _file_order(position)
            rows = [row for row in rows if (_file_order(row) > begin) == is_ascending]
        rows = [row for row in rows if purpose in ("", row.purpose)]
        return sorted(rows, key=_file_order, reverse=not is_ascending)[:limit]

    def delete_file(self, file_id: str) -> bool:
        """Remove a file's row; whether there was one."""
        return self._files.pop(file_id, None) is not None

    def add_key(self, row: KeyRow) -> None:
        """Keep an API key. Raises ValueError if its id or its secret is taken."""
        is_taken = any(known.secret_sha256 == row.secret_sha256 for known in self._keys.values())
        self._check_new(is_taken or row.key_id in self._keys)
        self._keys[row.key_id] = row

    def key_by_secret(self, secret_sha256: bytes) -> KeyRow | None:
        """The key with this secret, also a revoked one, or None."""
        for row in self._keys.values():
            if row.secret_sha256 == secret_sha256:
                return row
        return None

    def keys(self) -> Sequence[KeyRow]:
        """All keys, also revoked ones, oldest first."""
        return sorted(self._keys.values(), key=lambda row: (row.created_ms, row.key_id))

    def revoke_key(self, key_id: str, at_ms: int) -> bool:
        """Revoke a key; whether it was good until then."""
        row = self._keys.get(key_id)
        if row is None or row.revoked_ms:
            return False
        self._keys[key_id] = replace(row, revoked_ms=at_ms)
        return True

    def add_code(self, row: CodeRow) -> None:
        """Keep an enrolment code. Raises ValueError if it is taken."""
        self._check_new(row.code_sha256 in self._codes)
        self._codes[row.code_sha256] = row

    def use_code(self, code_sha256: bytes, vehicle: VehicleRow, at_ms: int) -> str | None:
        """Use a code up and enrol the car in one step; else the error's code, nothing changed.

        Raises ValueError if the car's id is taken.
        """
        row = self._codes.get(code_sha256)
        if row is None:
            return "enrolment_code_invalid"
        if row.used_ms:
            return "enrolment_code_used"
        if row.expires_ms <= at_ms:
            return "enrolment_code_expired"
        self._check_new(vehicle.vehicle_id in self._vehicles)
        used = replace(row, used_ms=at_ms, vehicle_id=vehicle.vehicle_id)
        self._codes[code_sha256] = used
        self._vehicles[vehicle.vehicle_id] = vehicle
        return None

    def vehicle(self, vehicle_id: str) -> VehicleRow | None:
        """One car, also a removed one, or None."""
        return self._vehicles.get(vehicle_id)

    def vehicles(self) -> Sequence[VehicleRow]:
        """The cars that are not removed, oldest first."""
        rows = [row for row in self._vehicles.values() if not row.removed_ms]
        return sorted(rows, key=lambda row: (row.enrolled_ms, row.vehicle_id))

    def remove_vehicle(self, vehicle_id: str, at_ms: int) -> bool:
        """Remove a car for good; whether it was enrolled until then."""
        row = self._vehicles.get(vehicle_id)
        if row is None or row.removed_ms:
            return False
        self._vehicles[vehicle_id] = replace(row, removed_ms=at_ms)
        return True

    def add_model(self, row: ModelRow) -> str | None:
        """Add, or the error's code (`model_name_taken`); a removed model comes back.

        The same model again is no error and changes nothing.
        """
        known = self._models.get(row.model_id)
        if known is not None and not known.removed_ms:
            return None
        if self.model_by_name(row.name) is not None:
            return "model_name_taken"
        self._check_new(False)
        self._models[row.model_id] = row
        return None

    def model(self, model_id: str) -> ModelRow | None:
        """One model, also a removed one, or None."""
        return self._models.get(model_id)

    def model_by_name(self, name: str) -> ModelRow | None:
        """The model that has this name at present, or None."""
        for row in self._models.values():
            if row.name == name and not row.removed_ms:
                return row
        return None

    def models(self) -> Sequence[ModelRow]:
        """The models that are not removed, oldest first."""
        rows = [row for row in self._models.values() if not row.removed_ms]
        return sorted(rows, key=lambda row: (row.created_ms, row.model_id))

    def remove_model(self, model_id: str, at_ms: int) -> bool:
        """Remove a model, so that its name is free again; whether it was there until then."""
        row = self._models.get(model_id)
        if row is None or row.removed_ms:
            return False
        self._models[model_id] = replace(row, removed_ms=at_ms)
        return True

    def close(self) -> None:
        """Nothing to let go of."""

    def _check_new(self, is_taken: bool) -> None:
        if is_taken:
            raise ValueError("the id is taken")
        tables = (self._files, self._keys, self._codes, self._vehicles, self._models)
        if self._rows_max is not None and sum(len(table) for table in tables) >= self._rows_max:
            raise CatalogueFull(f"no room for more than {self._rows_max} rows")


def _file_order(row: FileRow) -> tuple[int, str]:
    return row.created_ms, row.file_id
