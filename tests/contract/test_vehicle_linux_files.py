"""Each part of the Linux adapter on the files that it reads."""

import os
from pathlib import Path

import msgspec
import pytest

from terafleet.agent.adapters.meter.rapl import RaplMeter
from terafleet.agent.adapters.vehicle.linux_files import FILE_BYTES_MAX, read_text, read_whole
from terafleet.agent.adapters.vehicle.linux_heat import Heat
from terafleet.agent.adapters.vehicle.linux_inputs import InputDevices, Presence
from terafleet.agent.adapters.vehicle.linux_load import OtherLoad
from terafleet.agent.adapters.vehicle.linux_network import (
    Route,
    default_route,
    gateway_mark,
    is_link_metered,
    place,
)
from terafleet.agent.adapters.vehicle.linux_power import WALL_ONLY, Supplies, read_supplies
from terafleet.agent.linux_settings import LinuxSettings, linux_faults
from tests.contract.linux_tree import (
    BLUETOOTH_MOUSE,
    HOME_MARK,
    INTERRUPTS,
    KEYBOARD,
    LAPTOP_KEYBOARD,
    POWER_BUTTON,
    THINKPAD_TOUCHPAD,
    TOUCHPAD,
    USB_DEVICE,
    LinuxTree,
)


@pytest.fixture
def tree(tmp_path: Path) -> LinuxTree:
    return LinuxTree(tmp_path)


# Files


@pytest.mark.parametrize(
    ("text", "number"),
    [("12\n", 12), ("-3", -3), ("", None), ("1.5", None), ("0x10", None), ("\u0661", None)],
)
def test_a_whole_number_is_all_of_its_file(tmp_path: Path, text: str, number: int | None) -> None:
    (tmp_path / "file").write_text(text)
    assert read_whole(f"{tmp_path}/file") == number


def test_what_can_not_be_read_is_missing(tmp_path: Path) -> None:
    assert read_text(f"{tmp_path}/none") is None
    assert read_text(str(tmp_path)) is None
    (tmp_path / "large").write_bytes(b"1" * (FILE_BYTES_MAX + 1))
    assert read_text(f"{tmp_path}/large") is None
    os.mkfifo(tmp_path / "pipe")
    assert read_text(f"{tmp_path}/pipe") == "", "a pipe that nobody fills does not block"


# Power supplies


def test_a_computer_without_battery_is_always_plugged_in_and_full(tree: LinuxTree) -> None:
    tree.set_battery(SCOPE="Device")
    assert read_supplies(tree.path) == WALL_ONLY, "the battery is that of a mouse"
    tree.set_battery(SCOPE=None, PRESENT="0")
    assert read_supplies(tree.path) == WALL_ONLY, "the battery was taken out"
    assert (WALL_ONLY.is_plugged_in, WALL_ONLY.soc_percent) == (True, 100)


def test_without_the_kernels_folder_nothing_is_known(tmp_path: Path) -> None:
    assert read_supplies(str(tmp_path)) == Supplies()


def test_a_supply_that_can_not_be_read_may_be_a_battery(tree: LinuxTree) -> None:
    tree.remove("sys/class/power_supply/BAT0/uevent")
    assert read_supplies(tree.path) == Supplies(is_plugged_in=True)


@pytest.mark.parametrize(
    ("plugs", "status", "is_plugged_in"),
    [
        ({"AC": "0", "USBC0": "1"}, "Unknown", True),
        ({"AC": "0", "USBC0": "0"}, "Charging", False),
        ({"AC": "0", "USBC0": "x"}, "Charging", None),
        ({}, "Discharging", False),
        ({}, "Not charging", True),
        ({}, "Unknown", None),
    ],
)
def test_any_plug_will_do_and_else_the_battery_tells(
    tree: LinuxTree, plugs: dict[str, str], status: str, is_plugged_in: bool | None
) -> None:
    tree.remove("sys/class/power_supply/AC/uevent")
    (tree.folder / "sys/class/power_supply/AC/type").unlink()
    (tree.folder / "sys/class/power_supply/AC").rmdir()
    for name, online in plugs.items():
        tree.set_plug(online, name, "Mains" if name == "AC" else "USB")
    tree.set_battery(STATUS=status)
    assert read_supplies(tree.path).is_plugged_in is is_plugged_in


