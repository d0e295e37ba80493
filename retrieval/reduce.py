"""A model with a smaller embedding: `wavcse reduce`, whose options and help are in `retrieval/arguments.py`.

The last step of a model, FC2, is an affine map of 512 numbers, and so is the projection on principal components. Both
together are one affine map, which takes FC2's place: the model is an ordinary one with a smaller `embedding_size`, and
whatever reads it gives the smaller vectors.

Shapes: `E` embedding size, `M` the smaller one, `C` classes of a task.
"""

from __future__ import annotations

from wavcse.retrieval.arguments import REDUCE, ReduceArguments

if __name__ == "__main__":
    REDUCE.answer()  # before the imports below, which take seconds

import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers.configuration_utils import PretrainedConfig

from wavcse.data.pca import PrincipalComponents, fit_pca
from wavcse.data.stored_embeddings import StoredEmbeddings
from wavcse.eval.encoder import SavedModel
from wavcse.hub_repository_wavcse import write_card
from wavcse.modeling_wavcse import WavCSEForMultiTask, WavCSEModel, WavCSEPreTrainedModel
from wavcse.settings.command import DONE

LEAST_VARIANCE = 1e-9  # of a component, as a share of the first one's; below it is rounding


def load_with_heads(model: SavedModel) -> WavCSEPreTrainedModel:
    """A saved model with its heads, if it has any."""
    with model.loading():
        fields, _ = PretrainedConfig.get_config_dict(model.path, revision=model.revision)
        has_heads = WavCSEForMultiTask.__name__ in (fields.get("architectures") or ())
        own_class = WavCSEForMultiTask if has_heads else WavCSEModel
        return own_class.from_pretrained(model.path, revision=model.revision).eval()


def fit_reduction(table: StoredEmbeddings, size: int) -> PrincipalComponents:
    """The first `size` principal components of a table.

    Raises:
        ValueError: `size` is not below the table's, or its embeddings vary in fewer directions.
    """
    if not size < table.embedding_size:
        raise ValueError(
            f"size is {size}; it must be below {table.embedding_size}, the size of the embeddings in {table.path}."
        )
    pca = fit_pca(table.blocks(), size)
    directions = int((pca.variances > LEAST_VARIANCE * pca.variances[0]).sum())
    if directions < size:
        raise ValueError(
            f"size is {size}, but the {len(table)} embeddings in {table.path} vary in {directions} directions only; give that "
            "size, or a table of more clips."
        )
    return pca


@torch.no_grad()
def reduce_model(model: WavCSEPreTrainedModel, pca: PrincipalComponents, whiten: bool = False) -> None:
    """Make a model's embeddings their M principal components, in place.

    Args:
        model: with E numbers per embedding.
        whiten: scale every component to the variance 1.

    Heads read what the components keep of an embedding: with all directions their logits stay, with fewer they change.
    """
    scales = np.sqrt(pca.variances) if whiten else np.ones(len(pca.variances))
    forth = torch.from_numpy(pca.components / scales[:, None])  # [M, E]
    back = torch.from_numpy(pca.components.T * scales)  # [E, M]
    mean = torch.from_numpy(pca.mean)
    base, size = model.base_model, len(scales)
    last = base.downstream.embedding_projection
    bias = forth @ (last.bias.double() - mean)
    base.downstream.embedding_projection = _linear(forth @ last.weight.double(), bias, like=last)
    for config in (model.config, base.config):
        config.embedding_size = size
    for name, head in model.heads.tasks.items() if isinstance(model, WavCSEForMultiTask) else ():
        weight = head.weight.double()
        model.heads.tasks[name] = _linear(weight @ back, head.bias.double() + weight @ mean, like=head)


def _linear(weight: torch.Tensor, bias: torch.Tensor, like: nn.Linear) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0]).to(like.weight)
    linear.weight.copy_(weight)
    linear.bias.copy_(bias)
    return linear.requires_grad_(like.weight.requires_grad)


def check_table_of(table: StoredEmbeddings, model: SavedModel, size: int) -> None:
    """ValueError unless a table holds whole embeddings as this model gives them."""
    about = table.metadata
    if about["weights_sha256"] != model.weights_sha256():
        raise ValueError(f"{table.path}: was made by another model than {model}; make a table with that one.")
    if about["normalize"] or about["embedding_size"] != size:
        raise ValueError(
            f"{table.path}: holds normalised or cut embeddings; components are fitted on whole ones: run `wavcse embed` "
            "without --normalize and --truncate_dim."
        )


@REDUCE.main
def main(args: ReduceArguments) -> int:
    """The command line."""
    table = StoredEmbeddings(args.table)
    where = SavedModel.parse(args.model or table.metadata.get("model", "."))
    model = load_with_heads(where)
    full = model.config.embedding_size
    check_table_of(table, where, full)
    pca = fit_reduction(table, args.size)
    kept = pca.variances.sum() / pca.total_variance
    reduce_model(model, pca, args.whiten)
    model.save_pretrained(args.out)
    scaled = ", each scaled to the variance 1" if args.whiten else ""
    words = (
        f"Embeddings are the first {args.size} principal components of {full} numbers{scaled}, fitted on {len(table)} clips, "
        f"where they hold {kept:.2%} of the variance (`wavcse reduce`)."
    )
    write_card(Path(args.out), model.config, sections={"Model details": words})
    print(f"{args.out}: {words}")
    return DONE


if __name__ == "__main__":
    sys.exit(main())
