"""Talking with a model on the command line: one answer, and a conversation at a real terminal."""

import codecs
import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from terafleet.cli.chat import PROMPT_BYTES_MAX, Chat, talk
from terafleet.cli.failure import CommandFailed
from terafleet.cli.words import CHAT_ADVICE
from terafleet.core.session_events import Piece
from terafleet.protocol.errors import ERRORS
from terafleet.protocol.live import LiveChat, LiveCompletion
from tests.contract import live_oracle as oracle
from tests.contract.chat_stage import LiveThread, Opened, live_thread
from tests.contract.cli_stage import Person
from tests.contract.customer_stage import ALICE
from tests.contract.fake_live_fleet import LEFT, MODEL_REFUSES, QUEUED, REFUSED, Plan
from tests.contract.live_gateway import BIG_WRITER, EMBEDDER, WRITER
from tests.contract.test_cli import HEAVY

WAIT_S = 20.0
HELLO = "Wo steht das Auto?"
CLEAR = "\x1b[2J"
BROKEN = (Piece(0, (1,), "so far"), Piece(0, (2,), "", finish_reason="sunset"))


@pytest.fixture(scope="module")
def thread() -> Iterator[LiveThread]:
    with live_thread() as running:
        yield running


@pytest.fixture
def gateway(thread: LiveThread) -> Iterator[Opened]:
    with thread.open() as opened:
        yield opened


@pytest.fixture
def alice(gateway: Opened, tmp_path: Path) -> Person:
    return Person(tmp_path, gateway.url, ALICE)


def says(text: str, reason: str = "stop") -> Plan:
    """A car that says this."""
    return Plan(pieces=(Piece(0, (1,), text), Piece(0, (), "", finish_reason=reason)))


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def right_chat(*messages: dict[str, str], **parameters: Any) -> oracle.Text:
    body = {"model": WRITER, "messages": messages, **parameters}
    (text,) = oracle.texts_of(msgspec.convert(body, LiveChat))
    return text


def test_one_answer_is_printed_whole(alice: Person) -> None:
    result = alice.gives("chat", WRITER, HELLO)
    assert (result.exit_code, result.stderr) == (0, "")
    right = right_chat(user(HELLO)).whole
    printed = result.stdout_bytes.decode()
    assert printed == (right if right.endswith("\n") else f"{right}\n")


def test_the_question_may_stand_on_standard_input(alice: Person, gateway: Opened) -> None:
    for _ in range(2):
        gateway.fleet.plans.append(says("There."))
    assert alice.gives("chat", WRITER, typed=f"{HELLO}\nBitte.\n").stdout == "There.\n"
    assert alice.gives("chat", WRITER, "and not this", typed="nor this").stdout == "There.\n"
    asked = [body["messages"] for body in gateway.fleet.bodies()]
    assert asked == [[user(f"{HELLO}\nBitte.")], [user("and not this")]]


def test_nothing_to_answer(alice: Person, gateway: Opened) -> None:
    alice.fails("prompt_missing", "chat", WRITER)
    alice.fails("prompt_missing", "chat", WRITER, " ")
    result = alice.gives("chat", WRITER, typed="x" * (PROMPT_BYTES_MAX + 1))
    assert (result.exit_code, "(prompt_too_long)" in result.stderr) == (1, True)
    alice.fails("invalid_value", "chat", WRITER, "half a character: \udcff")
    assert gateway.fleet.wanted == []


