"""Makes the prompt of a chat with the model's own template, apart from answering it.

Llama.cpp applies templates itself and tells nobody what came of it, but an answer that goes on
behind tokens needs prompt and tokens in one. So the template is loaded with a frame around it:
asked to by a switch, it hands its text over as the words of an exception, before anything else
is done with the request.
"""

from collections.abc import Callable, Sequence
from typing import Any, Final

from terafleet.protocol.live import (
    EarlierAnswer,
    LiveFault,
    Message,
    NewerInstruction,
    ToolResult,
    text_of,
)

_SWITCH: Final = "terafleet_hands_over"
_EXCEPTION: Final = "Jinja Exception: "
_BEGIN, _END = "[[terafleet-prompt|", "|terafleet-prompt]]"
# What llama.cpp puts before the reason why it can do nothing with a chat.
_WITHOUT_PARSER: Final = "Automatic parser generation failed: "
# An empty text at both ends keeps the template's own spaces and line ends as they are.
_FRAME: Final = (
    "{% set terafleet_prompt %}{{ '' }}TEMPLATE{{ '' }}{% endset %}"
    "{% if SWITCH is defined %}{{ raise_exception('BEGIN' + terafleet_prompt + 'END') }}{% endif %}"
    "{{ terafleet_prompt }}"
).replace("SWITCH", _SWITCH)

# What llama.cpp uses for models without a template: the form called ChatML.
_CHATML: Final = (
    "{%- for message in messages -%}"
    "{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"
)
_PROBE: Final = [{"role": "user", "content": "Hello"}]
_UNSUPPORTED: Final = LiveFault(
    "unsupported_endpoint", "The chat template of this model can't be used for live chats."
)


class ChatTemplate:
    """A model's chat template, and the frame that is loaded in its place."""

    def __init__(self, template: str | None) -> None:
        """`template` is None for a model that has none."""
        # The last line end of a template is none of its text.
        self._template = _CHATML if template is None else template.removesuffix("\n")

    @property
    def framed(self) -> str:
        """What llama.cpp shall load."""
        framed = _FRAME.replace("BEGIN", _BEGIN).replace("END", _END)
        return framed.replace("TEMPLATE", self._template)

    @property
    def takes_tools(self) -> bool:
        """Whether it says anything of tools; what it doesn't, the model would never see."""
        return "tools" in self._template


class ChatPrompts:
    """The prompts of chats with one model in memory."""

    def __init__(self, server: Any, first_text: str) -> None:
        """`first_text` is what llama.cpp puts before all texts by itself; no prompt repeats it."""
        self._server = server
        self._leading = self._leading_text(first_text)

    def prompt_of(self, messages: Sequence[Message]) -> str | LiveFault:
        """The whole prompt of a chat, or why the template doesn't take it."""
        if self._leading is None:
            return _UNSUPPORTED
        prompt = self._handed_over([library_message(message) for message in messages])
        return prompt if isinstance(prompt, LiveFault) else prompt.removeprefix(self._leading)

    def _leading_text(self, first_text: str) -> str | None:
        """What to cut off prompts so that they have as many tokens as llama.cpp's own of a chat.

        None says that there is no such text, and that prompts would be others.
        """
        prompt = self._handed_over(_PROBE)
        if isinstance(prompt, LiveFault):
            return None
        expected = prompt_tokens(self._server.handle_chat_completions, {"messages": _PROBE})
        for leading in ("", first_text):
            asked = {"prompt": prompt.removeprefix(leading)}
            if prompt_tokens(self._server.handle_completions, asked) == expected:
                return leading
        return None

    def _handed_over(self, messages: list[dict[str, Any]]) -> str | LiveFault:
        asked = {
            "messages": messages,
            "chat_template_kwargs": {_SWITCH: True},
            "max_tokens": 1,
            "stream": True,
        }
        try:
            self._server.handle_chat_completions(asked, lambda _piece: True)
        except (ValueError, RuntimeError) as error:
            words = str(error)
        else:
            return _UNSUPPORTED
        _, is_there, told = words.partition(_EXCEPTION + _BEGIN)
        if is_there and _END in told:
            return told.rpartition(_END)[0]
        return LiveFault("invalid_request", template_words(words), "messages")


def prompt_tokens(ask: Callable[..., object], asked: dict[str, Any]) -> int | None:
    """How many tokens a prompt has, as llama.cpp counts them; the model doesn't read it."""
    counted: list[int] = []

    def count(piece: dict[str, Any]) -> bool:
        if (progress := piece.get("prompt_progress")) is not None:
            counted.append(progress["total"])
        elif (error := piece.get("error")) is not None and "n_prompt_tokens" in error:
            counted.append(error["n_prompt_tokens"])
        return True

    ask({**asked, "max_tokens": 1, "stream": True, "return_progress": True}, count)
    return counted[0] if counted else None


def library_message(message: Message) -> dict[str, Any]:
    """A message as templates of models know it."""
    role = message.__struct_config__.tag
    if isinstance(message, NewerInstruction):
        role = "system"
    entry: dict[str, Any] = {"role": role, "content": text_of(message.content)}
    if isinstance(message, ToolResult):
        entry["tool_call_id"] = message.tool_call_id
    if isinstance(message, EarlierAnswer) and message.tool_calls:
        entry["tool_calls"] = [
            {
                "id": call.id,
                "type": call.type,
                "function": {"name": call.function.name, "arguments": call.function.arguments},
            }
            for call in message.tool_calls
        ]
    return entry


def template_words(words: str) -> str:
    """What a template says against a chat, without where in it that stands."""
    return words.rpartition(_EXCEPTION)[2].rpartition(_WITHOUT_PARSER)[2].strip()
