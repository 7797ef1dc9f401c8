"""`generate`: generate a model's own answers, as conversations to replay."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from itertools import takewhile
from pathlib import Path
from shlex import quote

from inscp.commands.backends import open_model
from inscp.commands.parser import call
from inscp.cost.ledger import Ledger
from inscp.data.pipeline import Sources, as_sources
from inscp.data.sources import OnBadRecord, ReadReport, Source, bad_record, read_records
from inscp.errors import UserError
from inscp.evaluation.answers import defects
from inscp.evaluation.caching_model import Backend
from inscp.evaluation.generation import require_temperature
from inscp.evaluation.items import items_folder
from inscp.evaluation.server import Server
from inscp.model.precision import InferencePrecision
from inscp.paths import require_new, write_atomically
from inscp.progress import print_skipped
from inscp.records import Generation, Prompt, Turn


def run(command: str, arguments: list[str]) -> None:
    """`python -m inscp generate --model M --data D --out answers.jsonl`"""
    call(command, generate, arguments)


def generate(
    model: str,
    data: Sources,
    out: str,
    max_new_tokens: int = 256,
    max_characters: int = 2000,
    temperature: float = 1.0,
    seed: int = 0,
    on_bad_record: OnBadRecord = "error",
    precision: InferencePrecision | None = None,
    batch_size: int = 64,
    server: Server | None = None,
    cost: Ledger = Ledger(),  # noqa: B008  # frozen
) -> None:
    """Generate a model's own answers to prompts, to replay them while it learns a language.

    A model's alignment (its style, what it refuses) shows in its own answers only; replaying them preserves it. Rerun
    the same command to resume after an interruption.

    Args:
        model: folder, Hub id, GGUF file or PyPI wheel of a model.
        data: prompts in the languages that the model speaks: a path, a Hub id, or a list of sources with options, as
            for data.train of `fit`. Records may also be unanswered prompts (`prompt`, `question` or `instruction`);
            `fields: {user: en}` takes a file's field `en`. The prompt of a conversation is what precedes its first
            answer, that of a text is the whole text.
        out: JSONL file to create, one conversation per line. All answers, including those left out, are written next to
            it, into a folder named OUT.items.
        max_new_tokens: maximum tokens per answer. Longer answers are left out, as are loops, copies of the prompt and
            empty ones.
        max_characters: maximum characters per prompt; a longer prompt is an invalid record.
        temperature: sampling temperature. 1 samples from the model's own distribution, which training on the samples
            preserves; 0 is greedy, and training on greedy answers makes the model more confident.
        seed: random seed of the sampling.
        on_bad_record: stop at an invalid record (`error`), or skip and count it (`skip`).
        precision: number format of the computation; by default bf16 if the hardware is faster in it, else fp32.
        batch_size: prompts per batch.
        server: OpenAI-compatible endpoint (vLLM, say) that answers instead of this process.
        cost: cost accounting and prices; nothing is counted if a server answers.
    """
    file = Path(out)
    require_new(file)
    require_temperature(temperature)
    if server and temperature > 0:
        server = replace(server, options={"temperature": temperature, "seed": seed, **server.options})
    asked, cost_record = open_model(model, server, items_folder(file), precision, batch_size, cost, temperature, seed)
    reads = [(source, ReadReport()) for source in as_sources(data)]
    too_long = partial(_too_long, asked.backend, max_characters, max_new_tokens)
    prompts = list(dict.fromkeys(_prompts(reads, too_long, on_bad_record)))
    if not prompts:
        raise UserError("data", "it contains no prompts", "Give questions, conversations or user texts.")
    try:
        answers = asked.generate("prompts", prompts, max_new_tokens)
    finally:
        if cost_record:
            cost_record.save()
    wrong = [_wrong(answer, max_new_tokens) for answer in answers]
    kept = [(*prompt, Turn("assistant", answer.response.strip()))
            for prompt, answer, why in zip(prompts, answers, wrong, strict=True) if why is None]  # fmt: skip
    for source, report in reads:
        print_skipped(source.name, report.skipped, report.examples)
    for why, count in Counter(filter(None, wrong)).most_common():
        print(f"left out   {count:,} answers: {why}")
    total = cost_record.stop() if cost_record else None
    if not kept:
        raise UserError(model, "no answer is usable", "Give a higher max_new_tokens, or other prompts.")
    write_atomically(file, "".join(_line(turns) for turns in kept))
    print(f"answers    {file}: {len(kept):,} of {len(prompts):,}" + (f"\ncost       {total}" if total else ""))
    replay = json.dumps({"sources": out, "share": 0.2, "tagger": "ConversationTagger"}, ensure_ascii=False)
    print(f"\nnext:\n  python -m inscp fit --config … --data.replay {quote(replay)}")


def _prompts(
    reads: Iterable[tuple[Source, ReadReport]],
    too_long: Callable[[Prompt], str | None],
    on_bad_record: OnBadRecord,
) -> Iterator[Prompt]:
    """The prompts of the sources, in order; each source comes with the report to fill."""
    for source, report in reads:
        for record in read_records(source, on_bad_record, report, requests=True):
            ahead = takewhile(lambda turn: turn.role != "assistant", record.turns)
            prompt = tuple(Turn("user", turn.text) if turn.role == "document" else turn for turn in ahead)
            if not prompt or prompt[-1].role != "user":
                bad_record(record.source, "it has no user turn", on_bad_record, report)
            elif why := too_long(prompt):
                bad_record(record.source, why, on_bad_record, report)
            else:
                yield prompt


def _too_long(backend: Backend, max_characters: int, max_new_tokens: int, prompt: Prompt) -> str | None:
    if sum(len(turn.text) for turn in prompt) > max_characters:
        return f"a prompt of more than {max_characters:,} characters (max_characters)"
    if backend.too_long(prompt, max_new_tokens):
        return f"a prompt that leaves no room for an answer of {max_new_tokens:,} tokens (max_new_tokens)"
    return None


def _wrong(answer: Generation, max_new_tokens: int) -> str | None:
    """Why an answer is unfit for training; None if it is fit."""
    if not answer.ended:
        return f"not ended after {max_new_tokens:,} tokens"
    return next((why for why, is_so in defects(answer).items() if is_so), None)


def _line(turns: Prompt) -> str:
    messages = [{"role": turn.role, "content": turn.text} for turn in turns]
    return json.dumps({"messages": messages}, ensure_ascii=False) + "\n"
