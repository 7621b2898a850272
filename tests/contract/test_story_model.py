"""The demo's language model tells a whole story, and the tool that made it computes rightly."""

import re
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from terafleet.agent.runtime_host.llama import LlamaModel, loader
from terafleet.protocol.model_files.gguf import GgufHeader, check_gguf
from tools.story_model import attention
from tools.story_model.batches import Deal, batches
from tools.story_model.gguf_file import read_gguf, write_gguf
from tools.story_model.grammar import Grammar, read_grammar, stories
from tools.story_model.network import IGNORED, greedy, logits, loss_and_gradient
from tools.story_model.shape import Shape, Weights, random_weights
from tools.story_model.training import Plan, Trainee
from tools.story_model.vocabulary import BEGIN, END, Vocabulary, find_vocabulary

MODEL = Path(__file__).resolve().parents[2] / "src/terafleet/cli/demo/story.gguf"
BYTES_MAX = 2_000_000
COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
PROMPTS = (
    "Once upon a time",
    "Tell me a story about a fox.",
    "Once upon a time, there was a little red car",
)
HAPPY = ("happy", "happily", "happiest", "smile", "best day", "never alone")

TINY = Shape(
    vocabulary=11, context=16, layers=2, width=16, heads=4, key_value_heads=2, inner_width=12
)


@pytest.fixture(scope="module")
def grammar() -> Grammar:
    return read_grammar()


@pytest.fixture(scope="module")
def learned() -> tuple[Weights, Vocabulary]:
    """The committed model, as the tool reads it."""
    return read_gguf(MODEL)


@pytest.fixture(scope="module")
def runtime() -> LlamaModel:
    """The committed model in llama.cpp, as a vehicle runs it."""
    loaded = loader(threads=1, slots=1)(MODEL.parent, {"context_tokens": 512})
    assert isinstance(loaded, LlamaModel)
    return loaded


def answer(model: LlamaModel, endpoint: str, **body: Any) -> dict[str, Any]:
    """The answer to one greedy request."""
    line = msgspec.json.encode({"model": "story", "temperature": 0, "max_tokens": 500, **body})
    decoded = msgspec.json.decode(model.serve(line, endpoint, lambda: False).payload)
    assert decoded["status_code"] == 200, decoded
    body_of: dict[str, Any] = decoded["body"]
    return body_of


def words_of(text: str) -> set[str]:
    return set(re.findall(r"[A-Za-z]+", text))


def test_our_parser_takes_the_file() -> None:
    size_bytes = MODEL.stat().st_size
    assert size_bytes < BYTES_MAX
    with MODEL.open("rb") as file:
        header = check_gguf(file, size_bytes)
    assert isinstance(header, GgufHeader), header
    assert (header.version, header.architecture, header.context_length) == (3, "llama", 512)
    assert header.name == "Terafleet Stories"
    assert header.has_chat_template
    assert header.vocabulary_size == 1024


@pytest.mark.parametrize("prompt", PROMPTS)
def test_llama_tells_a_whole_story_with_a_happy_end(
    runtime: LlamaModel, grammar: Grammar, prompt: str
) -> None:
    body = answer(runtime, COMPLETIONS, prompt=prompt)
    (choice,) = body["choices"]
    text = choice["text"]
    assert choice["finish_reason"] == "stop"
    assert body["usage"]["completion_tokens"] >= 250
    known = set[str]().union(*map(words_of, islice(stories(grammar, "words"), 1000)))
    assert words_of(text) <= known
    sentences = re.findall(r"[^.!?]+[.!?]", text)
    assert len(set(sentences)) > 0.8 * len(sentences), "it says the same again and again"
    assert any(word in sentence for word in HAPPY for sentence in sentences[-3:])
    hero, friend = re.findall(r"named (\w+)|name was (\w+)", text)
    assert min(text.count("".join(hero)), text.count("".join(friend))) >= 4
    assert hero != friend


def test_a_chat_begins_with_the_customers_words(runtime: LlamaModel) -> None:
    request = "Tell me a story about a fox."
    messages = [{"role": "user", "content": request}]
    (chat,) = answer(runtime, CHAT, messages=messages)["choices"]
    (completion,) = answer(runtime, COMPLETIONS, prompt=request)["choices"]
    assert chat["message"]["content"].strip() == completion["text"].strip()
    assert "fox named" in completion["text"]


@pytest.mark.parametrize("prompt", PROMPTS)
def test_our_network_and_llama_say_the_same(
    runtime: LlamaModel, learned: tuple[Weights, Vocabulary], prompt: str
) -> None:
    weights, vocabulary = learned
    ours = greedy(weights, [BEGIN, *vocabulary.encode(prompt)], 110, END)
    body = answer(runtime, COMPLETIONS, prompt=prompt, max_tokens=110)
    assert len(ours) == body["usage"]["completion_tokens"] == 110
    # What follows a prompt keeps its first space, which a whole text does not have.
    assert vocabulary.decode(ours) == body["choices"][0]["text"].removeprefix(" ")