def test_standard_input_that_is_closed(alice: Person, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("terafleet.cli.chat.sys.stdin", None)
    with pytest.raises(CommandFailed, match="nothing to answer"):
        talk(Chat(model=WRITER, url=alice.environment["TERAFLEET_URL"]))


def test_standard_input_that_is_no_text(alice: Person) -> None:
    program = [sys.executable, "-m", "terafleet.cli", "chat", WRITER]
    ended = subprocess.run(
        program, input=b"\xff", env=alice.environment, capture_output=True, check=False
    )
    assert (ended.returncode, ended.stdout) == (1, b"")
    assert b"(prompt_unreadable)" in ended.stderr


def test_json_says_how_it_went(alice: Person, gateway: Opened) -> None:
    gateway.fleet.plans += [Plan(messages=2, ending=LEFT), Plan(pause_s=0.01)]
    options = ["--max-tokens", "5", "--temperature", "0", "--seed", "7", "--system", "Be brief."]
    report = alice.reads("chat", WRITER, HELLO, *options)
    messages = [{"role": "system", "content": "Be brief."}, user(HELLO)]
    right = right_chat(*messages, max_tokens=5)
    total, first = report.pop("total_ms"), report.pop("first_token_ms")
    assert total >= 30
    assert 0 <= first <= total
    assert report == {
        "model": WRITER,
        "text": right.whole,
        "finish_reason": "length",
        "usage": {
            "prompt_tokens": oracle.PROMPT_TOKENS,
            "completion_tokens": 5,
            "total_tokens": oracle.PROMPT_TOKENS + 5,
        },
        "moves": 1,
    }
    wished = {"temperature": 0, "seed": 7, "max_tokens": 5}
    body = gateway.fleet.bodies()[0]
    assert {name: body[name] for name in wished} == wished


def test_an_answer_without_a_word(alice: Person, gateway: Opened) -> None:
    gateway.fleet.usual = Plan(pieces=(Piece(0, (), "", finish_reason="stop"),))
    assert alice.succeeds("chat", WRITER, HELLO) == ""
    report = alice.reads("chat", WRITER, HELLO)
    assert (report["text"], report["first_token_ms"]) == ("", None)


def test_a_text_is_completed_as_it_stands(alice: Person, gateway: Opened) -> None:
    (right,) = oracle.texts_of(LiveCompletion(model=WRITER, prompt="Once ", max_tokens=4))
    given = ["chat", WRITER, "Once ", "--completion", "--max-tokens", "4"]
    assert alice.reads(*given)["text"] == right.whole
    assert gateway.fleet.bodies() == [{"model": WRITER, "prompt": "Once ", "max_tokens": 4}]


def test_what_a_person_should_know_is_said_beside_the_answer(
    alice: Person, gateway: Opened
) -> None:
    gateway.fleet.plans += [
        Plan(answer=QUEUED, wait_ms=60, messages=1, ending=LEFT),
        says(" and on", "length"),
    ]
    result = alice.gives("chat", WRITER, HELLO)
    assert result.exit_code == 0
    assert result.stdout.endswith(" and on\n")
    assert result.stderr.splitlines() == [
        "Queued, about 1 s.",
        "On its way the answer moved to another car once.",
        "The answer is cut off: it has as many tokens as it may have.",
    ]


def test_an_unknown_model_is_answered_with_those_there_are(alice: Person) -> None:
    told = alice.fails("model_not_found", "chat", "org/writr", HELLO)
    assert f"These serve /v1/chat/completions: {WRITER}, {BIG_WRITER}" in told
    assert EMBEDDER not in told
    told = alice.fails("unsupported_endpoint", "chat", EMBEDDER, HELLO, "--completion")
    assert f"These serve /v1/completions: {WRITER}" in told
    alice.environment["TERAFLEET_API_KEY"] = "tf-" + "x" * 43
    assert "TERAFLEET_API_KEY" in alice.fails("invalid_api_key", "chat", WRITER, HELLO)


def test_errors_say_what_to_do(alice: Person, gateway: Opened) -> None:
    gateway.fleet.plans += [
        Plan(answer=REFUSED, detail="all slots are taken", wait_ms=2_500),
        Plan(messages=0, ending=MODEL_REFUSES),
    ]
    assert "Ask again in about 3 s." in alice.fails("no_slot_free", "chat", WRITER, HELLO)
    assert "Say less" in alice.fails("context_length_exceeded", "chat", WRITER, HELLO)
    alice.environment["TERAFLEET_URL"] = "http://127.0.0.1:9"
    assert "Ask again" in alice.fails("gateway_unreachable", "chat", WRITER, HELLO)


def test_advice_is_for_errors_that_there_are() -> None:
    assert set(CHAT_ADVICE) - set(ERRORS) == {"gateway_unreachable"}


@pytest.mark.parametrize(("options", "printed"), [([], "so far\n"), (["--json"], "")])
def test_an_answer_that_breaks_off_is_no_success(
    options: list[str], printed: str, alice: Person, gateway: Opened
) -> None:
    gateway.fleet.plans.append(Plan(pieces=BROKEN))
    result = alice.gives("chat", WRITER, HELLO, *options)
    assert (result.exit_code, result.stdout) == (1, printed)
    assert result.stderr.startswith("error: ")
    assert "(session_failed)" in result.stderr
    assert "Ask again" in result.stderr


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["chat"], "MODEL"),
        (["chat", WRITER, HELLO, "--temperature", "2.5"], "--temperature"),
        (["chat", WRITER, HELLO, "--temperature", "nan"], "--temperature"),
        (["chat", WRITER, HELLO, "--max-tokens", "0"], "--max-tokens"),
        (["chat", WRITER, HELLO, "--seed", "-1"], "--seed"),
        (["chat", WRITER, HELLO, "--seed", "4294967295"], "--seed"),
        (["chat", WRITER, HELLO, "--completion", "--system", "Be brief."], "--system"),
    ],
)
def test_wrong_usage_has_exit_code_2(given: list[str], told: str, alice: Person) -> None:
    result = alice.gives(*given)
    assert (result.exit_code, result.stdout) == (2, "")
    assert told in result.stderr


