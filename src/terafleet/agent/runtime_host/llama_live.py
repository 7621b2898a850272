"""Answers live requests with llama.cpp: each text of an answer is a stream of its own."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import msgspec

from terafleet.agent.ports import SessionPiece
from terafleet.agent.runtime_host.chat_prompts import (
    ChatPrompts,
    ChatTemplate,
    prompt_tokens,
    template_words,
)
from terafleet.agent.runtime_host.gguf_facts import GgufFacts
from terafleet.agent.runtime_host.held_text import HeldText
from terafleet.agent.runtime_host.live_requests import (
    Request,
    chat_logprobs,
    chat_request,
    completion_logprobs,
    seeded,
    token_request,
)
from terafleet.agent.runtime_host.live_stream import ChatTeller, LiveStream, Teller, TokenTeller
from terafleet.agent.runtime_host.models import (
    IsStopped,
    LiveEnd,
    LiveRequest,
    ModelFailed,
    TakePiece,
)
from terafleet.core.reasons import Failure
from terafleet.protocol.live import (
    MESSAGE_CHARACTERS_MAX,
    LiveBody,
    LiveChat,
    LiveCompletion,
    LiveFault,
    TextFormat,
    can_move,
    live_body,
    output_tokens_max,
    prompts_of,
    stops_of,
)

# What llama.cpp says of a schema that it has no grammar for.
_SCHEMA_WORDS = "schema"


class _Text(msgspec.Struct, frozen=True):
    """One text to be written: by what, asked how, told how."""

    ask: Callable[[str, LiveStream], object]
    request: Request
    teller: Teller


class LiveTexts:
    """The live side of one model in memory; several threads may use it at once.

    `width` is how many texts of one session grow side by side.
    """

    def __init__(self, server: Any, width: int, facts: GgufFacts, template: ChatTemplate) -> None:
        self._server = server
        self._width = width
        self._fragments = facts.fragments
        self._takes_tools = template.takes_tools
        self._prompts = ChatPrompts(server, facts.first_text)

    def stream(
        self, request: LiveRequest, take: TakePiece, is_stopped: IsStopped
    ) -> LiveEnd | LiveFault:
        """As `models.HostedModel` has it."""
        body = live_body(request.endpoint, request.body)
        if isinstance(body, LiveFault):
            return body
        delivered = request.delivered
        if delivered and not can_move(body):
            return LiveFault("invalid_request", "Such an answer can't go on behind its beginning.")
        texts = self._texts(body, delivered)
        if isinstance(texts, LiveFault):
            return texts
        limit = output_tokens_max(body)
        if delivered and limit is not None and limit <= len(delivered):
            # All was told but that it is all.
            take(SessionPiece(0, (), "", finish_reason="length"))
            read = prompt_tokens(texts[0].ask, {"prompt": texts[0].request["prompt"]}) or 0
            return LiveEnd(read - len(delivered), len(delivered))
        streams = self._write(texts, take, is_stopped)
        outcome = _outcome(streams, body.n or 1, is_stopped)
        if isinstance(outcome, LiveFault):
            return _named(outcome, body)
        written = outcome.completion_tokens + len(delivered)
        return LiveEnd(outcome.prompt_tokens - len(delivered), written)

    def _texts(self, body: LiveBody, delivered: Sequence[int]) -> list[_Text] | LiveFault:
        """What is to be written, in the order of the answer's texts."""
        if isinstance(body, LiveCompletion):
            return self._token_texts(body, prompts_of(body.prompt), delivered)
        if body.tools is not None and not self._takes_tools:
            return LiveFault("unsupported_parameter", "This model knows no tools.", "tools")
        if body.tools is not None or not isinstance(body.response_format, TextFormat | None):
            return self._chat_texts(body)
        prompt = self._prompts.prompt_of(body.messages)
        if isinstance(prompt, LiveFault):
            return prompt
        return self._token_texts(body, [prompt], delivered)

    def _token_texts(
        self, body: LiveBody, prompts: Sequence[str | list[int]], delivered: Sequence[int]
    ) -> list[_Text]:
        texts: list[_Text] = []
        for prompt in prompts:
            request = token_request(body, prompt, delivered)
            for choice in range(body.n or 1):
                teller = TokenTeller(
                    len(texts),
                    HeldText(stops_of(body)),
                    self._fragments,
                    _logprobs_of(body),
                    was_begun=bool(delivered),
                )
                asked = seeded(request, body, choice, len(delivered))
                texts.append(_Text(self._server.handle_completions, asked, teller))
        return texts

    def _chat_texts(self, body: LiveChat) -> list[_Text]:
        request = chat_request(body)
        return [
            _Text(
                self._server.handle_chat_completions,
                seeded(request, body, choice, position=0),
                ChatTeller(choice, _logprobs_of(body)),
            )
            for choice in range(body.n or 1)
        ]

    def _write(
        self, texts: Sequence[_Text], take: TakePiece, is_stopped: IsStopped
    ) -> list[LiveStream]:
        """Write all texts to their ends, or until one of them fails."""
        streams: list[LiveStream] = []

        def is_over() -> bool:
            return is_stopped() or any(stream.has_failed for stream in streams)

        streams += [LiveStream(text.teller, take, is_over) for text in texts]
        if len(texts) == 1:
            _write_text(texts[0], streams[0])
            return streams
        with ThreadPoolExecutor(self._width, "text") as pool:
            for done in [
                pool.submit(_write_text, text, stream)
                for text, stream in zip(texts, streams, strict=True)
            ]:
                done.result()
        return streams


def _write_text(text: _Text, stream: LiveStream) -> None:
    if stream.is_unwanted():
        return
    try:
        text.ask(msgspec.json.encode(text.request).decode(), stream)
    except (ValueError, RuntimeError) as error:
        # Errors of the library's own code, such as a schema that it has no grammar for.
        words = template_words(str(error))[:MESSAGE_CHARACTERS_MAX]
        stream.fault = LiveFault("invalid_request", words)


def _outcome(
    streams: Sequence[LiveStream], choices: int, is_stopped: IsStopped
) -> LiveEnd | LiveFault:
    """What all texts together came to. Raises ModelFailed, and what was raised meanwhile."""
    for stream in streams:
        if stream.exception is not None:
            raise stream.exception
    for stream in streams:
        if stream.fault is not None:
            return stream.fault
    if not all(stream.is_finished for stream in streams):
        reason = Failure.STOPPED if is_stopped() else Failure.OUTPUT_INCOMPLETE
        raise ModelFailed(reason, "")
    # A prompt counts once however many texts continue it.
    read = sum(stream.prompt_tokens for stream in streams[::choices])
    return LiveEnd(read, sum(stream.completion_tokens for stream in streams))


def _named(fault: LiveFault, body: LiveBody) -> LiveFault:
    """The same with the parameter that it can only be about."""
    if fault.code == "context_length_exceeded":
        param = "messages" if isinstance(body, LiveChat) else "prompt"
    elif isinstance(body, LiveChat) and _SCHEMA_WORDS in fault.message:
        param = "tools" if body.tools is not None else "response_format"
    else:
        return fault
    return LiveFault(fault.code, fault.message, param)


def _logprobs_of(body: LiveBody) -> Callable[[tuple[dict[str, Any], ...]], bytes]:
    if isinstance(body, LiveCompletion):
        return partial(completion_logprobs, alternatives=body.logprobs or 0)
    return partial(chat_logprobs, alternatives=body.top_logprobs or 0)
