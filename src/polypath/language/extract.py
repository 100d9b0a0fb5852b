"""A sub-model cut out: a smaller model of its own, with the same logits.

Source: ERNIE 5.0 Technical Report, arXiv 2602.04705, compact models.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.initialization import no_init_weights

from polypath.errors import InputError
from polypath.language.adopt import Native
from polypath.language.checkpoint import save_here
from polypath.language.config import RoutedLayers
from polypath.language.elastic import SubModel, experts_in
from polypath.language.families import Decoder, decoder_of
from polypath.language.hosting import adopt_layers, place
from polypath.routing import record

# How configurations call the number of experts, and of those that serve a token.
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")
_COUNT = ("num_experts_per_tok", "top_k_experts")


@torch.no_grad()
def extract(model: PreTrainedModel, part: SubModel) -> PreTrainedModel:
    """A new model of the part alone, which saves and loads as any other; the old one stays.

    Each routed layer that is left has to have as many experts as the others.
    Raises InputError where the part does not fit, layers would differ, or layers share a bank.
    """
    decoder = decoder_of(model)
    part.check(decoder)
    if not part.layers:
        raise InputError("extract: no layers; a model of its own has one at least")
    routed = {index: layer for index, layer in decoder.routed().items() if index in part.layers}
    if len({id(layer.experts) for layer in decoder.routed().values()}) < len(decoder.routed()):
        raise InputError("extract: layers share their experts, which no layer can be cut from")
    sizes = {len(part.experts.get(i, range(experts_in(layer)))) for i, layer in routed.items()}
    if len(sizes) > 1:
        raise InputError(f"extract: layers of {sorted(sizes)} experts; as many in each are needed")
    size = sizes.pop() if sizes else 0
    for index in part.experts:
        if getattr(decoder.routed()[index].router.selection, "groups", 1) > 1:
            raise InputError(f"extract: experts of layer {index} lie in groups, which stay whole")
    small = _blank(model, decoder, part, size)
    _copy(model, small, part)
    return small.train(model.training)


def _blank(model: PreTrainedModel, decoder: Decoder, part: SubModel, size: int) -> PreTrainedModel:
    """A model of the part's shape, its parameters not initialised."""
    routed = decoder.routed()
    origins = [decoder.host.origins.get(index) for index in part.layers]
    if any(o is None and i in routed for i, o in zip(part.layers, origins, strict=True)):
        raise InputError("extract: a function made a layer; nothing says how to make a smaller one")
    config = deepcopy(model.config)
    cut_config(config, part, size, native=any(isinstance(origin, Native) for origin in origins))
    with no_init_weights():
        small = type(model)._from_config(config, dtype=model.dtype)
    new = decoder_of(small)
    adopt_layers(new, [i for i, origin in enumerate(origins) if isinstance(origin, Native)])
    # Layers that were attached together have one description.
    for origin in {id(o): o for o in origins if isinstance(o, RoutedLayers)}.values():
        k = origin.k if part.k is None else part.k
        smaller = replace(origin, num_experts=size, k=min(k, size))
        place(new, smaller, [i for i, other in enumerate(origins) if other is origin])
    if any(
        origin is None for i, origin in enumerate(origins) if part.layers[i] in decoder.routed()
    ):
        raise InputError("extract: a function made a layer; nothing says how to make a smaller one")
    if new.routed():
        save_here(small)
    return small.to(model.device)


def cut_config(config: Any, part: SubModel, size: int, native: bool) -> None:
    """Change a configuration into that of the part."""
    config.num_hidden_layers = len(part.layers)
    if getattr(config, "layer_types", None):
        config.layer_types = [config.layer_types[index] for index in part.layers]
    if getattr(config, "mlp_only_layers", None):
        dense = set(config.mlp_only_layers)
        config.mlp_only_layers = [new for new, old in enumerate(part.layers) if old in dense]
    if getattr(config, "first_k_dense_replace", None):
        first = config.first_k_dense_replace
        config.first_k_dense_replace = sum(index < first for index in part.layers)
    if native:
        for name in _EXPERTS:
            if hasattr(config, name):
                setattr(config, name, size)
        for name in _COUNT:
            if hasattr(config, name):
                k = getattr(config, name) if part.k is None else part.k
                setattr(config, name, min(k, size))


def _copy(model: PreTrainedModel, small: PreTrainedModel, part: SubModel) -> None:
    """Give the new model the weights of the old one's layers and experts."""
    old = model.state_dict()
    prefix = next(n for n, m in model.named_modules() if m is decoder_of(model).layers)
    for name, target in small.state_dict().items():
        source, kept, index = name, None, -1
        if name.startswith(f"{prefix}."):
            number, _, rest = name.removeprefix(f"{prefix}.").partition(".")
            index = part.layers[int(number)]
            source, kept = f"{prefix}.{index}.{rest}", part.experts.get(index)
        total = experts_in(decoder_of(model).routed()[index]) if kept is not None else 0
        target.copy_(_rows(old[source], target, kept, total, name))


def _rows(old: Tensor, new: Tensor, kept: Sequence[int] | None, total: int, name: str) -> Tensor:
    """The old tensor, along the axis of its `total` experts only the kept ones."""
    for axis in range(old.dim()):
        if kept is not None and old.shape[axis] == total != new.shape[axis]:
            old = old.index_select(axis, torch.tensor(kept, device=old.device))
    if old.shape != new.shape:
        raise InputError(
            f"extract: {name} is {tuple(old.shape)}, and {tuple(new.shape)} with fewer experts: "
            "a router whose shape depends on their number cannot lose any"
        )
    return old


@torch.no_grad()
def most_used(
    model: PreTrainedModel,
    batches: Iterable[Tensor],
    layers: int | None = None,
    experts: int | None = None,
    k: int | None = None,
) -> SubModel:
    """The part that a text needs most: the layers that change most, the experts chosen most often.

    batches: token ids (B, L) to look at. layers, experts: how many to keep, None for all. A layer's
    change: one less the mean cosine of its input and output; the first and the last one are kept.
    Which ones the paper keeps is not known.
    """
    decoder = decoder_of(model)
    count = len(decoder.layers)
    changes = torch.zeros(count, dtype=torch.float64)

    def measure(index: int) -> Any:
        def hook(layer: Any, args: tuple, kwargs: dict, output: Tensor) -> None:
            given = args[0] if args else kwargs["hidden_states"]
            cosine = F.cosine_similarity(given.float(), output.float(), dim=-1)
            changes[index] += 1 - float(cosine.mean())

        return hook

    hooks = [
        layer.register_forward_hook(measure(index), with_kwargs=True)
        for index, layer in enumerate(decoder.layers)
    ]
    try:
        with record(model) as routes:
            for batch in batches:
                model(input_ids=batch.to(model.device), use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    loads = [routing.load() for routing in routes.joined().values()]
    changes[0] = changes[-1] = torch.inf
    kept = _highest(changes, count if layers is None else max(layers, 1))
    chosen = {}
    if experts is not None:
        pairs = zip(decoder.routed(), loads, strict=True)
        chosen = {index: _highest(load, experts) for index, load in pairs if index in kept}
    return SubModel(kept, chosen, k)


def _highest(values: Tensor, count: int) -> tuple[int, ...]:
    order = values.argsort(descending=True, stable=True)[:count]
    return tuple(sorted(order.tolist()))