def test_help_loads_nothing_heavy() -> None:
    program = (
        "import sys\n"
        "from terafleet.cli.main import app\n"
        "try: app(['chat', '--help'])\n"
        f"finally: sys.stderr.write(' '.join({{*{HEAVY}, 'readline', 'terafleet.sdk'}}"
        " & set(sys.modules)))\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert b"terafleet chat org/writer" in ended.stdout
    assert ended.stderr == b""


class Terminal:
    """A person at a real terminal, in which a command runs."""

    def __init__(self, own: int, process: "subprocess.Popen[bytes]") -> None:
        self._own = own
        self._unread = ""
        self._process = process
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self.whole = ""

    def types(self, text: str) -> None:
        """Press keys."""
        os.write(self._own, text.encode())

    def sees(self, text: str) -> str:
        """Wait for a text; what came before it."""
        deadline_s = time.monotonic() + WAIT_S
        while text not in self._unread:
            assert self._looks(deadline_s - time.monotonic()), self._unread
        before, _, self._unread = self._unread.partition(text)
        return before

    def interrupts(self) -> None:
        """Press Ctrl-C."""
        self._process.send_signal(signal.SIGINT)

    def interrupts_prompt(self) -> None:
        """Press Ctrl-C where a line is awaited, until the prompt comes again.

        Between a prompt and the wait behind it a signal is only seen with the next key or signal.
        """
        deadline_s = time.monotonic() + WAIT_S
        self.interrupts()
        while not self._looks(0.2):
            assert time.monotonic() < deadline_s, "nothing happens"
            self.interrupts()
        self.sees("> ")

    def _looks(self, wait_s: float) -> bool:
        """Whether something comes."""
        if not select.select([self._own], [], [], max(0.0, wait_s))[0]:
            return False
        part = self._decoder.decode(os.read(self._own, 65_536))
        self.whole += part
        self._unread += part
        return True

    def ended(self) -> int:
        """The exit code."""
        return self._process.wait(WAIT_S)


@contextmanager
def terminal_of(person: Person, *words: str) -> Iterator[Terminal]:
    """A terminal in which somebody has given a command."""
    own, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "terafleet.cli", *words],
        env={**person.environment, "TERM": "dumb"},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    try:
        yield Terminal(own, process)
    finally:
        process.kill()
        process.wait()
        os.close(own)


def until_idle(gateway: Opened) -> None:
    """Wait until no car says anything, or fail."""
    deadline_s = time.monotonic() + WAIT_S
    while gateway.fleet.running:
        assert time.monotonic() < deadline_s, "a car goes on"
        time.sleep(0.005)


