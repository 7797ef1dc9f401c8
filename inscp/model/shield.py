"""Source-shielded updates: the weights that matter most for the source language are frozen while another is learned.

Yamaguchi et al. 2025 (arXiv 2512.04844). Before the first step the original model reads a little source text. The
importance of weight i, j of a matrix W [out, in] is |W_ij| x ||X_j||, where X_j are the inputs of column j at every
token (Wanda, Sun et al. 2023, arXiv 2306.11695); that of a column is the sum over its weights. The most important
columns of each matrix are frozen. Embeddings, output layer, norms and biases are trained as usual, as are experts that
are not an `nn.Linear`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
import torch.distributed as dist
from torch import nn
from transformers import PreTrainedModel

from inscp.data.cache import CachedRows
from inscp.data.pipeline import PackedRows, Pipeline, Sources, as_sources
from inscp.data.sampling import MicroBatch
from inscp.data.sources import Source
from inscp.data.tagging import ConversationTagger, Tagger
from inscp.errors import UserError, require_some
from inscp.model.frozen import FrozenParts
from inscp.model.loss import NextTokenLoss
from inscp.model.sharded import full_tensor, local_tensor


@dataclass(frozen=True)
class Shield:
    """Source-shielded updates: freeze the columns of every linear layer that matter most for the source language.

    Args:
        sources: text of the source language, as in `data.train`: English conversations, say.
        share: fraction of the columns of every linear layer to freeze, in (0, 1); the output layer, and experts that
            are not an `nn.Linear`, are trained as usual.
        tagger: how the text is presented; by default as conversations (ConversationTagger).
        records: maximum number of records per source, from the beginning.
    """

    sources: Sources
    share: float = 0.5
    tagger: Tagger | None = None
    records: int = 500

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise UserError("model.shield.share", f"it must be between 0 and 1, but is {self.share}", "Give 0.5, say.")
        require_some(self.records, "model.shield.records", "records")

    def read(self, make: Callable[[list[Source], Tagger], Pipeline]) -> CachedRows:
        """The source text in packed rows, from the pipeline that `make` builds for sources and a tagger."""
        sources = [
            replace(s, limit=min(s.limit or self.records, self.records), weight=1.0) for s in as_sources(self.sources)
        ]
        return make(sources, self.tagger or ConversationTagger()).rows()


class FrozenColumns(FrozenParts):
    """Freezes columns of a model's matrices.

    Args:
        model: the language model, whole or sharded along the rows of its matrices.
        weights: its fp32 weights by name.

    Attributes:
        weights: the matrices by name.
        tensors: which of their columns are frozen, bool [in]; none at first.
    """

    def __init__(self, model: PreTrainedModel, weights: Mapping[str, nn.Parameter]) -> None:
        head = model.get_output_embeddings()
        self._modules = {
            f"{name}.weight": module
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear) and module is not head and f"{name}.weight" in weights
        }
        if not self._modules:
            fix = "Remove it, or use a model with such matrices."
            raise UserError("model.shield", "the model has no nn.Linear whose columns could be frozen", fix)
        matrices = {name: weights[name] for name in self._modules}
        self.tensors = {
            name: torch.zeros(weight.shape[1], dtype=torch.bool, device=local_tensor(weight).device)
            for name, weight in matrices.items()
        }
        super().__init__(matrices, self.tensors)

    @torch.no_grad()
    def choose(self, share: float, root: NextTokenLoss, rows: CachedRows, device: torch.device) -> None:
        """Freeze the columns that matter most, the same on every rank.

        Args:
            share: fraction of the columns of every matrix.
            root: the model to train, still with its original weights.
            rows: the source text; every rank reads all of it.
            device: device on which the model computes.
        """
        norms = self._input_norms(root, rows, device)
        for name, weight in self.weights.items():
            sums = weight.detach().abs().sum(0)
            scores = norms[name] * full_tensor(sums).to(device)
            if dist.is_initialized():
                dist.broadcast(scores, 0)
            highest = scores.argsort(descending=True, stable=True)[: round(share * len(scores))]
            self.tensors[name].zero_()[highest.to(self.tensors[name].device)] = True

    def _input_norms(self, root: NextTokenLoss, rows: CachedRows, device: torch.device) -> dict[str, torch.Tensor]:
        """The Euclidean norm of each input of every matrix over all tokens: fp32 [in]."""
        squares = {name: torch.zeros(len(columns), device=device) for name, columns in self.tensors.items()}
        n_tokens = 0

        def hook_for(name: str) -> Callable[[nn.Module, tuple[torch.Tensor, ...]], None]:
            def add_squares(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
                squares[name] += inputs[0].flatten(0, -2)[:n_tokens].float().square().sum(0)  # without the padding

            return add_squares

        hooks = [module.register_forward_pre_hook(hook_for(name)) for name, module in self._modules.items()]
        root.eval()
        text = PackedRows(rows)
        with torch.compiler.set_stance("force_eager"):  # compiled blocks would not call the hooks
            for row in range(len(rows.n_tokens)):
                n_tokens = int(rows.n_tokens[row])
                root(text[MicroBatch((row,), 1, n_tokens)].to(device))
        root.train()
        for hook in hooks:
            hook.remove()
        return {name: total.sqrt() for name, total in squares.items()}
