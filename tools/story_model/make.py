"""Makes the demo's language model: writes stories, learns from them and writes a GGUF file."""

import argparse
import sys
import time
from itertools import islice
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tools.story_model.batches import Deal, batches
from tools.story_model.gguf_file import write_gguf
from tools.story_model.grammar import read_grammar, stories
from tools.story_model.network import greedy, loss_and_gradient
from tools.story_model.shape import Shape
from tools.story_model.training import Plan, Trainee, keep_memory
from tools.story_model.vocabulary import BEGIN, END, find_vocabulary

NAME = "Terafleet Stories"
SHAPE = Shape(
    vocabulary=1024,
    context=512,
    layers=4,
    width=96,
    heads=6,
    key_value_heads=3,
    inner_width=136,
)
TEXTS_IN_BATCH = 4
STORIES_FOR_VOCABULARY = 3000
STEPS = 10_000
SEED = 1
PROMPT = "Once upon a time"
STEPS_BETWEEN_LINES, STEPS_BETWEEN_FILES = 100, 1000
# How much of the past weighs in the loss that is printed.
LOSS_DECAY = 0.98


def main() -> None:
    """Make the model as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="the GGUF file to write")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--seed", type=int, default=SEED)
    options = parser.parse_args()
    make(options.out, Plan(steps=options.steps), options.seed)


def make(out: Path, plan: Plan, seed: int) -> None:
    """Train and write the model; goes on from the file `<out>.npz` of a run that was stopped."""
    keep_memory()
    grammar = read_grammar()
    texts = islice(stories(grammar, f"{seed}-vocabulary"), STORIES_FOR_VOCABULARY)
    vocabulary = find_vocabulary(texts, SHAPE.vocabulary)
    trainee = Trainee(SHAPE, seed)
    saved = out.with_name(out.name + ".npz")
    if saved.exists():
        trainee.resume(saved)
    _say(f"{SHAPE.parameters()} parameters, step {trainee.step} of {plan.steps}")
    _train(trainee, plan, Deal(grammar, vocabulary, TEXTS_IN_BATCH, SHAPE.context, seed), out)
    saved.unlink(missing_ok=True)


def _train(trainee: Trainee, plan: Plan, deal: Deal, out: Path) -> None:
    mean, seen, began = 0.0, 0, time.process_time()
    dealt = batches(deal, trainee.step)
    for number, (tokens, targets) in enumerate(islice(dealt, plan.steps - trainee.step), 1):
        loss = loss_and_gradient(trainee.weights, tokens, targets, trainee.gradient)
        trainee.learn(plan)
        mean = LOSS_DECAY * mean + (1 - LOSS_DECAY) * loss
        seen += tokens.size
        if trainee.step % STEPS_BETWEEN_LINES == 0:
            smooth = mean / (1 - LOSS_DECAY**number)
            seconds = time.process_time() - began
            _say(f"step {trainee.step} loss {smooth:.4f}, {seen} tokens in {seconds:.0f} s")
        if trainee.step % STEPS_BETWEEN_FILES == 0 or trainee.step == plan.steps:
            write_gguf(out, trainee.weights, deal.vocabulary, NAME)
            trainee.save(out.with_name(out.name + ".npz"))
            told = greedy(trainee.weights, [BEGIN, *deal.vocabulary.encode(PROMPT)], 120, END)
            _say(PROMPT + deal.vocabulary.decode(told))


def _say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    main()