def test_a_conversation_at_a_terminal(alice: Person, gateway: Opened) -> None:
    fleet = gateway.fleet
    fleet.plans += [says("At the kerb."), says(f"Gone{CLEAR}\ta\r\n電"), says("Yes.")]
    with terminal_of(alice, "chat", WRITER, "--system", "Be brief.") as terminal:
        terminal.sees("> ")
        terminal.types("Where is it?\n")
        terminal.sees("At the kerb.")
        terminal.sees("> ")
        terminal.types("And now?\n")
        terminal.sees("Gone�[2J")
        terminal.sees("電")
        terminal.sees("> ")
        terminal.types("/system Say yes.\n")
        terminal.sees("told so")
        terminal.types("/reset\n")
        terminal.sees("forgotten")
        terminal.types("/dance\n")
        terminal.sees("/reset, /system TEXT and /quit")
        terminal.types("\n /path?\n")
        terminal.sees("Yes.")
        terminal.sees("> ")
        terminal.types("\x04")
        assert terminal.ended() == 0
    assert CLEAR not in terminal.whole
    first, second, third = (body["messages"] for body in fleet.bodies())
    system = {"role": "system", "content": "Be brief."}
    assert first == [system, user("Where is it?")]
    (answer,) = [message for message in second if message["role"] == "assistant"]
    assert answer["content"] == "At the kerb."
    assert second == [*first, answer, user("And now?")]
    assert third == [{"role": "system", "content": "Say yes."}, user(" /path?")]


def test_ctrl_c_stops_the_answer_and_not_the_conversation(alice: Person, gateway: Opened) -> None:
    fleet = gateway.fleet
    endless = tuple(Piece(0, (place,), f"word{place} ") for place in range(1_000))
    fleet.plans += [Plan(pieces=endless, pause_s=0.05), says("Again."), Plan(pieces=BROKEN)]
    with terminal_of(alice, "chat", WRITER) as terminal:
        terminal.sees("> ")
        terminal.interrupts_prompt()
        terminal.types("Go on.\n")
        terminal.sees("word2 ")
        terminal.interrupts()
        terminal.sees("Stopped.")
        until_idle(gateway)
        terminal.sees("> ")
        terminal.types("What?\n")
        terminal.sees("Again.")
        terminal.sees("> ")
        terminal.types("Break.\n")
        terminal.sees("so far")
        terminal.sees("(session_failed)")
        terminal.sees("> ")
        fleet.plans.append(says("Still here."))
        terminal.types("And?\n")
        terminal.sees("Still here.")
        terminal.sees("> ")
        terminal.types("/quit\n")
        assert terminal.ended() == 0
    *_, after_stop, _, last = (body["messages"] for body in fleet.bodies())
    assert after_stop[1]["content"].startswith("word0 word1 word2 ")
    assert [message["content"] for message in last[2:]] == ["What?", "Again.", "And?"]


def test_a_conversation_in_json_and_one_of_completions(alice: Person, gateway: Opened) -> None:
    gateway.fleet.usual = says("Yes.")
    with terminal_of(alice, "chat", WRITER, "--completion", "--json") as terminal:
        terminal.sees("> ")
        terminal.types("Once\n")
        terminal.sees("{")
        report = json.loads("{" + terminal.sees("\r\n}") + "}")
        assert (report["text"], report["finish_reason"]) == ("Yes.", "stop")
        terminal.sees("> ")
        terminal.types("/reset\n")
        terminal.sees("There is /quit.")
        terminal.types("upon\n")
        terminal.sees("\r\n}")
        terminal.sees("> ")
        terminal.types("/quit\n")
        assert terminal.ended() == 0
    assert [body["prompt"] for body in gateway.fleet.bodies()] == ["Once", "upon"]


def test_a_conversation_with_nobody_does_not_begin(alice: Person) -> None:
    with terminal_of(alice, "chat", EMBEDDER) as terminal:
        terminal.sees("(model_not_found)")
        terminal.sees(f"These serve /v1/chat/completions: {WRITER}")
        assert terminal.ended() == 1


def test_ctrl_c_ends_one_answer(alice: Person, gateway: Opened) -> None:
    gateway.fleet.usual = Plan(pause_s=0.05)
    with terminal_of(alice, "chat", WRITER, HELLO) as terminal:
        terminal.sees(right_chat(user(HELLO)).words[0].strip() or " ")
        terminal.interrupts()
        assert terminal.ended() == 130
    until_idle(gateway)
    assert gateway.fleet.stopped
