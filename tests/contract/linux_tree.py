"""A folder that looks like a Linux computer's `/sys`, `/proc` and `/dev`, to be changed at will.

It begins as a laptop at the plug with a USB keyboard that nobody touches, at home.
"""

import hashlib
from pathlib import Path

KEYBOARD = """I: Bus=0003 Vendor=046d Product=c31c Version=0110
N: Name="Logitech USB Keyboard"
P: Phys=usb-0000:00:14.0-2/input0
S: Sysfs=/devices/pci0000:00/0000:00:14.0/usb1/1-2/1-2:1.0/0003:046D:C31C.0001/input/input5
U: Uniq=
H: Handlers=sysrq kbd event3 leds
B: PROP=0
B: EV=120013
"""
POWER_BUTTON = """I: Bus=0019 Vendor=0000 Product=0001 Version=0000
N: Name="Power Button"
P: Phys=LNXPWRBN/button/input0
S: Sysfs=/devices/LNXSYSTM:00/LNXPWRBN:00/input/input0
U: Uniq=
H: Handlers=kbd event0
B: PROP=0
B: EV=3
"""
LAPTOP_KEYBOARD = """I: Bus=0011 Vendor=0001 Product=0001 Version=ab41
N: Name="AT Translated Set 2 keyboard"
S: Sysfs=/devices/platform/i8042/serio0/input/input2
H: Handlers=sysrq kbd event2 leds
B: EV=120013
"""
TOUCHPAD = """I: Bus=0018 Vendor=06cb Product=7f27 Version=0100
N: Name="MSFT0001:01 06CB:7F27 Touchpad"
S: Sysfs=/devices/pci0000:00/i2c_designware.0/i2c-3/i2c-MSFT0001:01/0018:06CB.0001/input/input16
H: Handlers=mouse0 event14
B: EV=1b
"""
THINKPAD_TOUCHPAD = """I: Bus=001d Vendor=06cb Product=0000 Version=0000
N: Name="Synaptics TM3276-022"
S: Sysfs=/devices/pci0000:00/0000:00:1f.4/i2c-7/7-002c/rmi4-00/input/input19
H: Handlers=mouse1 event9
B: EV=b
"""
BLUETOOTH_MOUSE = """I: Bus=0005 Vendor=046d Product=b023 Version=0015
N: Name="MX Master 3 Mouse"
S: Sysfs=/devices/virtual/misc/uhid/0005:046D:B023.0009/input/input31
H: Handlers=mouse2 event18
B: EV=17
"""
INTERRUPTS = {"acpi": 9, "i8042": 1, "i801_smbus,rmi4_smbus": 52, "MSFT0001:01": 51}
USB_DEVICE = "sys/devices/pci0000:00/0000:00:14.0/usb1/1-2"
ROUTER = "02:fc:00:aa:bb:cc"
WORK_ROUTER = "02:fc:00:11:22:33"
HOME_MARK, WORK_MARK = (
    hashlib.sha256(one.encode()).hexdigest()[:16] for one in (ROUTER, WORK_ROUTER)
)
ROUTE_HEAD = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n"
ARP_HEAD = "IP address       HW type     Flags       HW address            Mask     Device\n"


