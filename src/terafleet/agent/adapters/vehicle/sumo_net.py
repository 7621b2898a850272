"""A small town as SUMO reads it: a grid of streets, and parking places along them."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

BLOCK_M = 200
LANE_OFFSET_M = 1.6
SPEED_M_S = 13.89
"""50 km/h, the usual limit in towns."""
STREET_M_MIN = 60.0
"""Shorter streets of a foreign net have no parking places."""
CHARGER_W = 11_000
CHARGER_EFFICIENCY = 0.95
PACK_WH = 60_000
CAR_TYPE = "car"


class Street(NamedTuple):
    """One direction of a street, named as in the net; length in metres."""

    name: str
    length_m: float


def grid_net(blocks: int) -> str:
    """A net of `blocks` times `blocks` squares with a lane each way.

    Its crossings know no right of way: cars queue behind each other, but don't wait for those
    that cross. For more, take a net that `netconvert` or `netgenerate` has made.
    """
    corners = [(x, y) for x in range(blocks + 1) for y in range(blocks + 1)]
    ways = [(a, b) for a in corners for b in corners if abs(a[0] - b[0]) + abs(a[1] - b[1]) == 1]
    size_m = blocks * BLOCK_M
    boundary = f"0,0,{size_m},{size_m}"
    lines = [
        '<net version="1.16">',
        f'<location netOffset="0,0" convBoundary="{boundary}" origBoundary="{boundary}"'
        ' projParameter="!"/>',
        *(_edge(a, b) for a, b in ways),
        *(_junction(corner, ways) for corner in corners),
        *(_connection(one, other) for one in ways for other in ways if one[1] == other[0]),
        "</net>",
    ]
    return "\n".join(lines)


Corner = tuple[int, int]
Way = tuple[Corner, Corner]


def _name(way: Way) -> str:
    (ax, ay), (bx, by) = way
    return f"s{ax}-{ay}-{bx}-{by}"


def _edge(a: Corner, b: Corner) -> str:
    # Right-hand traffic: the lane lies to the right of the line between the corners.
    right_x, right_y = (b[1] - a[1]) * LANE_OFFSET_M, (a[0] - b[0]) * LANE_OFFSET_M
    shape = " ".join(f"{x * BLOCK_M + right_x},{y * BLOCK_M + right_y}" for x, y in (a, b))
    name = _name((a, b))
    return (
        f'<edge id="{name}" from="c{a[0]}-{a[1]}" to="c{b[0]}-{b[1]}" priority="1">'
        f'<lane id="{name}_0" index="0" speed="{SPEED_M_S}" length="{BLOCK_M}" shape="{shape}"/>'
        "</edge>"
    )


def _junction(corner: Corner, ways: Sequence[Way]) -> str:
    x, y = corner[0] * BLOCK_M, corner[1] * BLOCK_M
    lanes = " ".join(f"{_name(way)}_0" for way in ways if way[1] == corner)
    shape = f"{x - 4},{y - 4} {x + 4},{y - 4} {x + 4},{y + 4} {x - 4},{y + 4}"
    return (
        f'<junction id="c{corner[0]}-{corner[1]}" type="unregulated" x="{x}" y="{y}"'
        f' incLanes="{lanes}" intLanes="" shape="{shape}"/>'
    )


def _connection(one: Way, other: Way) -> str:
    direction = "t" if one[0] == other[1] else "s"
    return (
        f'<connection from="{_name(one)}" to="{_name(other)}" fromLane="0" toLane="0"'
        f' dir="{direction}" state="M"/>'
    )


def streets_of(net: Path) -> list[Street]:
    """The streets of a net where cars may drive and that are long enough to park along."""
    return [
        street
        for street in _all_streets(net)
        if street.length_m >= STREET_M_MIN and not street.name.startswith(":")
    ]


def _all_streets(net: Path) -> Iterator[Street]:
    # The operator chose this file for SUMO, which reads it next.
    for _, element in ElementTree.iterparse(net):  # noqa: S314
        if element.tag != "edge":
            continue
        lane = element.find("lane")
        if lane is not None and _is_for_cars(lane):
            yield Street(element.get("id", ""), float(lane.get("length", "0")))
        element.clear()


def _is_for_cars(lane: ElementTree.Element) -> bool:
    allowed, forbidden = lane.get("allow"), lane.get("disallow", "")
    if allowed is not None:
        return "passenger" in allowed.split() or allowed == "all"
    return "passenger" not in forbidden.split() and forbidden != "all"


def parking(street: str, has_plug: bool) -> str:
    """The name of a street's parking place, with or without plugs."""
    return f"{'plug' if has_plug else 'park'}-{street}"


def places_file(streets: Sequence[Street], capacity: int) -> str:
    """The parking places of streets, room for so many cars in each, and the type of all cars."""
    lines = ["<additional>"]
    for street in streets:
        for has_plug, begin, end in ((True, 0.1, 0.45), (False, 0.55, 0.9)):
            name = parking(street.name, has_plug)
            where = (
                f'lane="{street.name}_0" startPos="{street.length_m * begin:.2f}"'
                f' endPos="{street.length_m * end:.2f}"'
            )
            lines.append(f'<parkingArea id="{name}" {where} roadsideCapacity="{capacity}"/>')
            if has_plug:
                lines.append(
                    f'<chargingStation id="charger-{street.name}" {where} power="{CHARGER_W}"'
                    f' efficiency="{CHARGER_EFFICIENCY}" parkingArea="{name}"/>'
                )
    lines += [
        f'<vType id="{CAR_TYPE}" vClass="passenger" emissionClass="Energy/unknown">',
        '<param key="has.battery.device" value="true"/>',
        f'<param key="device.battery.capacity" value="{PACK_WH}"/>',
        "</vType>",
        "</additional>",
    ]
    return "\n".join(lines)
