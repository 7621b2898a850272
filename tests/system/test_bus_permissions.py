"""Who may do what on a real NATS server: vehicles among themselves, false and expired JWTs."""

import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from terafleet.bus.adapters.nats import NatsBus
from terafleet.bus.credentials import NKey, OperatorKeys, UserCredentials
from terafleet.bus.ports import BusRefused, BusUnavailable, NoAnswer, Refusal, RefusedAction
from tests.contract.bus_fixtures import Listener, NatsWorld, issue, nats_world, until


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[NatsWorld]:
    async with nats_world(tmp_path) as real:
        yield real


async def vehicle(world: NatsWorld, vehicle_id: str) -> NatsBus:
    """A bus with the permissions of one vehicle."""
    bus = world.new_bus(
        publish=[f"v.{vehicle_id}.up"],
        subscribe=[f"v.{vehicle_id}.down", f"inbox.{vehicle_id}.>"],
        inbox_prefix=f"inbox.{vehicle_id}",
    )
    await bus.connect()
    return bus


async def control_plane(world: NatsWorld) -> NatsBus:
    """A bus that may do all."""
    bus = world.new_bus()
    await bus.connect()
    return bus


async def test_a_vehicle_speaks_and_hears_on_its_own_subjects_only(world: NatsWorld) -> None:
    a, b, control = await vehicle(world, "a"), await vehicle(world, "b"), await control_plane(world)
    heard_by_control, heard_by_b, heard_by_a = Listener(), Listener(), Listener()
    await control.subscribe(">", heard_by_control)
    await b.subscribe("v.b.down", heard_by_b)
    await a.subscribe("v.a.down", heard_by_a)
    for pattern in ("v.b.down", "v.b.up", "v.*.down", "v.>", ">", "inbox.b.>", "inbox.*.*"):
        with pytest.raises(BusRefused):
            await a.subscribe(pattern, heard_by_a)
    for subject in ("v.b.up", "v.b.down", "v.a.down", "inbox.b.1", "$SYS.REQ.SERVER.PING"):
        a.publish(subject, b"forged")
        with pytest.raises(BusRefused):
            await a.request(subject, b"forged", timeout_ms=5_000)
    a.publish("v.a.up", b"own")
    control.publish("v.b.down", b"to b")
    control.publish("v.a.down", b"to a")
    await heard_by_control.wait_for(3)
    assert (await heard_by_b.wait_for(1), await heard_by_a.wait_for(1)) == ([b"to b"], [b"to a"])
    assert sorted(heard_by_control.bodies) == [b"own", b"to a", b"to b"]
    assert a.is_connected
    assert Refusal(RefusedAction.PUBLISH, "v.b.up") in a.refusals
    assert Refusal(RefusedAction.SUBSCRIBE, "v.b.down") in a.refusals


async def test_a_vehicle_hears_no_answer_meant_for_another(world: NatsWorld) -> None:
    a, b, control = await vehicle(world, "a"), await vehicle(world, "b"), await control_plane(world)
    await control.subscribe("v.*.up", lambda message: control.publish(message.reply, b"secret"))
    spy = Listener()
    with pytest.raises(BusRefused):
        await a.subscribe("inbox.>", spy)
    assert await b.request("v.b.up", b"?", timeout_ms=5_000) == b"secret"
    assert spy.messages == []


async def test_the_control_plane_may_do_all(world: NatsWorld) -> None:
    control, a = await control_plane(world), await vehicle(world, "a")
    await a.subscribe("v.a.down", lambda message: a.publish(message.reply, b"here"))
    listener = Listener()
    await control.subscribe("v.*.up", listener)
    a.publish("v.a.up", b"1")
    await listener.wait_for(1)
    assert await control.request("v.a.down", b"?", timeout_ms=5_000) == b"here"
    with pytest.raises(NoAnswer):
        await control.request("v.b.down", b"?", timeout_ms=5_000)
    assert not control.refusals


async def test_an_expired_jwt_is_refused(world: NatsWorld) -> None:
    hour_ago_s = int(time.time()) - 3_600
    expired = issue(world.keys, [">"], [">"], ttl_s=3_599, issued_s=hour_ago_s)
    with pytest.raises(BusRefused):
        await world.bus_with(lambda: expired).connect()


async def test_forged_jwts_are_refused(world: NatsWorld) -> None:
    genuine = issue(world.keys, [">"], [">"])
    other_keys = OperatorKeys.generate()
    mixed_keys = OperatorKeys(world.keys.operator, other_keys.account, world.keys.system_account)
    header, body, _ = genuine.jwt.split(".")
    _, _, foreign_signature = issue(other_keys, [">"], [">"]).jwt.split(".")
    forgeries = {
        "another operator's account": issue(other_keys, [">"], [">"]),
        "an account unknown to the server": issue(mixed_keys, [">"], [">"]),
        "a foreign signature": UserCredentials(
            f"{header}.{body}.{foreign_signature}", genuine.sign
        ),
        "another's JWT without the key": UserCredentials(genuine.jwt, NKey.generate().sign),
        "no JWT": UserCredentials("", genuine.sign),
    }
    for what, forged in forgeries.items():
        bus = world.bus_with(lambda forged=forged: forged)  # type: ignore[misc]
        with pytest.raises(BusRefused):
            await bus.connect()
        assert not bus.is_connected, what
    honest = world.bus_with(lambda: genuine)
    await honest.connect()


async def test_nobody_connects_to_the_system_account(world: NatsWorld) -> None:
    keys = OperatorKeys(world.keys.operator, world.keys.system_account, world.keys.account)
    credentials = issue(keys, [">"], [">"])
    with pytest.raises(BusUnavailable):
        await world.bus_with(lambda: credentials).connect()


async def test_a_renewed_jwt_is_used_when_the_old_one_expires(world: NatsWorld) -> None:
    hour_ago_s = int(time.time()) - 3_600
    offered = [
        issue(world.keys, [">"], [">"], ttl_s=2),
        issue(world.keys, [">"], [">"], ttl_s=60, issued_s=hour_ago_s),
        issue(world.keys, [">"], [">"]),
    ]
    bus = world.bus_with(lambda: offered.pop(0) if len(offered) > 1 else offered[0])
    states: list[bool] = []
    bus.on_state(states.append)
    await bus.connect()
    listener = Listener()
    await bus.subscribe("a", listener)
    await until(lambda: states == [True, False, True])
    assert Refusal(RefusedAction.CONNECT, "") in bus.refusals
    bus.publish("a", b"1")
    await listener.wait_for(1)
