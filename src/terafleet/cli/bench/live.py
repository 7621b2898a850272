"""Measures live requests: what gateway, fleet and car add, and streams that move between cars."""

import asyncio
import random
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec
import uvloop

from terafleet.agent.app import bare_noop
from terafleet.agent.ports import RuntimeModel, SessionPiece, SessionWork
from terafleet.cli.bench.http_stream import Customer, Streamed
from terafleet.cli.demo.stage import parked
from terafleet.cli.local_fleet import LocalFleet
from terafleet.protocol.manifest import Manifest
from terafleet.protocol.openai import CHAT_COMPLETIONS

MODEL = "noop"
MS_PER_S = 1_000
READY_S = 30.0
WARM_UP = 20
REQUESTS = 300
RATES_PER_S = (50, 100, 200, 300, 400, 600, 800, 1_000, 1_200)
RATE_S = 3.0
OVERHEAD_MS_MAX = 13.0
"""What the field's own gateways add at their 99th percentile; see docs/budgets.md."""

CARS, SLOTS = 4, 32
CHURN_CARS, CHURN_SLOTS, CHURN_SESSIONS = 8, 24, 100
CHURN_TOKENS, CHURN_TOKEN_MS = 60, 100
CHURN_PAUSE_S = 1.4
"""Between two comings or goings: more than 33 a minute of them."""

KILLED_SHARE = 0.15
"""Of those that leave, so many do it without a word."""

AWAY = {"steps": [{**parked(80.0), "is_driver_present": True}]}
PARKED = {"steps": [parked(80.0)]}


def measure_live(churn_s: float, seed: int) -> dict[str, Any]:
    """All figures of live requests, in one run."""
    return {**_quiet_fleet(), **_churning_fleet(churn_s, seed)}


def _quiet_fleet() -> dict[str, Any]:
    with _Fleet(CARS, SLOTS, token_ms=0) as fleet:
        return uvloop.run(_measure_overhead(fleet))


def _churning_fleet(churn_s: float, seed: int) -> dict[str, Any]:
    with _Fleet(CHURN_CARS, CHURN_SLOTS, CHURN_TOKEN_MS) as fleet:
        return uvloop.run(_Churn(fleet, churn_s, seed).measure())


class _Fleet:
    """A control plane and cars that run no model, and a customer's key."""

    def __init__(self, cars: int, slots: int, token_ms: int) -> None:
        self._temporary = tempfile.TemporaryDirectory(prefix="terafleet-bench-")
        self.local = LocalFleet(Path(self._temporary.name))
        self.names = [f"car-{number}" for number in range(cars)]
        self._slots, self._token_ms = slots, token_ms
        self._api_key = ""

    def __enter__(self) -> "_Fleet":
        local = self.local
        try:
            local.start_plane()
            for name in self.names:
                local.enrol(name, self._settings(), PARKED)
                local.start_car(name)
            with local.admin() as admin:
                admin.create_model(Manifest(MODEL, "noop", (CHAT_COMPLETIONS,), 1, (), {}))
                self._api_key = admin.create_key("bench", "customer").secret
            self._wait_until_idle()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.local.stop()
        self._temporary.cleanup()

    def customer(self) -> Customer:
        """Somebody who asks this fleet."""
        parts = urlsplit(self.local.url)
        assert parts.hostname is not None
        assert parts.port is not None
        return Customer(parts.hostname, parts.port, self._api_key, MODEL)

    def _settings(self) -> Mapping[str, Any]:
        return {
            "slots": self._slots,
            "memory_mb": 1_024,
            "runtimes": ["noop"],
            "session_token_ms": self._token_ms,
            "vehicle": {"file": "timetable.json", "sample_ms": 100},
            "policy": {"yield": {"settle_ms": 0}},
        }

    def _wait_until_idle(self) -> None:
        deadline_s = time.monotonic() + READY_S
        with self.local.admin() as admin:
            while sum(one.state == "idle" for one in admin.vehicles().vehicles) < len(self.names):
                if time.monotonic() > deadline_s:
                    raise TimeoutError("the cars did not become idle")
                time.sleep(0.1)


# What the way adds.


async def _measure_overhead(fleet: _Fleet) -> dict[str, Any]:
    customer = fleet.customer()
    for _ in range(WARM_UP):
        await customer.chat(1)
    answers = [await customer.chat(1) for _ in range(REQUESTS)]
    await customer.close()
    direct_ms = await _direct_ms()
    added_ms = sorted(_ms(one.began_s, one.ended_s) - _middle(direct_ms) for one in answers)
    first_ms = sorted(_ms(one.began_s, one.came_s[0]) for one in answers if one.came_s)
    return {
        "overhead_ms_p50": _middle(added_ms),
        "overhead_ms_p99": _tail(added_ms),
        "direct_ms_p50": _middle(direct_ms),
        "first_token_ms_p50": _middle(first_ms),
        "requests_per_s": await _highest_rate(fleet, _middle(direct_ms)),
    }