def test_two_batteries_are_one_pack(tree: LinuxTree) -> None:
    tree.set_battery("BAT0", CAPACITY="80", ENERGY_FULL="20000000", STATUS="Not charging")
    tree.set_battery(
        "BAT1",
        CAPACITY="20",
        ENERGY_FULL="60000000",
        STATUS="Charging",
        POWER_NOW=None,
        CURRENT_NOW="-2000000",
        TEMP="300",
    )
    found = read_supplies(tree.path)
    assert found.soc_percent == 35
    assert (found.is_charging, found.charging_mw, found.discharging_mw) == (True, 24_000, 0)
    assert found.battery_temperature_c == 30
    tree.set_battery("BAT1", CAPACITY=None)
    assert read_supplies(tree.path).soc_percent is None


# Input


def presence(tree: LinuxTree, *, is_headless: bool = False) -> Presence:
    return Presence(10, is_headless=is_headless, root=tree.path)


def test_somebody_is_there_until_long_enough_nothing_was_touched(tree: LinuxTree) -> None:
    one = presence(tree)
    seen = {at_s: one.is_driver_present(at_s * 1_000) for at_s in (0, 9, 10, 100)}
    assert seen == {0: True, 9: True, 10: False, 100: False}
    tree.write(f"{USB_DEVICE}/urbnum", "124")
    assert [one.is_driver_present(at_s * 1_000) for at_s in (101, 110, 111)] == [True, True, False]


@pytest.mark.parametrize(
    ("device", "interrupt"),
    [
        (LAPTOP_KEYBOARD, "i8042"),
        (TOUCHPAD, "MSFT0001:01"),
        (THINKPAD_TOUCHPAD, "i801_smbus,rmi4_smbus"),
    ],
)
def test_the_parts_of_a_laptop_have_interrupts(
    tree: LinuxTree, device: str, interrupt: str
) -> None:
    tree.set_devices(POWER_BUTTON, device)
    tree.set_interrupts()
    one = presence(tree)
    assert one.is_driver_present(0) is True
    tree.set_interrupts(*(name for name in INTERRUPTS if name != interrupt), count=5)
    assert one.is_driver_present(10_000) is False
    tree.set_interrupts(interrupt, count=1)
    assert one.is_driver_present(11_000) is True


def test_a_device_whose_counter_is_gone_is_looked_for_again(tree: LinuxTree) -> None:
    one = presence(tree)
    one.is_driver_present(0)
    tree.remove(f"{USB_DEVICE}/urbnum")
    assert one.is_driver_present(10_000) is None
    tree.write(f"{USB_DEVICE}/1-2:1.0/urbnum", "3")
    assert one.is_driver_present(11_000) is True
    assert one.is_driver_present(21_000) is False


def test_a_terminal_that_is_typed_into_counts_and_one_that_is_written_to_does_not(
    tree: LinuxTree,
) -> None:
    terminal = tree.write("dev/pts/3", "")
    os.utime(terminal, (1_000, 1_000))
    one = presence(tree, is_headless=True)
    one.is_driver_present(0)
    os.utime(terminal, (1_000, 2_000))
    assert one.is_driver_present(10_000) is False
    os.utime(terminal, (1_008, 2_000))
    assert one.is_driver_present(11_000) is True
    assert one.is_driver_present(21_000) is False
    terminal.unlink()
    assert one.is_driver_present(22_000) is True, "somebody closed it"


def test_who_can_not_be_told_from_nobody_is_missing(tree: LinuxTree) -> None:
    tree.set_devices(KEYBOARD, BLUETOOTH_MOUSE)
    one = presence(tree)
    assert one.is_driver_present(0) is None
    assert one.is_driver_present(20_000) is None
    tree.set_devices(KEYBOARD)
    assert one.is_driver_present(21_000) is True, "it went to sleep, so it was used before"
    assert one.is_driver_present(31_000) is False
    tree.set_devices(POWER_BUTTON)
    assert one.is_driver_present(41_000) is None, "nothing here that a hand would use"


def test_headless_only_terminals_tell(tree: LinuxTree) -> None:
    tree.set_devices(BLUETOOTH_MOUSE)
    one = presence(tree, is_headless=True)
    assert one.is_driver_present(0) is True, "somebody has just started it"
    assert one.is_driver_present(10_000) is False


def test_the_buttons_of_a_headset_are_no_keyboard(tree: LinuxTree) -> None:
    assert len(InputDevices(tree.path).counters()) == 1
    tree.set_devices(KEYBOARD.replace("EV=120013", "EV=13"))
    assert InputDevices(tree.path).counters() == {}


def test_a_device_that_points_out_of_sys_is_no_device(tree: LinuxTree) -> None:
    tree.set_devices(KEYBOARD.replace("usb1/1-2", "../../../etc"))
    assert InputDevices(tree.path).counters() == {}


# Load


