"""The prompt of a chat is what the model's own template makes of it, to the last space."""

from pathlib import Path
from typing import Any

import pytest
import xllamacpp

from terafleet.agent.runtime_host.chat_prompts import ChatPrompts, ChatTemplate
from terafleet.protocol.live import LiveFault, Message, NewerInstruction, Question, TextPart
from tests.contract.chain_model import byte_ids, chain_model, number_spelled

QUESTION = [Question(content="Hi")]
# An odd one, which keeps spaces and line ends wherever it can.
ODD = (
    "\n\n{% for m in messages %}\n  {% if m.role == 'user' %}\nU: {{ m.content }}\n  {% endif %}\n\
{% endfor %}\nA: \n\n"
)


def server_with(folder: Path, template: str) -> Any:
    """Llama.cpp with a small model and a template."""
    model = chain_model(folder, "llama", number_spelled(["\u2581"]), byte_ids("ab"))
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(model.folder / "model.gguf")
    parameters.hostnames = [f"\0{folder.name}.sock"]
    parameters.n_parallel = 1
    parameters.n_ctx = 512
    parameters.verbosity = -1
    parameters.chat_template = template
    return xllamacpp.Server(parameters)


def library_prompt(server: Any, messages: list[dict[str, str]]) -> str:
    """The prompt that llama.cpp reads, with the text that it puts before all texts."""
    asked = {"messages": messages, "max_tokens": 1, "verbose": True}
    answer = server.handle_chat_completions(asked)
    return str(answer["__verbose"]["prompt"])


@pytest.mark.parametrize(
    ("template", "prompt"),
    [
        (None, "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"),
        (ODD, "\n\nU: Hi\nA: \n"),
        ("{{ bos_token }}{{ messages[0].content }}\n", "Hi"),
        ("  {{- messages[0].content -}}  ", "Hi"),
        ("{%- set x = 'a' %}\n{# no text #}{{ x }} {{ messages[0].content }} \n\n", "a Hi \n"),
    ],
)
def test_the_frame_changes_nothing(tmp_path: Path, template: str | None, prompt: str) -> None:
    framed = server_with(tmp_path / "framed", ChatTemplate(template).framed)
    assert ChatPrompts(framed, "<s>").prompt_of(QUESTION) == prompt
    hi = [{"role": "user", "content": "Hi"}]
    itself = library_prompt(framed, hi)
    assert itself.removeprefix("<s>").removeprefix(" ") == prompt
    if template is not None:
        assert library_prompt(server_with(tmp_path / "plain", template), hi) == itself


def test_messages_are_told_as_templates_know_them(tmp_path: Path) -> None:
    template = "{% for m in messages %}{{ m.role }}={{ m.content }};{% endfor %}"
    prompts = ChatPrompts(server_with(tmp_path / "model", ChatTemplate(template).framed), "<s>")
    parts = [TextPart(type="text", text="a"), TextPart(type="text", text="b")]
    messages: list[Message] = [NewerInstruction(content="Be kind."), Question(content=parts)]
    assert prompts.prompt_of(messages) == "system=Be kind.;user=ab;"


def test_a_frame_that_was_not_loaded_makes_no_prompts(tmp_path: Path) -> None:
    prompts = ChatPrompts(server_with(tmp_path / "model", "{{ messages[0].content }}"), "<s>")
    fault = prompts.prompt_of(QUESTION)
    assert isinstance(fault, LiveFault)
    assert fault.code == "unsupported_endpoint"


def test_a_prompt_that_llama_would_read_otherwise_is_not_used(tmp_path: Path) -> None:
    template = ChatTemplate("{{ bos_token }}{{ messages[0].content }}").framed
    # Of a text that stands before all texts nothing is known here.
    prompts = ChatPrompts(server_with(tmp_path / "model", template), "")
    assert isinstance(prompts.prompt_of(QUESTION), LiveFault)
