"""Linear forms between named channels, written into the weights of a reasoner.

A form is {channel: factor}; the channel "1" is the constant. A row that is written is written in
full, so what is left as it was cannot be heard by it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from polypath.errors import InputError
from polypath.graphs.compilation.processor import SLOPE, GATv2Layer
from polypath.graphs.compilation.reasoner import EDGES, Reasoner

Form = Mapping[str, float]
CONSTANT = "1"


class Wiring:
    """Writes into `reasoner`.

    stages: [layer][ReLU] names of channels; where heads gather into a stage, one list for each
    head, as a head has a part of the rows for itself.
    Raises InputError where the reasoner is too narrow, or differs in its numbers of layers.
    """

    def __init__(
        self, reasoner: Reasoner, stages: Sequence[Sequence[Sequence[Sequence[str]]]]
    ) -> None:
        config = reasoner.config
        self.reasoner = reasoner
        width = config.hidden // config.heads
        most = max(len(own) for layer in stages for stage in layer for own in stage)
        least = max(most * config.heads, len(config.features), len(EDGES))
        if config.hidden < least:
            raise InputError(
                f"compiled {config.algorithm}: hidden={config.hidden}; {least} channels are needed"
            )
        self.stages = [
            [
                {
                    name: head * width + row
                    for head, own in enumerate(stage)
                    for row, name in enumerate(own)
                }
                for stage in layer
            ]
            for layer in stages
        ]
        self._encoders()

    def attend(
        self, layer: int, head: int, other: Form, own: Form | None = None, edge: Form | None = None
    ) -> None:
        """Logits of a head: a form of sender, receiver and edge, which passes LeakyReLU exactly.

        As two channels, x and -x: LeakyReLU(x) - LeakyReLU(-x) = (1 + slope) x.
        """
        module, inputs = self._layer(layer), self._inputs(layer)
        first = head * module.score.shape[1]
        for row, sign in ((first, 1.0), (first + 1, -1.0)):
            _write(module.sender, row, other, inputs, sign)
            _write(module.receiver, row, own or {}, inputs, sign)
            _write(module.edge, row, edge or {}, _edges(), sign)
        with torch.no_grad():
            module.score[head] = 0
            module.score[head, 0], module.score[head, 1] = 1 / (1 + SLOPE), -1 / (1 + SLOPE)

    def channel(
        self,
        layer: int,
        name: str,
        own: Form | None = None,
        gathered: Form | None = None,
        edges: Form | None = None,
    ) -> None:
        """A channel behind attention: ReLU of forms of the node itself and of what is gathered."""
        module, inputs = self._layer(layer), self._inputs(layer)
        row = self.stages[layer][0][name]
        _write(module.skip, row, own or {}, inputs)
        _write(module.value, row, gathered or {}, inputs)
        if module.edge_value is not None:
            _write(module.edge_value, row, edges or {}, _edges())

    def local(self, layer: int, stage: int, name: str, form: Form) -> None:
        """A channel of a later ReLU: a form of the channels of the one before."""
        linear = cast(nn.Linear, self._layer(layer).local[stage - 1])
        rows, columns = self.stages[layer][stage], self.stages[layer][stage - 1]
        _write(linear, rows[name], form, columns)

    def carry(self, layer: int, stage: int, *names: str) -> None:
        """Channels that go through a later ReLU as they are; none is negative."""
        for name in names:
            self.local(layer, stage, name, {name: 1.0})

    def tell(self, hint: str, *forms: Form) -> None:
        """Decode a hint of nodes: a form for each number that it has."""
        first = self.reasoner.config.told[hint].start
        for place, form in enumerate(forms):
            _write(self.reasoner.hints, first + place, form, self._known())

    def point(self, place: Form, sharpness: float, away: float) -> None:
        """Decode pointers to the node whose position is `place`: highest p_j - 2 max(place, p_j).

        -2 max(place, p_j) is one channel of the decoder; max(-away, p_j) = p_j is another.
        """
        for pointers in (self.reasoner.pointers, self.reasoner.output):
            for row, form in enumerate((place, {CONSTANT: -away})):
                _write(pointers.own, row, form, self._known())
                _write(pointers.other, row, {"position": 1.0}, self._known())
                _write(pointers.edge, row, {}, _edges())
            with torch.no_grad():
                weight = pointers.score.weight
                weight.zero_()
                weight[0, 0], weight[0, 1] = -2 * sharpness, sharpness

    def _encoders(self) -> None:
        """Every feature in the channel of its number."""
        names = self.reasoner.config.features
        features = {name: column for column, name in enumerate(names)}
        for name, row in features.items():
            _write(self.reasoner.nodes, row, {name: 1.0}, features)
        for name, row in _edges().items():
            _write(self.reasoner.edges, row, {name: 1.0}, _edges())

    def _layer(self, layer: int) -> GATv2Layer:
        return cast(GATv2Layer, self.reasoner.layers[layer])

    def _features(self) -> dict[str, int]:
        return {name: column for column, name in enumerate(self.reasoner.config.features)}

    def _inputs(self, layer: int) -> dict[str, int]:
        """Columns of z: features, then channels of the layer before, in the last step for 0."""
        before = self.stages[layer - 1][-1]
        offset = self.reasoner.config.hidden
        return self._features() | {name: offset + row for name, row in before.items()}

    def _known(self) -> dict[str, int]:
        """Columns of what is decoded: features and new channels."""
        offset = 2 * self.reasoner.config.hidden
        after = self.stages[-1][-1]
        return self._features() | {name: offset + row for name, row in after.items()}


def _edges() -> dict[str, int]:
    return {name: column for column, name in enumerate(EDGES)}


def _write(
    linear: nn.Linear, row: int, form: Form, columns: Mapping[str, int], sign: float = 1.0
) -> None:
    with torch.no_grad():
        weight: Tensor = linear.weight[row]
        weight.zero_()
        if linear.bias is not None:
            linear.bias[row] = sign * form.get(CONSTANT, 0.0)
        for name, factor in form.items():
            if name != CONSTANT:
                weight[columns[name]] = sign * factor