def test_the_load_of_others_is_what_is_not_of_our_tree(tree: LinuxTree) -> None:
    tree.set_process(1, 0)
    tree.set_process(40, 1, 10, 5)
    tree.set_process(50, 1, 100, 0)
    tree.set_ticks(user=100, idle=900)
    load = OtherLoad(tree.path, process_id=40)
    assert load.percent() is None, "one look is no difference"
    # Of 200 ticks 100 are busy: 20 of the agent, 30 of its child, and 50 of somebody else.
    tree.set_process(40, 1, 25, 10)
    tree.set_process(60, 40, 10, 0)
    tree.set_process(61, 60, 20, 0)
    tree.set_process(50, 1, 150, 0)
    tree.set_ticks(user=190, system=10, idle=1_000)
    assert load.percent() == 25
    tree.set_ticks(user=195, system=10, idle=1_005)
    assert load.percent() == 25, "too short to be measured"
    # The child ends, and its parent, who reaps it, has its ticks.
    (tree.folder / "proc/61/stat").unlink()
    (tree.folder / "proc/61").rmdir()
    tree.set_process(60, 40, 10, 0, 20)
    tree.set_ticks(user=200, system=10, idle=1_190)
    assert load.percent() == 5


def test_what_other_guests_take_is_nobodys_load_here(tree: LinuxTree) -> None:
    tree.set_process(40, 1)
    tree.set_ticks()
    load = OtherLoad(tree.path, process_id=40)
    load.percent()
    tree.set_ticks(user=10, iowait=20, steal=30, idle=40)
    assert load.percent() == 10


def test_a_load_that_can_not_be_read_is_missing(tree: LinuxTree) -> None:
    load = OtherLoad(tree.path, process_id=40)
    assert load.percent() is None
    tree.set_ticks(idle=100)
    assert load.percent() is None, "our own share is unknown"


# Heat


def test_a_chip_without_a_sensor_for_all_tells_its_warmest(tree: LinuxTree) -> None:
    tree.remove("sys/class/hwmon/hwmon0/temp1_label")
    tree.write("sys/class/hwmon/hwmon0/temp2_input", "48500")
    assert Heat(tree.path).look()[0] == 48.5
    tree.write("sys/class/hwmon/hwmon0/temp2_input", "")
    assert Heat(tree.path).look()[0] is None, "the other may be the cooler one"


def test_without_a_chip_the_zones_tell(tree: LinuxTree) -> None:
    tree.write("sys/class/hwmon/hwmon0/name", "nvme")
    for number, (kind, milli_c) in enumerate(
        (("acpitz", "90000"), ("cpu-thermal", "41000"), ("x86_pkg_temp", "43000"))
    ):
        tree.write(f"sys/class/thermal/thermal_zone{number}/type", kind)
        tree.write(f"sys/class/thermal/thermal_zone{number}/temp", milli_c)
    assert Heat(tree.path).look()[0] == 43


def test_a_sensor_that_fails_is_looked_for_again(tree: LinuxTree) -> None:
    heat = Heat(tree.path)
    heat.look()
    tree.remove("sys/class/hwmon/hwmon0/temp1_input")
    assert heat.look()[0] is None
    assert heat.look()[0] == 30, "the core's own sensor is what is left"


@pytest.mark.parametrize(
    ("files", "percent"),
    [
        ({"fan1_input": "0"}, 0),
        ({"fan1_input": "1500"}, 50),
        ({"fan1_input": "3300"}, 100),
        ({"fan1_max": "", "pwm1": "51"}, 20),
        ({"fan1_max": ""}, None),
        ({"fan2_input": "2000", "fan2_max": "2500"}, 80),
    ],
)
def test_the_fastest_fan_counts(
    tree: LinuxTree, files: dict[str, str], percent: float | None
) -> None:
    for name, text in files.items():
        tree.write(f"sys/class/hwmon/hwmon1/{name}", text)
    assert Heat(tree.path).look()[1] == percent


# Network


def test_the_route_of_the_least_metric_is_the_way_out(tree: LinuxTree) -> None:
    assert default_route(tree.path) == Route("wlan0", "192.168.2.1")
    route = (tree.folder / "proc/net/route").read_text()
    other = "wwan0\t00000000\t00000000\t0001\t0\t0\t100\t00000000\t0\t0\t0\n"
    down = "eth0\t00000000\t0101A8C0\t0000\t0\t0\t1\t00000000\t0\t0\t0\n"
    last = "eth1\t00000000\t0101A8C0\t0003\t0\t0\t700\t00000000\t0\t0\t0\n"
    tree.write("proc/net/route", route + other + down + last)
    assert default_route(tree.path) == Route("wwan0", "")
    tree.remove("proc/net/route")
    assert default_route(tree.path) is None
    tree.write("proc/net/route", "head\nnonsense\nwlan0\t00000000\tzz\t0003\t0\t0\tx\t00000000")
    assert default_route(tree.path) is None


