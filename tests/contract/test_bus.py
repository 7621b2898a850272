"""What every bus promises, asked of the bus in memory and of NATS."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from terafleet.bus.adapters.memory import MemoryBus
from terafleet.bus.adapters.nats import NatsBus, reconnect_delay_ms
from terafleet.bus.ports import (
    Bus,
    BusRefused,
    BusUnavailable,
    Message,
    NoAnswer,
    Receive,
    Refusal,
    RefusedAction,
)
from tests.contract.bus_fixtures import BusWorld, Listener, MemoryWorld, nats_world, until

MESSAGE_BYTES_MAX = 8 * 1024 * 1024


@pytest.fixture(params=["memory", "nats"])
async def world(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[BusWorld]:
    if request.param == "nats":
        async with nats_world(tmp_path) as real:
            yield real
    else:
        memory = MemoryWorld()
        yield memory
        await memory.close()


async def connected(world: BusWorld, **permissions: Any) -> MemoryBus | NatsBus:
    bus = world.new_bus(**permissions)
    await bus.connect()
    return bus


def answer_on(bus: Bus) -> Receive:
    """A receiver that answers with what it was asked, twice."""
    return lambda message: bus.publish(message.reply, message.body * 2)


async def test_messages_arrive_with_all_they_carry(world: BusWorld) -> None:
    one, other = await connected(world), await connected(world)
    listener = Listener()
    await other.subscribe("a.b", listener)
    one.publish("a.b", b"\x00body\r\n", "re.ply")
    one.publish("a.b", b"")
    await listener.wait_for(2)
    assert listener.messages == [
        Message("a.b", b"\x00body\r\n", "re.ply"),
        Message("a.b", b"", ""),
    ]


async def test_nothing_of_ten_thousand_is_lost_or_out_of_order(world: BusWorld) -> None:
    one, other = await connected(world), await connected(world)
    listener = Listener()
    await other.subscribe("many.>", listener)
    for number in range(10_000):
        one.publish("many.x", number.to_bytes(4) * 50)
    bodies = await listener.wait_for(10_000)
    assert bodies == [number.to_bytes(4) * 50 for number in range(10_000)]


@pytest.mark.parametrize("is_sole", [False, True])
async def test_a_publisher_hears_itself_in_a_later_turn(world: BusWorld, is_sole: bool) -> None:
    bus, other = await connected(world), await connected(world)
    listener = Listener()
    subscription = await bus.subscribe("a", listener, is_sole=is_sole)
    bus.publish("a", b"1", "reply")
    assert listener.messages == []
    await listener.wait_for(1)
    other.publish("a", b"2")
    assert await listener.wait_for(2) == [b"1", b"2"]
    bus.publish("a", b"too late")
    await subscription.end()
    assert len(listener.messages) == 2


@pytest.mark.parametrize(
    ("pattern", "heard"),
    [
        ("v.1.up", {"v.1.up"}),
        ("v.*.up", {"v.1.up", "v.2.up"}),
        ("*.1.*", {"v.1.up", "v.1.down"}),
        ("v.1.>", {"v.1.up", "v.1.down", "v.1.up.more"}),
        ("v.>", {"v.1", "v.1.up", "v.2.up", "v.1.down", "v.1.up.more"}),
        (">", {"v", "v.1", "v.1.up", "v.2.up", "v.1.down", "v.1.up.more"}),
        ("*", {"v"}),
    ],
)
async def test_wildcards_hear_what_they_cover(
    world: BusWorld, pattern: str, heard: set[str]
) -> None:
    one, other = await connected(world), await connected(world)
    listener, all_said = Listener(), Listener()
    await other.subscribe(pattern, listener)
    await other.subscribe("last", all_said)
    for subject in ("v", "v.1", "v.1.up", "v.2.up", "v.1.down", "v.1.up.more"):
        one.publish(subject, b"")
    one.publish("last", b"")
    await all_said.wait_for(1)
    await until(lambda: len({m.subject for m in listener.messages} - {"last"}) >= len(heard))
    assert {message.subject for message in listener.messages} - {"last"} == heard


async def test_one_of_a_group_gets_each(world: BusWorld) -> None:
    sender = await connected(world)
    first, second, outside, another_group = (Listener() for _ in range(4))
    for listener, pattern, group in (
        (first, "work.*", "g"),
        (second, "work.>", "g"),
        (outside, "work.1", ""),
        (another_group, "work.1", "h"),
    ):
        await (await connected(world)).subscribe(pattern, listener, group)
    bodies = [str(number).encode() for number in range(200)]
    for body in bodies:
        sender.publish("work.1", body)
    assert await outside.wait_for(200) == bodies
    assert await another_group.wait_for(200) == bodies
    await until(lambda: len(first.messages) + len(second.messages) >= 200)
    assert sorted(first.bodies + second.bodies) == sorted(bodies)
    assert first.messages
    assert second.messages


async def test_a_request_is_answered(world: BusWorld) -> None:
    one, other = await connected(world), await connected(world)
    await other.subscribe("double", answer_on(other))
    assert await one.request("double", b"ab", timeout_ms=5_000) == b"abab"
    answers = await asyncio.gather(
        *(one.request("double", str(n).encode(), timeout_ms=5_000) for n in range(100))
    )
    assert answers == [str(n).encode() * 2 for n in range(100)]


async def test_an_answer_may_be_empty(world: BusWorld) -> None:
    bus = await connected(world)
    await bus.subscribe("q", lambda message: bus.publish(message.reply, b""))
    assert await bus.request("q", b"?", timeout_ms=5_000) == b""


async def test_where_nobody_listens_there_is_no_answer_at_once(world: BusWorld) -> None:
    bus = await connected(world)
    began = time.monotonic()
    with pytest.raises(NoAnswer):
        await bus.request("nobody", b"", timeout_ms=60_000)
    assert time.monotonic() - began < 5


async def test_who_only_listens_gives_no_answer_in_time(world: BusWorld) -> None:
    bus = await connected(world)
    listener = Listener()
    await bus.subscribe("silent", listener)
    with pytest.raises(NoAnswer):
        await bus.request("silent", b"", timeout_ms=30)
    bus.publish(listener.messages[0].reply, b"too late")
    with pytest.raises(NoAnswer):
        await bus.request("silent", b"", timeout_ms=30)


async def test_nobody_is_told_that_nobody_listens_but_who_asked(world: BusWorld) -> None:
    bus = await connected(world)
    listener = Listener()
    await bus.subscribe("re.ply", listener)
    bus.publish("nobody", b"x", "re.ply")
    bus.publish("re.ply", b"last")
    assert await listener.wait_for(1) == [b"last"]


async def test_an_ended_subscription_hears_no_more(world: BusWorld) -> None:
    bus = await connected(world)
    ended, standing = Listener(), Listener()
    subscription = await bus.subscribe("a", ended)
    await bus.subscribe("a", standing)
    bus.publish("a", b"1")
    await standing.wait_for(1)
    bus.publish("a", b"2")
    await subscription.end()
    await subscription.end()
    bus.publish("a", b"3")
    await standing.wait_for(3)
    assert ended.bodies == [b"1"]


async def test_what_waits_is_sent_before_leaving(world: BusWorld) -> None:
    one, other = await connected(world), await connected(world)
    listener = Listener()
    await other.subscribe("a", listener)
    for _ in range(1_000):
        one.publish("a", b"x" * 1_000)
    await one.close()
    await listener.wait_for(1_000)
    assert not one.is_connected
    with pytest.raises(BusUnavailable):
        one.publish("a", b"")


async def test_a_subscription_stands_when_subscribe_returns(world: BusWorld) -> None:
    one, other = await connected(world), await connected(world)
    for number in range(50):
        listener = Listener()
        await other.subscribe(f"a.{number}", listener)
        one.publish(f"a.{number}", b"1")
        await listener.wait_for(1)


async def test_a_subscription_stands_also_behind_much_that_waits(tmp_path: Path) -> None:
    async with nats_world(tmp_path) as world:
        one, other = await connected(world), await connected(world)
        assert world.server.process_id is not None
        os.kill(world.server.process_id, signal.SIGSTOP)
        other.publish("nobody", bytes(MESSAGE_BYTES_MAX))
        await asyncio.sleep(0.01)
        for _ in range(4):
            other.publish("nobody", bytes(MESSAGE_BYTES_MAX))
        listener = Listener()
        subscribing = asyncio.create_task(other.subscribe("a", listener))
        await asyncio.sleep(0.01)
        os.kill(world.server.process_id, signal.SIGCONT)
        await subscribing
        one.publish("a", b"1")
        await listener.wait_for(1)


async def test_what_is_subscribed_while_connecting_stands_afterwards(world: BusWorld) -> None:
    bus = world.new_bus()
    connecting = asyncio.create_task(bus.connect())
    listeners: dict[str, Listener] = {}
    while not connecting.done():
        if len(listeners) < 300:
            subject = f"a.{len(listeners)}"
            listeners[subject] = Listener()
            await bus.subscribe(subject, listeners[subject])
        await asyncio.sleep(0.0005)
    await connecting
    for subject, listener in listeners.items():
        bus.publish(subject, b"1")
        await listener.wait_for(1)


async def test_the_largest_message_passes_and_a_larger_one_is_refused(world: BusWorld) -> None:
    bus = await connected(world)
    listener = Listener()
    await bus.subscribe("a", listener)
    with pytest.raises(ValueError, match="too many"):
        bus.publish("a", bytes(MESSAGE_BYTES_MAX + 1))
    with pytest.raises(ValueError, match="too many"):
        await bus.request("a", bytes(MESSAGE_BYTES_MAX + 1), timeout_ms=1_000)
    bus.publish("a", bytes(MESSAGE_BYTES_MAX))
    assert [len(body) for body in await listener.wait_for(1)] == [MESSAGE_BYTES_MAX]
    assert bus.is_connected


@pytest.mark.parametrize(
    "subject", ["", ".", "a.", ".a", "a..b", "a b", "a\r\nPUB b 0", "ä", "a\x00", "a.*", ">", "a*"]
)
async def test_malformed_subjects_are_refused(world: BusWorld, subject: str) -> None:
    bus = await connected(world)
    with pytest.raises(ValueError, match="not a subject"):
        bus.publish(subject, b"")
    with pytest.raises(ValueError, match="not a subject"):
        await bus.request(subject, b"", timeout_ms=100)
    if subject:
        with pytest.raises(ValueError, match="not a subject"):
            bus.publish("a", b"", subject)
    if subject not in ("a.*", ">"):
        with pytest.raises(ValueError, match="not a pattern"):
            await bus.subscribe(subject, Listener())
    with pytest.raises(ValueError, match="name of a group"):
        await bus.subscribe("a", Listener(), group="a b")
    assert bus.is_connected


async def test_what_a_receiver_raises_reaches_the_event_loop(world: BusWorld) -> None:
    bus = await connected(world)
    raised: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: raised.append(context))

    def fail(message: Message) -> None:
        raise OSError(message.body)

    listener = Listener()
    await bus.subscribe("a", fail)
    await bus.subscribe("a", listener)
    bus.publish("a", b"1")
    bus.publish("a", b"2")
    await listener.wait_for(2)
    await until(lambda: len(raised) == 2)
    assert [str(context["exception"]) for context in raised] == ["b'1'", "b'2'"]
    assert bus.is_connected


async def test_nothing_leaves_before_connecting_or_while_cut(world: BusWorld) -> None:
    bus = world.new_bus()
    await refuses_all(bus)
    await bus.connect()
    assert bus.is_connected
    await world.cut()
    await refuses_all(bus)


async def refuses_all(bus: Bus) -> None:
    assert not bus.is_connected
    with pytest.raises(BusUnavailable):
        bus.publish("a", b"")
    with pytest.raises(BusUnavailable):
        await bus.request("a", b"", timeout_ms=100)


async def test_connecting_fails_while_cut_and_may_be_tried_again(world: BusWorld) -> None:
    bus = world.new_bus()
    states: list[bool] = []
    bus.on_state(states.append)
    await world.cut()
    with pytest.raises(BusUnavailable):
        await bus.connect()
    await world.mend()
    await asyncio.sleep(0)
    assert states == []
    await bus.connect()
    await until(lambda: states == [True])


async def test_what_is_on_its_way_over_a_connection_ends_with_it() -> None:
    world = MemoryWorld()
    one, other = await connected(world), await connected(world)
    listener = Listener()
    await other.subscribe("a", listener)
    one.publish("a", b"lost")
    await world.cut()
    await world.mend()
    one.publish("a", b"1")
    assert await listener.wait_for(1) == [b"1"]
    await world.close()


async def test_an_open_request_fails_when_the_connection_ends(world: BusWorld) -> None:
    bus = await connected(world)
    listener = Listener()
    await bus.subscribe("silent", listener)
    asked = asyncio.create_task(bus.request("silent", b"", timeout_ms=60_000))
    await listener.wait_for(1)
    await world.cut()
    with pytest.raises(BusUnavailable):
        await asyncio.wait_for(asked, 5)


async def test_all_stands_again_after_a_cut(world: BusWorld) -> None:
    one, other = world.new_bus(), world.new_bus()
    states: list[bool] = []
    one.on_state(states.append)
    await one.connect()
    await other.connect()
    before, meanwhile, ended = Listener(), Listener(), Listener()
    await one.subscribe("a", before)
    subscription = await one.subscribe("a", ended)
    await other.subscribe("double", answer_on(other))
    assert await one.request("double", b"1", timeout_ms=5_000) == b"11"

    for _ in range(2):
        await world.cut()
        await until(lambda: states[-1] is False)
        await subscription.end()
        await one.subscribe("a", meanwhile)
        await world.mend()
        await until(lambda: one.is_connected and other.is_connected)
        other.publish("a", b"2")
        await before.wait_for(1)
        await meanwhile.wait_for(1)
        assert await one.request("double", b"1", timeout_ms=5_000) == b"11"
    assert before.bodies == [b"2", b"2"]
    assert len(meanwhile.bodies) == 3
    assert ended.bodies == []
    assert states == [True, False, True, False, True]


async def test_who_left_a_group_takes_nothing_from_it(world: BusWorld) -> None:
    one, other = await connected(world), await connected(world)
    standing, ended = Listener(), Listener()
    await one.subscribe("a", standing, "g")
    subscription = await other.subscribe("a", ended, "g")
    await subscription.end()
    await other.subscribe("b", Listener())
    for number in range(20):
        one.publish("a", b"")
        await standing.wait_for(number + 1)
    await world.cut()
    await world.mend()
    await until(lambda: one.is_connected and other.is_connected)
    for number in range(20, 40):
        other.publish("a", b"")
        await standing.wait_for(number + 1)


async def test_who_may_not_publish_is_refused_and_told(world: BusWorld) -> None:
    bus = await connected(world, publish=["v.a.up", "w.*"], subscribe=["v.>", "w.>"])
    told: list[Refusal] = []
    bus.on_refusal(told.append)
    listener = Listener()
    await bus.subscribe("v.>", listener)
    await bus.subscribe("w.>", listener)
    for subject in ("v.b.up", "v.a.up", "w.1.2", "w.1"):
        bus.publish(subject, b"")
    await listener.wait_for(2)
    assert [message.subject for message in listener.messages] == ["v.a.up", "w.1"]
    refusals = [Refusal(RefusedAction.PUBLISH, "v.b.up"), Refusal(RefusedAction.PUBLISH, "w.1.2")]
    await until(lambda: told == refusals)
    assert list(bus.refusals) == refusals
    assert bus.is_connected


@pytest.mark.parametrize(
    "pattern", ["v.b.down", "v.*.down", ">", "v.a.down.more", "v.a.*", "w.>", "w.a.b", "w"]
)
async def test_who_may_not_subscribe_is_refused_and_told(world: BusWorld, pattern: str) -> None:
    bus = await connected(world, subscribe=["v.a.down", "w.*.down"])
    other = await connected(world)
    foreign, own = Listener(), Listener()
    with pytest.raises(BusRefused):
        await bus.subscribe(pattern, foreign)
    with pytest.raises(BusRefused):
        await bus.subscribe(pattern, foreign, group="g")
    assert {(r.action, r.subject) for r in bus.refusals} == {(RefusedAction.SUBSCRIBE, pattern)}
    await bus.subscribe("v.a.down", own)
    for subject in ("v.b.down", "v.a.down.more", "v.a.up", "v.a.down"):
        other.publish(subject, b"")
    await own.wait_for(1)
    assert foreign.messages == []


async def test_who_may_do_nothing_is_refused_everything(world: BusWorld) -> None:
    bus = await connected(world, publish=[], subscribe=[])
    with pytest.raises(BusRefused):
        await bus.subscribe("a", Listener())
    bus.publish("a", b"")
    await until(lambda: len(bus.refusals) == 2)


async def test_who_was_asked_may_answer_once(world: BusWorld) -> None:
    vehicle = await connected(world, publish=["v.a.up"], subscribe=["v.a.down"])
    control = await connected(world)

    def answer_twice(message: Message) -> None:
        vehicle.publish(message.reply, b"first")
        vehicle.publish(message.reply, b"second")

    await vehicle.subscribe("v.a.down", answer_twice)
    answers = Listener()
    await control.subscribe("answers", answers)
    control.publish("v.a.down", b"?", "answers")
    await until(lambda: len(vehicle.refusals) == 1)
    assert await answers.wait_for(1) == [b"first"]
    assert await control.request("v.a.down", b"?", timeout_ms=5_000) == b"first"


async def test_a_request_needs_the_right_to_ask_and_to_hear(world: BusWorld) -> None:
    control = await connected(world)
    await control.subscribe("v.>", answer_on(control))
    permissions = {"publish": ["v.a.up"], "subscribe": ["in.a.>"]}
    vehicle = await connected(world, **permissions, inbox_prefix="in.a")
    assert await vehicle.request("v.a.up", b"1", timeout_ms=5_000) == b"11"
    with pytest.raises(BusRefused):
        await vehicle.request("v.b.up", b"1", timeout_ms=5_000)
    spy = await connected(world, **permissions, inbox_prefix="in.b")
    for _ in range(2):
        with pytest.raises(BusRefused):
            await spy.request("v.a.up", b"1", timeout_ms=5_000)


@pytest.mark.parametrize("pattern", ["a.*", "*", "a b", ""])
async def test_no_permission_is_given_that_allows_more_than_it_says(
    world: BusWorld, pattern: str
) -> None:
    with pytest.raises(ValueError, match=r"not a pattern|more than it says"):
        world.new_bus(subscribe=[pattern])


def test_the_delay_before_reconnecting_doubles_up_to_five_seconds() -> None:
    assert [reconnect_delay_ms(n, 0.0) for n in range(8)] == [
        *(100, 200, 400, 800, 1_600, 3_200),
        *(5_000, 5_000),
    ]
    assert reconnect_delay_ms(10_000, 0.999) == pytest.approx(2_502.5)
