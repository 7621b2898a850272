"""The command that talks with a model, one answer or a whole conversation."""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from terafleet.cli.connection import Asking, failure_of, fleet_client
from terafleet.cli.failure import CommandFailed, files_mapped
from terafleet.cli.options import add_command
from terafleet.cli.words import CHAT_ADVICE
from terafleet.core.units import MS_PER_S, divide_up
from terafleet.protocol.openai import CHAT_COMPLETIONS, COMPLETIONS

if TYPE_CHECKING:
    from terafleet.cli.answer import Answer
    from terafleet.sdk import FleetClient, Message, TerafleetError

PROMPT_BYTES_MAX = 4 * 1024 * 1024
SEED_MAX = 2**32 - 2
TEMPERATURE_MAX = 2.0
MODELS_NAMED_MAX = 20

_UNSERVED = ("model_not_found", "unsupported_endpoint")


class Chat(Asking, frozen=True, kw_only=True):
    """The options of `chat`."""

    model: Annotated[str, typer.Argument(metavar="MODEL", help="The model's name.")]
    prompt: Annotated[
        str | None,
        typer.Argument(
            metavar="PROMPT",
            help="What to answer.",
            show_default="standard input; at a terminal, a conversation",
        ),
    ] = None
    system: Annotated[
        str,
        typer.Option(
            "--system", metavar="TEXT", help="What the model shall be.", show_default=False
        ),
    ] = ""
    temperature: Annotated[
        float | None,
        typer.Option(
            metavar="X", min=0.0, max=TEMPERATURE_MAX, help="0 always takes the likeliest token."
        ),
    ] = None
    max_tokens: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="At most so many tokens of answer.",
            show_default="as many as fit; 16 with --completion",
        ),
    ] = None
    seed: Annotated[
        int | None,
        typer.Option(metavar="N", min=0, max=SEED_MAX, help="Where chance begins."),
    ] = None
    is_completion: Annotated[
        bool, typer.Option("--completion", help="Go on with the text itself; there is no chat.")
    ] = False


def register(app: typer.Typer) -> None:
    """Add the command `chat`."""
    add_command(app, "chat", Chat, talk, 'terafleet chat org/writer "Tell me of a parked car."')


def talk(options: Chat) -> None:
    """Talk with a model in the terminal.

    With a PROMPT, or a text on standard input, one answer is printed as it comes. Else it is a
    conversation: Ctrl-C stops an answer, /reset forgets what was said, /system TEXT says what the
    model shall be, /quit or Ctrl-D ends it.
    """
    if options.is_completion and options.system:
        raise typer.BadParameter("it goes with a chat only", param_hint="--system")
    prompt = _given(options.prompt)
    with fleet_client(options) as client:
        asked = Asked(client, options)
        if prompt is None:
            from terafleet.cli.conversation import converse

            asked.check_is_served()
            converse(asked)
        else:
            _answer_once(asked, prompt)


class Asked:
    """The model that is talked with, and how it is asked."""

    def __init__(self, client: "FleetClient", options: Chat) -> None:
        self._client = client
        self.options = options
        self._endpoint = COMPLETIONS if options.is_completion else CHAT_COMPLETIONS

    def answer(self, messages: "Sequence[Message]") -> "Answer":
        """The answer to the last of the messages, on its way; a completion knows no others."""
        from terafleet.cli.answer import Answer
        from terafleet.sdk import Sampling

        options = self.options
        sampling = Sampling(
            temperature=options.temperature, max_tokens=options.max_tokens, seed=options.seed
        )
        if options.is_completion:
            said = self._client.complete(options.model, messages[-1].content, sampling)
        else:
            said = self._client.chat(options.model, messages, sampling)
        return Answer(said, options.model, options.is_json)

    def check_is_served(self) -> None:
        """Raises CommandFailed where there is no such model, before a person types anything."""
        name = self.options.model
        if name not in self._served():
            message = f"There is no model {name} that serves {self._endpoint}."
            raise CommandFailed("model_not_found", message, self._others())

    def failure(self, error: "TerafleetError") -> CommandFailed:
        """Why there is no answer, with what a person can do."""
        found = failure_of(error)
        if error.retry_after_ms > 0:
            wait_s = divide_up(error.retry_after_ms, MS_PER_S)
            advice = f"Ask again in about {wait_s} s."
        elif error.code in _UNSERVED:
            advice = self._others()
        else:
            advice = CHAT_ADVICE.get(error.code, found.advice)
        return CommandFailed(found.code, found.message, advice)

    def _others(self) -> str:
        """The models that could be asked instead."""
        from terafleet.sdk import TerafleetError

        try:
            names = [name for name in self._served() if name != self.options.model]
        except TerafleetError:
            return ""
        if not names:
            return f"No other model serves {self._endpoint}; operators add one: terafleet model add"
        shown = ", ".join(names[:MODELS_NAMED_MAX])
        more = len(names) - MODELS_NAMED_MAX
        rest = f" and {more} more" if more > 0 else ""
        return f"These serve {self._endpoint}: {shown}{rest}"

    def _served(self) -> list[str]:
        models = self._client.models().data
        return sorted(model.id for model in models if self._endpoint in model.terafleet.endpoints)


def _answer_once(asked: Asked, prompt: str) -> None:
    from terafleet.sdk import Message, TerafleetError

    system = asked.options.system
    messages = [Message("system", system)] if system else []
    try:
        asked.answer([*messages, Message("user", prompt)]).show()
    except TerafleetError as error:
        raise asked.failure(error) from error


def _given(prompt: str | None) -> str | None:
    """What to answer; None where a person sits at the terminal and is to be asked."""
    if prompt is None and sys.stdin is not None:
        if sys.stdin.isatty():
            return None
        prompt = _standard_input()
    if prompt is None or not prompt.strip():
        raise CommandFailed("prompt_missing", "There is nothing to answer.", "Say something.")
    return prompt


def _standard_input() -> str:
    with files_mapped():
        body = sys.stdin.buffer.read(PROMPT_BYTES_MAX + 1)
    if len(body) > PROMPT_BYTES_MAX:
        message = f"Standard input has more than {PROMPT_BYTES_MAX} bytes."
        raise CommandFailed("prompt_too_long", message)
    try:
        # The last line has an end because it is a line of a file, not because it is said.
        return body.decode("utf-8").removesuffix("\n")
    except UnicodeDecodeError as error:
        raise CommandFailed("prompt_unreadable", "Standard input is not UTF-8 text.") from error