@pytest.mark.parametrize(
    "text", ["Once upon a time", 'He said, "Hi!"', "Über 7 cars\n  and  a  hedgehog's 车", "  "]
)
def test_our_tokens_are_those_of_llama(
    runtime: LlamaModel, learned: tuple[Weights, Vocabulary], text: str
) -> None:
    ours = learned[1].encode(text)
    assert learned[1].decode(ours) == text
    cut, given = (
        answer(runtime, COMPLETIONS, prompt=prompt, max_tokens=20)
        for prompt in (text, [BEGIN, *ours])
    )
    assert cut["usage"] == given["usage"]
    assert cut["choices"] == given["choices"]


def test_a_seed_always_makes_the_same_stories(grammar: Grammar) -> None:
    first, again, other = (list(islice(stories(grammar, seed), 40)) for seed in ("1", "1", "2"))
    assert first == again
    assert not set(first) & set(other)
    assert not any(mark in story for story in first for mark in "<>{}()|[]")
    assert not any(re.search(r"\b[Aa] [aeiou]|  | \n|\b(\w+) \1\b", story) for story in first)


def test_every_plot_ends_happily(grammar: Grammar) -> None:
    told = list(islice(stories(grammar, "ends"), 400))
    assert all(any(word in story[-250:] for word in HAPPY) for story in told)


def test_gradients_match_finite_differences(monkeypatch: pytest.MonkeyPatch) -> None:
    # Several blocks a text, so that what lies between blocks is tested as well.
    monkeypatch.setattr(attention, "_BLOCK_TOKENS", 4)
    chance = np.random.default_rng(0)
    weights = Weights(TINY, random_weights(TINY, 0).row + chance.normal(0, 0.1, TINY.parameters()))
    tokens, targets = chance.integers(0, TINY.vocabulary, (2, 2, 10))
    targets[1, 7:] = IGNORED
    gradient, unused = weights.zeros(), weights.zeros()
    loss_and_gradient(weights, tokens, targets, gradient)
    step = 1e-5
    for place in chance.permutation(TINY.parameters())[:250]:
        kept = weights.row[place]
        losses = []
        for moved in (kept + step, kept - step):
            weights.row[place] = moved
            losses.append(loss_and_gradient(weights, tokens, targets, unused))
        weights.row[place] = kept
        slope = (losses[0] - losses[1]) / (2 * step)
        assert gradient.row[place] == pytest.approx(slope, abs=1e-7)


def test_a_token_does_not_see_the_future() -> None:
    weights = random_weights(TINY, 1)
    tokens = np.arange(10)[None]
    changed = tokens.copy()
    changed[0, 6:] = 0
    before, after = logits(weights, tokens), logits(weights, changed)
    assert np.allclose(before[0, :6], after[0, :6], atol=1e-5)
    assert not np.allclose(before[0, 6:], after[0, 6:], atol=1e-2)


def test_training_lowers_the_loss_and_goes_on_where_it_stopped(
    grammar: Grammar, tmp_path: Path
) -> None:
    texts = islice(stories(grammar, "small"), 100)
    vocabulary = find_vocabulary(texts, 400)
    shape = msgspec.structs.replace(TINY, vocabulary=len(vocabulary))
    deal = Deal(grammar, vocabulary, texts=1, tokens_max=1000, seed=1)
    plan = Plan(steps=12, warmup_steps=2)

    def train(trainee: Trainee, steps: int) -> list[float]:
        losses = []
        for tokens, targets in islice(batches(deal, trainee.step), steps):
            weights, gradient = trainee.weights, trainee.gradient
            losses.append(loss_and_gradient(weights, tokens[:, :64], targets[:, :64], gradient))
            trainee.learn(plan)
        return losses

    straight, stopped, resumed = (Trainee(shape, 1) for _ in range(3))
    losses = train(straight, 12)
    assert losses[-1] < losses[0] - 0.5
    train(stopped, 5)
    stopped.save(tmp_path / "saved.npz")
    resumed.resume(tmp_path / "saved.npz")
    assert train(resumed, 7) == losses[5:]
    assert np.array_equal(resumed.weights.row, straight.weights.row)
    write_gguf(tmp_path / "model.gguf", straight.weights, vocabulary, "small")
    weights, read = read_gguf(tmp_path / "model.gguf")
    assert np.array_equal(weights.row, straight.weights.row)
    # The file has 32 bits for the epsilon, so it comes back rounded.
    assert weights.shape.epsilon == pytest.approx(shape.epsilon)
    assert msgspec.structs.replace(weights.shape, epsilon=shape.epsilon) == shape
    assert read.tokens == vocabulary.tokens
