"""Images to classify: where they come from, and what is measured of a classifier."""

import gzip
import struct
from pathlib import Path

import pytest
import torch

from polypath.errors import InputError
from polypath.language import RoutedLayers
from polypath.recipes.images import (
    HIDDEN,
    LAYERS,
    WIDTH,
    Classifier,
    Images,
    advance,
    digits,
    idle,
    idx,
    length,
    measured,
)
from polypath.routing import record, routed_layers


def write(folder: Path, images: bytes, labels: bytes, size: tuple[int, int, int]) -> None:
    head = struct.pack(">4B3I", 0, 0, 8, 3, *size)
    (folder / "a-images-idx3-ubyte.gz").write_bytes(gzip.compress(head + images))
    head = struct.pack(">4BI", 0, 0, 8, 1, len(labels))
    (folder / "a-labels-idx1-ubyte.gz").write_bytes(gzip.compress(head + labels))


def test_idx_files_are_read_as_they_lie(tmp_path: Path) -> None:
    write(tmp_path, bytes(range(60)), bytes([0, 1, 2] * 3 + [1]), (10, 2, 3))
    data, test = idx(tmp_path)
    assert data.x.shape == (9, 6) and test.x.shape == (1, 6) and data.classes == 3
    assert (255 * test.x[0]).round().tolist() == [54, 55, 56, 57, 58, 59]
    assert data.y.tolist() == [0, 1, 2] * 3 and test.y.tolist() == [1]


def test_what_is_no_image_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"0 files like \*images"):
        idx(tmp_path)
    write(tmp_path, bytes(59), bytes(10), (10, 2, 3))
    with pytest.raises(InputError, match="not an IDX file of bytes with 3 axes"):
        idx(tmp_path)
    (tmp_path / "a-images-idx3-ubyte.gz").write_bytes(b"no")
    with pytest.raises(InputError, match="not gzip"):
        idx(tmp_path)
    write(tmp_path, bytes(60), bytes(9), (10, 2, 3))
    with pytest.raises(InputError, match="10 images and 9 labels"):
        idx(tmp_path)


def test_mnist_is_read(data_dir: Path) -> None:
    train, test = idx(data_dir / "mnist10k")
    assert len(train.y) == 9000 and len(test.y) == 1000 and train.x.shape[1] == 784
    assert train.classes == 10 and float(train.x.max()) == 1


def test_a_seed_is_a_split_of_the_digits() -> None:
    (train, test), (again, _), (other, _) = digits(1), digits(1), digits(2)
    assert len(train.y) == 1437 and len(test.y) == 360
    assert torch.equal(train.x, again.x) and not torch.equal(train.x, other.x)
    together = torch.cat([train.x, test.x]).sum(0)
    torch.testing.assert_close(together, torch.cat([other.x, digits(2)[1].x]).sum(0))


def few() -> Images:
    torch.manual_seed(0)
    return Images(torch.rand(40, 6), torch.randint(3, (40,)), 3)


def test_what_an_image_meets_is_counted() -> None:
    data = few()
    model = Classifier(6, 3, RoutedLayers(num_experts=5, k=2, kind="gelu", losses={})).double()
    data = Images(data.x.double(), data.y, 3)
    facts = measured(model, data, data)
    expert = 2 * WIDTH * HIDDEN
    assert facts["parameters"] - facts["active"] == LAYERS * 3 * expert
    assert facts["counts"] == [[0, 0, 40, 0, 0, 0]] * LAYERS
    assert facts["follows"] == [None] * LAYERS
    with record(model) as routes:
        model(data.x)
    assert idle(routed_layers(model), routes.joined()) == pytest.approx(LAYERS * 3 * expert)
    dead = [int((routing.load() == 0).sum()) for routing in routes.joined().values()]
    assert facts["dead"] == dead


def test_dense_layers_of_as_many_parameters_are_as_wide() -> None:
    routed = Classifier(6, 3, RoutedLayers(num_experts=5, kind="gelu", losses={}))
    rows = LAYERS * 5 * WIDTH
    dense = Classifier(6, 3, 5 * HIDDEN)
    size = [sum(p.numel() for p in model.parameters()) for model in (routed, dense)]
    assert size[0] == size[1] + rows
    assert "counts" not in measured(dense, few(), few())


def test_gradients_of_a_step_are_measured_together() -> None:
    data, model = few(), Classifier(6, 3, 8)
    loss = advance(model, data.x, data.y, 0)
    assert loss == pytest.approx(
        float(torch.nn.functional.cross_entropy(model(data.x), data.y).detach()), rel=1e-5
    )
    every = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    assert length(model) == pytest.approx(float(every.norm()), rel=1e-5)
