"""Makes the vehicle's interface that the settings name."""

from collections.abc import Callable
from pathlib import Path

import msgspec

from terafleet.agent.adapters.vehicle.linux import LinuxVehicle
from terafleet.agent.adapters.vehicle.replay import ReplayVehicle, recording_of
from terafleet.agent.adapters.vehicle.scripted import ScriptedVehicle
from terafleet.agent.adapters.vehicle.sumo import SumoVehicle
from terafleet.agent.adapters.vehicle.timetable import TimetableFile, TimetableRefused
from terafleet.agent.kuksa_settings import KuksaSettings
from terafleet.agent.ports import VehicleInterface
from terafleet.agent.readings_csv import ReadingsRefused
from terafleet.agent.vehicle_settings import VehicleSettings
from terafleet.engine.clock import Clock

MakeVehicle = Callable[[Clock, Callable[[int], None]], VehicleInterface]
"""Makes it from the clock and from what cuts the link for some milliseconds."""


class VehicleRefused(msgspec.Struct, frozen=True):
    """The readings can't be had as the settings say."""

    detail: str


def vehicle_maker(settings: VehicleSettings, data_folder: Path) -> MakeVehicle | VehicleRefused:
    """What makes the interface; files that must be there are read once now."""
    path, sample_ms = settings.path(data_folder), settings.sample_ms
    match settings.chosen:
        case "scripted":
            return _scripted(path, sample_ms)
        case "replay":
            return _replay(settings, path)
        case "kuksa":
            return _kuksa(settings, data_folder)
        case "sumo":
            return lambda clock, _: SumoVehicle(path, sample_ms, clock)
        case "linux":
            return lambda clock, _: LinuxVehicle(settings.linux, sample_ms, clock)


def _scripted(path: Path, sample_ms: int) -> MakeVehicle | VehicleRefused:
    try:
        file = TimetableFile(path)
    except TimetableRefused as refused:
        return VehicleRefused(str(refused))

    def make(clock: Clock, cut_link: Callable[[int], None]) -> VehicleInterface:
        return ScriptedVehicle(file.timetable, sample_ms, clock, cut_link, another=file.another)

    return make


def _replay(settings: VehicleSettings, path: Path) -> MakeVehicle | VehicleRefused:
    try:
        recording = recording_of(path)
    except ReadingsRefused as refused:
        return VehicleRefused(str(refused))
    return lambda clock, _: ReplayVehicle(recording, settings.sample_ms, clock, settings.replay)


def _kuksa(settings: VehicleSettings, data_folder: Path) -> MakeVehicle | VehicleRefused:
    try:
        # gRPC is large, and most cars that are no cars have no databroker.
        from terafleet.agent.adapters.vehicle.kuksa import KuksaVehicle
    except ImportError as error:
        return VehicleRefused(f"{error.name} is missing: install terafleet[kuksa]")
    kuksa = _with_whole_paths(settings.kuksa, data_folder)
    return lambda clock, _: KuksaVehicle(kuksa, settings.sample_ms, clock)


def _with_whole_paths(settings: KuksaSettings, data_folder: Path) -> KuksaSettings:
    named = {
        name: str(data_folder / value)
        for name in ("ca_file", "token_file")
        if (value := getattr(settings, name))
    }
    return msgspec.structs.replace(settings, **named)
