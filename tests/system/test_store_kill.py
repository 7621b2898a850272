"""A process that is killed while it commits: all that it had reported is there."""

import random
import signal
import subprocess
import sys
import threading
from pathlib import Path

from terafleet.engine.adapters.sqlite import SqliteStore

WAIT_S = 30.0

COMMITTING = """
import sys
from pathlib import Path
from terafleet.engine.adapters.sqlite import SqliteStore
from terafleet.engine.ports import Blob, JournalEntry, Record

store = SqliteStore(Path(sys.argv[1]))
recovered = store.recover()
sequence = int(recovered.snapshot or 0)
for entry in recovered.entries:
    assert int(entry.events) == entry.sequence == sequence + 1
    sequence = entry.sequence
assert sequence == recovered.last_sequence
while True:
    sequence += 1
    body = b"%d" % sequence
    records = [Record("k", "newest", body), Record("k", body.decode(), b"x" * 500, sort=sequence)]
    store.commit([JournalEntry(sequence, sequence, 1, body, b"f" * 5000)], records,
                 [Blob("newest", body)])
    print(sequence, flush=True)
    if sequence % 40 == 0:
        store.save_snapshot(sequence, 1, body.rjust(4000, b"0"))
        store.trim_journal(sequence - 100)
"""

SNAPSHOTTING = """
import asyncio, sys, time
from pathlib import Path
import msgspec
from terafleet.engine.adapters.sqlite import SqliteStore
from terafleet.engine.clock import SystemClock
from terafleet.engine.engine import Engine, Shell
from terafleet.engine.recovery import recover
from terafleet.engine.settings import EngineSettings
from tests.contract.counter_ledger import CODEC, AmountAdded, CounterLedger, TimeAdvanced
from tests.contract.counter_ledger import to_records

class SlowLedger(CounterLedger):
    def snapshot(self):
        print("snapshot begun", flush=True)
        time.sleep(60)
        print("the child lived on", flush=True)

async def main():
    store = SqliteStore(Path(sys.argv[1]))
    recovery = recover(store, CODEC, SlowLedger)
    shell = Shell(lambda effects: None, to_records, TimeAdvanced)
    engine = Engine(recovery, store, CODEC, shell, SystemClock(), EngineSettings())
    engine.submit(AmountAdded("a", 1))
    engine.request_snapshot()
    await engine.run()

asyncio.run(main())
"""


def start(program: str, path: Path) -> subprocess.Popen[str]:
    root = Path(__file__).parents[2]
    return subprocess.Popen(
        [sys.executable, "-c", program, str(path)],
        stdout=subprocess.PIPE, text=True, bufsize=1, cwd=root,
    )  # fmt: skip


def committed_before_kill(path: Path, lines_before_kill: int, delay_s: float) -> int:
    """Let a process commit, kill it at an arbitrary moment; the last sequence it reported."""
    with start(COMMITTING, path) as process:
        assert process.stdout is not None
        reported = 0
        for line in process.stdout:
            reported = int(line)
            lines_before_kill -= 1
            if lines_before_kill == 0:
                # The moment must not depend on the program's own output.
                threading.Timer(delay_s, process.kill).start()
        assert process.wait(WAIT_S) == -signal.SIGKILL
    return reported


def test_what_was_reported_as_committed_survives_kills(tmp_path: Path) -> None:
    path = tmp_path / "record.db"
    chance = random.Random()
    reported = 0
    for _ in range(6):
        again = committed_before_kill(path, chance.randrange(1, 60), chance.random() * 0.05)
        assert again > reported, "it went on from where it was"
        reported = again
        store = SqliteStore(path)
        recovered = store.recover()
        last = recovered.last_sequence
        assert last in (reported, reported + 1), "one commit may have been done but not reported"
        replayed = [int(entry.events) for entry in recovered.entries]
        assert replayed == list(range(int(recovered.snapshot or 0) + 1, last + 1))
        newest = store.record("k", "newest")
        assert newest is not None
        assert newest.body == store.blob("newest") == b"%d" % last
        assert store.record("k", str(last)) is not None
        assert store.record("k", str(last + 1)) is None
        store.close()


def test_a_child_goes_with_the_killed_writer_and_holds_no_lock(tmp_path: Path) -> None:
    path = tmp_path / "record.db"
    with start(SNAPSHOTTING, path) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "snapshot begun\n"
        process.kill()
        process.wait(WAIT_S)
        store = SqliteStore(path)
        assert store.recover().last_sequence == 1
        store.close()
        assert process.stdout.read() == "", "its output ends when the child does"
