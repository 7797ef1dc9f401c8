"""Chat template styles in the wild, retold in a few lines each, and throw-away tokenizers to render them with."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

_CORPUS = """The river runs past the old mill, and the miller sleeps. Who will wake him? Nobody knows the hour.
When the rain comes the children run to the house; the answer to every question is in the kitchen!
Der Fluss fließt an der alten Mühle vorbei. Joki virtaa vanhan myllyn ohi, ja mylläri nukkuu.
河水流過古老的磨坊，磨坊主人正在睡覺。誰會叫醒他？沒有人知道時間。今天天氣很好，我們一起去公園走走。
川は古い水車小屋のそばを流れる。誰が彼を起こすのか。今日はとても良い天気です。
يمر النهر بجانب الطاحونة القديمة، والطحان نائم. من سيوقظه؟ لا أحد يعرف الساعة.
नदी पुरानी चक्की के पास से बहती है। उसे कौन जगाएगा?
system user assistant model answer question [INST] [/INST] <<SYS>> <</SYS>> <think> </think> Today is 26 Jul 2024.
""".splitlines()


_TWO_BREAKS = ("\n\n",) * 50


@dataclass(frozen=True)
class Style:
    """A chat template and what its tokenizer needs.

    Attributes:
        template: Jinja.
        special_tokens: every special token, the end-of-turn token first.
        eos_token, bos_token: what the tokenizer calls them.
        adds_bos: the tokenizer by itself puts BOS before a text (and a re-tokenised rendering would have it twice).
        uses_bos: the template writes BOS once, at the start.
        has_default_system: the template adds a system turn by itself.
        takes_system: the template accepts a system turn.
        thinks: the template puts an empty thinking block before the last answer.
        plain_tokens: added tokens that are not called special.
        spaces: how white space becomes tokens: `byte_level`, `gpt_2` (the same, with a token for two line breaks),
            `cl100k` (line breaks join the punctuation ahead of them),
            or as SentencePiece does, `metaspace` (a leading ▁ where there is none) or `legacy` (one more ▁ always, as
            in Llama-2's tokenizer.json).
    """

    template: str
    special_tokens: tuple[str, ...]
    eos_token: str
    bos_token: str | None = None
    adds_bos: bool = False
    uses_bos: bool = False
    has_default_system: bool = False
    takes_system: bool = True
    thinks: bool = False
    plain_tokens: tuple[str, ...] = ()
    spaces: str = "byte_level"

    @property
    def end_of_turn(self) -> str:
        return self.special_tokens[0]


_CHATML_TURNS = """
{%- for turn in messages %}
{{- '<|im_start|>' + turn.role + '\n' + turn.content + '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""

_CHATML_DEFAULT_SYSTEM = """
{%- if messages[0].role != 'system' %}
{{- '<|im_start|>system\nYou are a helpful assistant, so they say.<|im_end|>\n' }}
{%- endif %}"""

_QWEN_3 = """
{%- for turn in messages %}
{{- '<|im_start|>' + turn.role + '\n' }}
{%- if turn.role == 'assistant' and loop.last %}{{ '<think>\n\n</think>\n\n' }}{% endif %}
{{- turn.content + '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""

_LLAMA_2 = """
{%- if messages[0].role == 'system' %}
{%- set system, turns = '<<SYS>>\n' + messages[0].content + '\n<</SYS>>\n\n', messages[1:] %}
{%- else %}{% set system, turns = '', messages %}{% endif %}
{%- for turn in turns %}
{%- if (turn.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('turns must alternate') }}{% endif %}
{%- set content = (system if loop.first else '') + turn.content %}
{%- if turn.role == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}
{%- else %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}
{%- endfor %}"""

_MISTRAL = """
{{- bos_token }}
{%- for turn in messages %}
{%- if turn.role == 'user' %}{{ '[INST] ' + turn.content + ' [/INST]' }}
{%- elif turn.role == 'assistant' %}{{ ' ' + turn.content + eos_token }}
{%- else %}{{ raise_exception('only user and assistant turns') }}{% endif %}
{%- endfor %}"""

_LLAMA_3_TURNS = """
{%- for turn in messages %}
{{- '<|start_header_id|>' + turn.role + '<|end_header_id|>\n\n' + turn.content | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"""

_LLAMA_3_DATED_SYSTEM = """
{{- bos_token }}
{%- if messages[0].role == 'system' %}{% set system, messages = messages[0].content | trim, messages[1:] %}
{%- else %}{% set system = '' %}{% endif %}
{{- '<|start_header_id|>system<|end_header_id|>\n\nToday is ' + date_string + '.\n\n' + system + '<|eot_id|>' }}"""

_LLAMA_3_1 = (
    "{%- if date_string is not defined %}{% set date_string = '26 Jul 2024' %}{% endif %}"
    + _LLAMA_3_DATED_SYSTEM
    + _LLAMA_3_TURNS
)
_LLAMA_3_2 = (
    "{%- if date_string is not defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
    + _LLAMA_3_DATED_SYSTEM
    + _LLAMA_3_TURNS
)

_GEMMA = """
{{- bos_token }}
{%- for turn in messages %}
{%- if turn.role == 'system' %}{{ raise_exception('no system turn') }}{% endif %}
{{- '<start_of_turn>' + ('model' if turn.role == 'assistant' else turn.role) + '\n' }}
{{- turn.content | trim + '<end_of_turn>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"""

_PHI_3 = """
{%- for turn in messages %}
{{- '<|' + turn.role + '|>\n' + turn.content + '<|end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"""

_GRANITE = """
{%- if messages[0].role != 'system' %}
{{- '<|start_of_role|>system<|end_of_role|>Today is ' + strftime_now('%B %d, %Y') + '.<|end_of_text|>\n' }}
{%- endif %}
{%- for turn in messages %}
{{- '<|start_of_role|>' + turn.role + '<|end_of_role|>' + turn.content + '<|end_of_text|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|start_of_role|>assistant<|end_of_role|>' }}{% endif %}"""

_OLMO_2 = """
{{- bos_token }}
{%- for turn in messages %}
{{- '<|' + turn.role + '|>\n' + turn.content }}
{%- if turn.role == 'assistant' %}{{ eos_token }}{% endif %}
{%- if turn.role != 'assistant' or not loop.last %}{{ '\n' }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"""

_CHATML_TOKENS = ("<|im_end|>", "<|im_start|>", "<|endoftext|>")
_LLAMA_3_TOKENS = ("<|eot_id|>", "<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>")
_PHI_3_TOKENS = ("<|end|>", "<|system|>", "<|user|>", "<|assistant|>", "<|endoftext|>")


def _llama_3(template: str, has_default_system: bool) -> Style:
    return Style(
        template,
        _LLAMA_3_TOKENS,
        eos_token="<|eot_id|>",
        bos_token="<|begin_of_text|>",
        adds_bos=True,
        uses_bos=True,
        has_default_system=has_default_system,
    )


STYLES = {
    "llama_2": Style(_LLAMA_2, ("</s>", "<s>"), "</s>", bos_token="<s>", adds_bos=True, uses_bos=True, spaces="legacy"),
    "llama_3": _llama_3("{{- bos_token }}" + _LLAMA_3_TURNS, has_default_system=False),
    "llama_3_1": _llama_3(_LLAMA_3_1, has_default_system=True),
    "llama_3_2": _llama_3(_LLAMA_3_2, has_default_system=True),
    "mistral": Style(
        _MISTRAL,
        ("</s>", "<s>"),
        "</s>",
        bos_token="<s>",
        adds_bos=True,
        uses_bos=True,
        takes_system=False,
        spaces="metaspace",
    ),
    "chatml": Style(_CHATML_TURNS, _CHATML_TOKENS, "<|im_end|>"),
    "qwen_2_5": Style(_CHATML_DEFAULT_SYSTEM + _CHATML_TURNS, _CHATML_TOKENS, "<|im_end|>", has_default_system=True),
    "qwen_3": Style(_QWEN_3, _CHATML_TOKENS, "<|im_end|>", thinks=True),
    # SmolLM2 names as its BOS the token that opens every turn.
    "smollm_2": Style(
        _CHATML_DEFAULT_SYSTEM + _CHATML_TURNS,
        _CHATML_TOKENS,
        "<|im_end|>",
        bos_token="<|im_start|>",
        has_default_system=True,
    ),
    "gemma": Style(
        _GEMMA,
        ("<end_of_turn>", "<bos>", "<eos>", "<start_of_turn>"),
        "<eos>",
        bos_token="<bos>",
        adds_bos=True,
        uses_bos=True,
        takes_system=False,
    ),
    "phi_3": Style(_PHI_3, _PHI_3_TOKENS, "<|endoftext|>"),
    # Granite has one token for BOS, EOS and the end of a turn, and asks for the date without another way to give it.
    "granite": Style(
        _GRANITE,
        ("<|end_of_text|>", "<|start_of_role|>", "<|end_of_role|>"),
        "<|end_of_text|>",
        bos_token="<|end_of_text|>",
        has_default_system=True,
    ),
    # OLMo 2 closes its last answer without the line break of the others.
    "olmo_2": Style(_OLMO_2, ("<|endoftext|>",), "<|endoftext|>", bos_token="<|endoftext|>", spaces="cl100k"),
}


def tokenizer_for(style: Style) -> PreTrainedTokenizerBase:
    """A tokenizer of its own for the style: template, special tokens and BOS post-processor."""
    base = Tokenizer.from_str(_BASES[style.spaces]())
    base.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in style.special_tokens])
    base.add_tokens([AddedToken(token, normalized=False) for token in style.plain_tokens])
    if style.adds_bos and style.bos_token:
        bos = (style.bos_token, base.token_to_id(style.bos_token))
        base.post_processor = processors.TemplateProcessing(single=f"{style.bos_token} $A", special_tokens=[bos])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=base, bos_token=style.bos_token, eos_token=style.eos_token, pad_token=style.eos_token
    )
    tokenizer.chat_template = style.template
    return tokenizer


@cache
def _byte_level(more: tuple[str, ...] = ()) -> str:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([*_CORPUS, *more], trainer)
    return str(tokenizer.to_str())


@cache
def _cl100k() -> str:
    """Byte-level BPE that makes one token of punctuation and the line breaks behind it, as GPT-4's and its heirs do."""
    tokenizer = Tokenizer(models.BPE())
    words = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(words), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([*(f"Who{end}\n" for end in ".?!。" * 50), *_TWO_BREAKS, *_CORPUS], trainer)
    return str(tokenizer.to_str())


@cache
def _sentencepiece(spaces: str) -> str:
    """BPE over ▁-joined words with byte fallback, as SentencePiece trains it."""
    metaspace = pre_tokenizers.Metaspace()
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = metaspace
    trained.train_from_iterator(_CORPUS, trainers.BpeTrainer(vocab_size=500, show_progress=False))
    model = json.loads(trained.to_str())["model"]
    pieces = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *model["vocab"]]
    tokenizer = Tokenizer(
        models.BPE(
            vocab={piece: index for index, piece in enumerate(pieces)},
            merges=[tuple(pair) for pair in model["merges"]],
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    if spaces == "metaspace":
        tokenizer.pre_tokenizer = metaspace
    else:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    join = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", left=1)]
    tokenizer.decoder = decoders.Sequence(join)
    return str(tokenizer.to_str())


_BASES: dict[str, Callable[[], str]] = {
    "byte_level": _byte_level,
    "gpt_2": partial(_byte_level, _TWO_BREAKS),
    "cl100k": _cl100k,
    "legacy": partial(_sentencepiece, "legacy"),
    "metaspace": partial(_sentencepiece, "metaspace"),
}


def text_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """The ids of text in which nothing is a special token."""
    return tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
