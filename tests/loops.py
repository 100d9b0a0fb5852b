"""Small routed decoders, and a loop that trains them on one rank or on many."""

from collections.abc import Callable
from contextlib import nullcontext

import torch
import transformers
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn import functional as F

from polypath.experts import FeedForwardExperts
from polypath.experts.shared import SharedExpert
from polypath.language import RoutedLayers, attach
from polypath.routing import (
    LoadBalance,
    MoE,
    RouterZ,
    Routes,
    TopKRouter,
    given,
    losses,
    record,
    replay,
    update_biases,
    whole_batch,
)
from polypath.training import distribution

WORDS, LENGTH, ROWS = 13, 6, 5


class Block(nn.Module):
    """Mixing over time and a routed layer."""

    def __init__(self, dim: int, scorer: str) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.mix = nn.Linear(LENGTH, LENGTH)
        router = TopKRouter(
            dim, 4, 2, scorer, "softmax", [LoadBalance(0.1), RouterZ(0.05)], bias_rate=0.02
        )
        self.moe = MoE(router, FeedForwardExperts(4, dim, 16), SharedExpert(dim, 8))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.mix(x.mT).mT
        return x + self.moe(self.norm(x))


class Decoder(nn.Module):
    """Embedding, blocks and a head that is tied to the embedding."""

    def __init__(self, dim: int = 8) -> None:
        super().__init__()
        self.embed = nn.Embedding(WORDS, dim)
        self.blocks = nn.ModuleList(Block(dim, scorer) for scorer in ("linear", "cosine"))
        self.head = nn.Linear(dim, WORDS, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        x = self.embed(input_ids)
        with given(mask=attention_mask.flatten().bool()):
            for block in self.blocks:
                x = block(x)
        return self.head(x)


def blocks() -> nn.Module:
    return Decoder().double()


def hosted(routed: RoutedLayers, layers: list[int] | None = None) -> nn.Module:
    config = transformers.LlamaConfig(
        vocab_size=WORDS,
        hidden_size=8,
        intermediate_size=12,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        initializer_range=0.3,
    )
    return attach(transformers.LlamaForCausalLM(config), routed, layers)


def llama() -> nn.Module:
    losses = {"load_balance": 0.1, "router_z": 0.05}
    return hosted(RoutedLayers(num_experts=5, k=2, bias_rate=0.02, losses=losses), [0, 2])


def recurrent() -> nn.Module:
    """Routers whose layers share a cell, and whose state goes past the layers' outputs."""
    losses = {"load_balance": 0.1}
    return hosted(RoutedLayers("recurrent", num_experts=5, losses=losses, options={"state": 5}))


def reuse() -> nn.Module:
    """Layers that share their experts, of which few may be chosen at first."""
    losses, options = {"load_balance": 0.1}, {"group": 2, "start": 0, "end": 8}
    return hosted(RoutedLayers("reuse", num_experts=3, losses=losses, options=options))


def attention() -> nn.Module:
    """Routers that are told the attention before them, padding and all."""
    losses, options = {"load_balance": 0.1}, {"sigma": 2.0}
    return hosted(RoutedLayers("attention", num_experts=5, losses=losses, options=options))


def coupled() -> nn.Module:
    """Routers whose rows are tied to their experts, wherever these lie."""
    losses = {"load_balance": 0.1, "coupling": {"weight": 0.5, "alpha": 0.8}, "orthogonality": 0.1}
    return hosted(RoutedLayers(num_experts=5, losses=losses))


MODELS: dict[str, Callable[[], nn.Module]] = {
    "blocks": blocks,
    "llama": llama,
    "recurrent": recurrent,
    "reuse": reuse,
    "attention": attention,
    "coupled": coupled,
}


def batch(step: int) -> tuple[Tensor, Tensor]:
    """Tokens (ROWS, LENGTH + 1) of the global batch of a step, and which are not padding."""
    random = torch.Generator().manual_seed(step)
    tokens = torch.randint(0, WORDS, (ROWS, LENGTH + 1), generator=random)
    ends = torch.randint(2, LENGTH + 2, (ROWS, 1), generator=random)
    return tokens, torch.arange(LENGTH + 1) < ends


class Training:
    """A loop as a user would write it, over micro-batches; `first` keeps the first gradients."""

    def __init__(self, model: str, shard_experts: bool = False, parts: int = 1) -> None:
        torch.manual_seed(distribution.rank())  # rank 0's weights become everybody's
        self.model = distribution.parallelise(MODELS[model](), shard_experts)
        # An eps above the rounding of gradients, which Adam would make as large as a gradient.
        values = {"lr": 0.02, "weight_decay": 0.1, "eps": 1e-5}
        self.optimizer = torch.optim.AdamW(self.model.parameters(), **values)
        self.parts = parts
        self.first: dict[str, Tensor] = {}

    def rows(self, step: int) -> list[tuple[Tensor, Tensor]]:
        """This rank's micro-batches."""
        own = torch.arange(ROWS).chunk(distribution.world())[distribution.rank()]
        tokens, real = (t[own].chunk(self.parts) for t in batch(step))
        return list(zip(tokens, real, strict=True))

    def nats(self, tokens: Tensor, real: Tensor) -> Tensor:
        """The summed cross-entropy of targets that are not padding."""
        out = self.model(input_ids=tokens[:, :-1], attention_mask=real[:, :-1].long())
        logits = out if isinstance(out, Tensor) else out.logits
        return F.cross_entropy(logits[real[:, 1:]], tokens[:, 1:][real[:, 1:]], reduction="sum")

    def backward(self, step: int) -> Tensor:
        """Gradients of the step's batch; this rank's share of its loss."""
        targets = batch(step)[1][:, 1:].sum()
        parts = self.rows(step)
        passes = [lambda part=part: self.nats(*part) for part in parts]
        share = torch.zeros(())
        whole = whole_batch(self.model, passes) if len(parts) > 1 else nullcontext()
        with given(step=step), whole:
            for run in passes:
                loss = run() / targets + sum(losses(self.model).values())
                loss.backward()
                share = share + loss.detach()
        return share

    def run(self, start: int, end: int) -> list[tuple[float, float]]:
        """Train; the loss of the global batch and the norm of its gradient, for each step."""
        history = []
        for step in range(start, end):
            share = self.backward(step)
            if step == 0:
                self.first = whole_gradients(self.model)
            norm = distribution.clip_grad_norm(self.model, 0.5)
            self.optimizer.step()
            self.optimizer.zero_grad()
            update_biases(self.model)
            history.append((float(distribution.summed(share)), float(norm)))
        return history

    @property
    def state(self) -> dict[str, Tensor]:
        return distribution.full_state(self.model, self.optimizer)

    def load(self, state: dict[str, Tensor]) -> None:
        distribution.load_full_state(self.model, self.optimizer, state)

    def routes(self) -> Routes:
        """Where the first batch goes; it goes there again in a replay."""
        with torch.no_grad(), given(step=0), record(self.model) as routes:
            nats = [self.nats(*part) for part in self.rows(0)]
        with torch.no_grad(), given(step=0), replay(self.model, routes):
            assert nats == [self.nats(*part) for part in self.rows(0)]
        return routes


def whole_gradients(model: nn.Module) -> dict[str, Tensor]:
    """Gradients by the first names of parameters; zero where there is none."""
    found, seen = {}, set()
    for name, parameter in model.state_dict(keep_vars=True).items():
        if parameter.requires_grad and id(parameter) not in seen:
            seen.add(id(parameter))
            grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            found[name] = (grad.full_tensor() if isinstance(grad, DTensor) else grad).clone()
    return found