class LinuxTree:
    """The folder; `path` is what an adapter takes for its root."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.battery = {
            "NAME": "BAT0",
            "TYPE": "Battery",
            "STATUS": "Not charging",
            "PRESENT": "1",
            "CAPACITY": "80",
            "VOLTAGE_NOW": "12000000",
            "POWER_NOW": "0",
            "TEMP": "210",
        }
        self.set_battery()
        self.write("sys/class/power_supply/BAT0/charge_control_end_threshold", "90")
        self.set_plug("1")
        self.set_devices(POWER_BUTTON, KEYBOARD)
        self.write(f"{USB_DEVICE}/urbnum", "120")
        self.write("sys/class/hwmon/hwmon0/name", "coretemp")
        self.write("sys/class/hwmon/hwmon0/temp1_label", "Package id 0")
        self.write("sys/class/hwmon/hwmon0/temp1_input", "31000")
        self.write("sys/class/hwmon/hwmon0/temp2_label", "Core 0")
        self.write("sys/class/hwmon/hwmon0/temp2_input", "30000")
        self.write("sys/class/hwmon/hwmon1/name", "thinkpad")
        self.write("sys/class/hwmon/hwmon1/fan1_input", "600")
        self.write("sys/class/hwmon/hwmon1/fan1_max", "3000")
        self.set_route("wlan0")
        (folder / "dev/pts").mkdir(parents=True)

    @property
    def path(self) -> str:
        """The folder's name."""
        return str(self.folder)

    def write(self, name: str, text: str) -> Path:
        """Let a file say this; the kernel ends its lines."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        # In one step, as the kernel's files are never half written.
        beside = path.with_name(".beside")
        beside.write_text(text if text.endswith("\n") else text + "\n")
        beside.replace(path)
        return path

    def remove(self, name: str) -> None:
        """Take a file away."""
        (self.folder / name).unlink()

    def set_battery(self, supply: str = "BAT0", **properties: str | None) -> None:
        """Let the battery say other things, by the kernel's names; None takes one away."""
        self.battery |= {name: value for name, value in properties.items() if value is not None}
        for name in [name for name, value in properties.items() if value is None]:
            self.battery.pop(name, None)
        lines = [f"POWER_SUPPLY_{name}={value}" for name, value in self.battery.items()]
        self.write(f"sys/class/power_supply/{supply}/uevent", "\n".join(lines))

    def set_plug(self, online: str, supply: str = "AC", kind: str = "Mains") -> None:
        """Let a plug say whether it is in."""
        lines = [f"POWER_SUPPLY_NAME={supply}", f"POWER_SUPPLY_ONLINE={online}"]
        self.write(f"sys/class/power_supply/{supply}/uevent", "\n".join(lines))
        self.write(f"sys/class/power_supply/{supply}/type", kind)

    def set_devices(self, *devices: str) -> None:
        """These input devices are there."""
        self.write("proc/bus/input/devices", "\n".join(devices) + "\n")

    def set_interrupts(self, *names: str, count: int = 0) -> None:
        """Interrupts of these names, and else all, have come so often on the second processor."""
        for name in names or tuple(INTERRUPTS):
            folder = f"sys/kernel/irq/{INTERRUPTS[name]}"
            self.write(f"{folder}/actions", name)
            self.write(f"{folder}/per_cpu_count", f"10,{count}")

    def set_route(self, link: str, router: str | None = ROUTER, metric: int = 600) -> None:
        """The way out leads through a link to a router that has answered, or not (None)."""
        route = f"{link}\t00000000\t0102A8C0\t0003\t0\t0\t{metric}\t00000000\t0\t0\t0"
        local = f"{link}\t0002A8C0\t00000000\t0001\t0\t0\t{metric}\t00FFFFFF\t0\t0\t0"
        self.write("proc/net/route", f"{ROUTE_HEAD}{route}\n{local}")
        flags, address = ("0x2", router) if router else ("0x0", "00:00:00:00:00:00")
        arp = f"192.168.2.1      0x1         {flags}         {address}     *        {link}"
        self.write("proc/net/arp", ARP_HEAD + arp)

    def set_temperature(self, milli_c: str) -> None:
        """What the processor's package says."""
        self.write("sys/class/hwmon/hwmon0/temp1_input", milli_c)

    def set_ticks(self, **ticks: int) -> None:
        """What all processors did since they began, in ticks."""
        kinds = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal")
        counts = [str(ticks.get(kind, 0)) for kind in kinds]
        self.write("proc/stat", "cpu  " + " ".join(counts) + " 0 0\ncpu0 1 2 3")

    def set_process(self, process_id: int, parent: int, *ticks: int) -> None:
        """A process and the ticks it used: user, system, and those of ended children."""
        used = " ".join(map(str, (*ticks, 0, 0, 0, 0)[:4]))
        stat = f"{process_id} (a) b (c) S {parent} 1 1 0 -1 0 0 0 0 0 {used} 20 0 1 0 5"
        self.write(f"proc/{process_id}/stat", stat)