def test_a_link_of_ipv6_alone_has_no_router_to_know_it_by(tree: LinuxTree) -> None:
    tree.remove("proc/net/route")
    nowhere = "0" * 32
    lines = (
        f"{nowhere} 00 {nowhere} 00 {nowhere} ffffffff 1 0 00200200 lo",
        f"{nowhere} 00 {nowhere} 00 fe80{nowhere[4:]} 00000400 4 0 00000003 usb0",
    )
    tree.write("proc/net/ipv6_route", "\n".join(lines))
    route = default_route(tree.path)
    assert route == Route("usb0", "")
    assert is_link_metered(LinuxSettings(), route, tree.path) is True
    assert place(LinuxSettings(places={HOME_MARK: "home"}), route, tree.path) is None


@pytest.mark.parametrize(
    ("link", "driver", "is_metered"),
    [
        ("eth0", "e1000e", False),
        ("enx02fc", "rndis_host", True),
        ("wwp0s20", "cdc_mbim", True),
        ("ppp0", "", True),
        ("tun0", "", None),
        ("dear0", "", True),
    ],
)
def test_names_and_drivers_tell_what_costs(
    tree: LinuxTree, link: str, driver: str, is_metered: bool | None
) -> None:
    if driver:
        device = tree.folder / f"sys/class/net/{link}/device"
        device.mkdir(parents=True)
        (device / "driver").symlink_to(f"../../../bus/usb/drivers/{driver}")
    settings = LinuxSettings(metered_links=("dear*",))
    assert is_link_metered(settings, Route(link, ""), tree.path) is is_metered
    allowed = msgspec.structs.replace(settings, is_link_metered=False)
    assert is_link_metered(allowed, None) is False


def test_a_place_is_known_by_its_router(tree: LinuxTree) -> None:
    route = default_route(tree.path)
    assert gateway_mark(route, tree.path) == HOME_MARK
    assert place(LinuxSettings(places={HOME_MARK: "home"}), route, tree.path) == "home"
    assert place(LinuxSettings(places={"0" * 16: "home"}), route, tree.path) == "elsewhere"
    assert place(LinuxSettings(), route, tree.path) is None, "without labels there are no places"
    tree.set_route("wlan0", None)
    assert gateway_mark(route, tree.path) is None, "the router has not answered"


# Counters of energy


def zone(tree: LinuxTree, name: str, label: str, energy_uj: str) -> str:
    folder = f"sys/class/powercap/{name}"
    tree.write(f"{folder}/name", label)
    tree.write(f"{folder}/max_energy_range_uj", "1000")
    tree.write(f"{folder}/energy_uj", energy_uj)
    return f"{folder}/energy_uj"


def test_packages_and_memory_count_once(tree: LinuxTree) -> None:
    package = zone(tree, "intel-rapl:0", "package-0", "100")
    memory = zone(tree, "intel-rapl:0:1", "dram", "10")
    for name, label in (
        ("intel-rapl:0:0", "core"),
        ("intel-rapl:1", "psys"),
        ("intel-rapl-mmio:0", "package-0"),
    ):
        zone(tree, name, label, "7")
    meter = RaplMeter(tree.path)
    assert meter.energy_uj() == 0
    tree.write(package, "150")
    tree.write(memory, "15")
    assert meter.energy_uj() == 55
    tree.write(package, "20")
    assert meter.energy_uj() == 55 + 850 + 20, "it began anew at its range"
    tree.remove(memory)
    assert meter.energy_uj() is None
    tree.write(memory, "999")
    assert meter.energy_uj() == 925, "nothing is made up for the time in between"


def test_without_counters_there_is_no_energy(tree: LinuxTree) -> None:
    assert RaplMeter(tree.path).energy_uj() is None


@pytest.mark.parametrize(
    ("settings", "faults"),
    [
        (LinuxSettings(place="garage", places={HOME_MARK: "home"}), 0),
        (LinuxSettings(idle_s=-1), 1),
        (LinuxSettings(idle_s=float("nan")), 1),
        (LinuxSettings(places={HOME_MARK.upper(): "home", "02:fc": "work"}), 2),
        (LinuxSettings(place="x" * 65, places={HOME_MARK: "ho\nme"}), 2),
    ],
)
def test_settings_that_make_no_sense_are_told(settings: LinuxSettings, faults: int) -> None:
    assert len(linux_faults(settings)) == faults
