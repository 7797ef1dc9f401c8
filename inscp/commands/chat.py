"""`chat`: chat with a model in the terminal, with streamed answers."""

import sys

import torch

from inscp.commands.parser import call
from inscp.data.rendering import require_chat_template
from inscp.data.template import prompt_ids
from inscp.errors import UserError, require_some
from inscp.evaluation.generation import default_generation_config, require_temperature, sampling
from inscp.model.device import scoring_model
from inscp.model.end_tokens import end_token_ids
from inscp.model.precision import inference_dtype
from inscp.pretrained import load_tokenizer, longest_input


def run(command: str, arguments: list[str]) -> None:
    """`python -m inscp chat --model DIR`"""
    call(command, chat, arguments)


def chat(model: str, system: str | None = None, max_new_tokens: int = 512, temperature: float = 0.0) -> None:
    """Chat with a model; an empty line, end of input or Ctrl-C ends the chat.

    Args:
        model: folder, Hub id, GGUF file or PyPI wheel of a model.
        system: system prompt; by default the one of the chat template, if any.
        max_new_tokens: maximum tokens per answer.
        temperature: sampling temperature; 0 is greedy, higher values vary more.
    """
    from transformers import TextStreamer

    require_some(max_new_tokens, "max_new_tokens")
    require_temperature(temperature)
    tokenizer = load_tokenizer(model)
    require_chat_template(tokenizer, model)
    llm = scoring_model(model, inference_dtype()).model
    ends, longest = end_token_ids(llm, tokenizer), longest_input(model)
    turns = [{"role": "system", "content": system}] if system else []
    streamer = TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    is_terminal = sys.stdin.isatty()
    while True:
        try:
            said = input("you> " if is_terminal else "").strip()
            said.encode()
        except EOFError:
            break
        except UnicodeError as error:
            raise UserError("standard input", "it is not UTF-8", "Convert it to UTF-8.") from error
        if not said:
            break
        turns.append({"role": "user", "content": said})
        asked = prompt_ids(tokenizer, turns)
        if len(asked) + max_new_tokens > longest:
            raise UserError("chat", f"the conversation has grown to {len(asked):,} tokens", "Start a new one.")
        ids = torch.tensor([asked], device=llm.device)
        with default_generation_config(llm):  # so that it answers as in an evaluation
            output = llm.generate(  # type: ignore[operator]
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=max_new_tokens,
                streamer=streamer,
                eos_token_id=ends,
                pad_token_id=ends[0],
                **sampling(temperature),
            )
        answer = str(tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True))
        turns.append({"role": "assistant", "content": answer})