async def _direct_ms() -> list[float]:
    """The same requests, given to the same runtime without anything between."""
    runtime = bare_noop()
    await runtime.start(lambda _: None)
    await runtime.load(RuntimeModel(MODEL, "noop", Path()))
    body = msgspec.json.encode(
        {"model": MODEL, "messages": [{"role": "user", "content": "count"}], "max_tokens": 1}
    )
    took_ms = []
    for number in range(REQUESTS):
        pieces: list[SessionPiece] = []
        began_s = time.perf_counter()
        work = SessionWork(f"s{number}", MODEL, CHAT_COMPLETIONS, body)
        await runtime.open(work, pieces.append)
        took_ms.append(_ms(began_s, time.perf_counter()))
        assert pieces
    return sorted(took_ms)


async def _highest_rate(fleet: _Fleet, direct_ms: float) -> int:
    """The highest of the rates, in requests a second, at which nearly all are answered in time."""
    highest = 0
    for rate in RATES_PER_S:
        answers = await _at_rate(fleet, rate)
        added_ms = sorted(_ms(one.began_s, one.ended_s) - direct_ms for one in answers)
        is_whole = all(one.ending == "done" for one in answers)
        if not is_whole or _tail(added_ms) > OVERHEAD_MS_MAX:
            break
        highest = rate
    return highest


async def _at_rate(fleet: _Fleet, rate: int) -> list[Streamed]:
    """Ask at even distances, whether earlier answers have come or not."""
    idle: list[Customer] = []
    tasks = []

    async def ask() -> Streamed:
        customer = idle.pop() if idle else fleet.customer()
        answer = await customer.chat(1)
        idle.append(customer)
        return answer

    began_s = time.perf_counter()
    for number in range(int(rate * RATE_S)):
        await asyncio.sleep(max(0.0, began_s + number / rate - time.perf_counter()))
        tasks.append(asyncio.create_task(ask()))
    answers = await asyncio.gather(*tasks)
    for customer in idle:
        await customer.close()
    # The first ones open their connections.
    return list(answers[len(answers) // 10 :])


# Streams on a fleet that comes and goes.


class _Churn:
    """Many sessions at a time while cars leave and join, and an oracle for every stream."""

    def __init__(self, fleet: _Fleet, duration_s: float, seed: int) -> None:
        self._fleet = fleet
        self._duration_s = duration_s
        self._chance = random.Random(seed)  # noqa: S311 - it casts trouble, it guards nothing.
        self._answers: list[Streamed] = []
        self._comings_and_goings = 0

    async def measure(self) -> dict[str, Any]:
        """Let it all happen, and look at what came of it."""
        end_s = time.monotonic() + self._duration_s
        customers = [self._keep_asking(end_s) for _ in range(CHURN_SESSIONS)]
        await asyncio.gather(self._come_and_go(end_s), *customers)
        return self._figures()

    async def _keep_asking(self, end_s: float) -> None:
        customer = self._fleet.customer()
        while time.monotonic() < end_s:
            self._answers.append(await customer.chat(CHURN_TOKENS))
        await customer.close()

    async def _come_and_go(self, end_s: float) -> None:
        """One car after the other leaves, and comes back after about half of them have left."""
        here = list(self._fleet.names)
        away: list[str] = []
        local = self._fleet.local
        while time.monotonic() < end_s:
            await asyncio.sleep(CHURN_PAUSE_S)
            self._comings_and_goings += 1
            if len(away) < len(self._fleet.names) // 4:
                name = here.pop(self._chance.randrange(len(here)))
                away.append(name)
                if self._chance.random() < KILLED_SHARE:
                    local.cars[name].kill()
                else:
                    local.write_timetable(name, AWAY)
            else:
                name = away.pop(0)
                here.append(name)
                local.write_timetable(name, PARKED)
                if not local.cars[name].is_running:
                    local.start_car(name)

    def _figures(self) -> dict[str, Any]:
        done = [one for one in self._answers if one.ending == "done"]
        right = "".join(f"{number} " for number in range(CHURN_TOKENS)).split()
        lost = duplicated = 0
        for answer in done:
            told = answer.text.split()
            lost += len(set(right) - set(told))
            duplicated += len(told) - len(set(told))
        gaps_ms = sorted(_longest_gap_ms(one) for one in done if one.moves)
        return {
            "churn_s": self._duration_s,
            "churn_per_min": self._comings_and_goings * 60 / self._duration_s,
            "sessions": len(self._answers),
            "sessions_moved": len(gaps_ms),
            "hung": sum(one.ending.startswith("hung") for one in self._answers),
            "failed": sum(one.ending.startswith("error") for one in self._answers),
            "failures": sorted({one.ending for one in self._answers if one.ending != "done"}),
            "tokens_lost": lost,
            "tokens_duplicated": duplicated,
            "move_gap_ms_p50": _middle(gaps_ms) if gaps_ms else None,
            "move_gap_ms_p99": _tail(gaps_ms) if gaps_ms else None,
        }


def _longest_gap_ms(answer: Streamed) -> float:
    return max(
        _ms(one, other) for one, other in zip(answer.came_s, answer.came_s[1:], strict=False)
    )


def _ms(began_s: float, ended_s: float) -> float:
    return (ended_s - began_s) * MS_PER_S


def _middle(in_order: Sequence[float]) -> float:
    return in_order[len(in_order) // 2]


def _tail(in_order: Sequence[float]) -> float:
    """The 99th percentile."""
    return in_order[min(len(in_order) - 1, len(in_order) * 99 // 100)]
