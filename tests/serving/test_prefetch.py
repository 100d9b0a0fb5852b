import gc
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import dispatches
from polypath.errors import InputError
from polypath.experts import ClampedSwiGLU, FeedForwardExperts
from polypath.experts.activations import ACTIVATIONS
from polypath.routing import HashRouter, MoE, Routing, RoutingContext
from polypath.routing import given as context
from polypath.serving import DiskExperts, ExpertStore, replay, save_experts
from polypath.serving import prefetch as module

LAYERS, EXPERTS, DIM, HIDDEN = 3, 6, 8, 12


@pytest.fixture(autouse=True)
def no_thread_is_left() -> None:
    before = threading.active_count()
    yield
    assert threading.active_count() == before


def banks(layers: int = LAYERS, **options) -> list[FeedForwardExperts]:
    made = [FeedForwardExperts(EXPERTS, DIM, HIDDEN, **options) for _ in range(layers)]
    for bank in made:
        dispatches.stirred(bank).requires_grad_(False)
    return made


def one_each(experts: Sequence[int]) -> Routing:
    """Read-ME's routing: one expert for each token, with weight one."""
    chosen = torch.tensor(experts, dtype=torch.int64)[:, None]
    return Routing(torch.zeros(len(experts), EXPERTS), chosen, (chosen >= 0).float())


def through(layers: Sequence[nn.Module], x: Tensor, routing: Routing) -> Tensor:
    for layer in layers:
        x = x + layer(x, routing)
    return x


@st.composite
def passes(draw: st.DrawFn) -> list[list[int]]:
    """The experts of the tokens of some passes, -1 among them, perhaps of no token at all."""
    return draw(st.lists(st.lists(st.integers(-1, EXPERTS - 1), max_size=9), max_size=8))


@given(
    passes(),
    st.integers(1, EXPERTS),
    st.sampled_from(["belady", "lru", "fifo", "random"]),
    st.booleans(),
    st.integers(0, 2),
    st.integers(0, 3),
)
def test_results_are_those_of_the_bank_in_memory(
    tmp_path_factory,
    work: list[list[int]],
    capacity: int,
    policy: str,
    prefetch: bool,
    spare: int,
    ahead: int,
) -> None:
    """Announced so many passes ahead, or not at all."""
    folder = tmp_path_factory.mktemp("experts")
    stored = banks()
    save_experts(folder, stored)
    with ExpertStore(folder, capacity, policy, prefetch, spare) as store:
        announced = 0
        for number, experts in enumerate(work):
            while ahead and announced < min(number + ahead, len(work)):
                store.announce(torch.tensor(work[announced], dtype=torch.int64))
                announced += 1
            x, routing = torch.randn(len(experts), DIM), one_each(experts)
            found, truth = through(store.banks(), x, routing), through(stored, x, routing)
            torch.testing.assert_close(found, truth, rtol=1e-6, atol=1e-6)
        unique = [sorted(set(experts) - {-1}) for experts in work]
        assert store.hits + store.misses == LAYERS * sum(map(len, unique))


@given(dispatches.shapes(list(ACTIVATIONS)), st.integers(1, 5), st.booleans())
def test_any_bank_and_any_routing(
    tmp_path_factory, shape: dispatches.Shape, capacity: int, prefetch: bool
) -> None:
    folder = tmp_path_factory.mktemp("experts")
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-12), (torch.bfloat16, 3e-2)):
        bank, routing = shape.bank(dtype), shape.routing(dtype)
        save_experts(folder, [bank])
        x = torch.randn(shape.things, shape.dim, dtype=dtype)
        with ExpertStore(folder, capacity, prefetch=prefetch) as store, torch.no_grad():
            (own,) = store.banks()
            truth = {"y": bank(x, routing)}
            dispatches.assert_equal_results({"y": own(x, routing)}, truth, tolerance)


def test_it_is_the_bank_of_a_routed_layer(tmp_path: Path) -> None:
    stored = banks()
    save_experts(tmp_path, stored)
    router = HashRouter(EXPERTS)
    x, tokens = torch.randn(2, 7, DIM), torch.randint(50, (14,))
    with ExpertStore(tmp_path, capacity=2) as store, context(tokens=tokens):
        experts = router(x.view(-1, DIM), RoutingContext(tokens=tokens)).experts
        store.announce(experts)
        for bank, own in zip(stored, store.banks(), strict=True):
            y = MoE(router, own)(x)
            torch.testing.assert_close(y, MoE(router, bank)(x), rtol=1e-6, atol=1e-6)
            assert not list(own.parameters())


def test_with_room_for_all_every_expert_is_read_once_and_results_are_the_same_bits(
    tmp_path: Path,
) -> None:
    stored = banks()
    save_experts(tmp_path, stored)
    with ExpertStore(tmp_path, capacity=EXPERTS) as store:
        for _ in range(4):
            experts = torch.randint(EXPERTS, (40,)).tolist()
            store.announce(experts)
            x, routing = torch.randn(40, DIM), one_each(experts)
            assert through(store.banks(), x, routing).equal(through(stored, x, routing))
        assert store.misses == LAYERS * EXPERTS


def test_hits_do_not_depend_on_when_things_are_loaded(tmp_path: Path) -> None:
    """One token a pass: each layer's cache is a replay of the experts, whatever is announced."""
    save_experts(tmp_path, banks())
    experts = torch.randint(EXPERTS, (60,)).tolist()
    for policy in ("lru", "fifo", "random", "belady"):
        for prefetch, ahead in ((True, 1), (True, 5), (False, 1)):
            horizon = 10
            expected = replay(experts, 3, policy, horizon).hits
            with ExpertStore(tmp_path, 3, policy, prefetch) as store:
                announced = 0
                for number, expert in enumerate(experts):
                    while announced < min(number + ahead, len(experts)):
                        later = experts[announced + 1 : announced + 1 + horizon]
                        store.announce([experts[announced]], later)
                        announced += 1
                    through(store.banks(), torch.randn(1, DIM), one_each([expert]))
                assert store.hits == LAYERS * expected


def test_a_deeper_model_leaves_no_layers_behind(tmp_path: Path) -> None:
    for layers in (3, 2):
        save_experts(tmp_path, banks(layers))
        with ExpertStore(tmp_path, 1) as store:
            assert len(store.banks()) == layers == len(list(tmp_path.iterdir()))


def test_bytes_are_those_of_the_bank(tmp_path: Path) -> None:
    for bias in (False, True):
        (bank,) = banks(1, kind="gelu", bias=bias, transposed=True)
        save_experts(tmp_path, [bank])
        found = load_file(tmp_path / "layer-000.safetensors")
        w_in, b_in, w_out, b_out = bank.weights()
        assert len(found) == EXPERTS * (4 if bias else 2)
        for expert in range(EXPERTS):
            assert found[f"{expert}.inner"].equal(w_in[expert])
            assert found[f"{expert}.outer"].equal(w_out[expert])
            if bias:
                assert found[f"{expert}.inner_bias"].equal(b_in[expert])
                assert found[f"{expert}.outer_bias"].equal(b_out[expert])


class Reads:
    """The thread of every `_Layer.read` that is over, in order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.threads: list[str] = []
        read = module._Layer.read

        def watched(layer, load, page_cache) -> None:
            read(layer, load, page_cache)
            self.threads.append(threading.current_thread().name)

        monkeypatch.setattr(module._Layer, "read", watched)

    def until(self, count: int) -> None:
        """Wait for so many, and a little for more, which there must not be."""
        for _ in range(500):
            if len(self.threads) >= count:
                break
            time.sleep(0.01)
        time.sleep(0.02)
        assert len(self.threads) == count


def test_what_is_announced_is_loaded_before_it_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_experts(tmp_path, banks())
    reads = Reads(monkeypatch)
    x = torch.randn(2, DIM)
    with ExpertStore(tmp_path, capacity=2) as store:
        store.announce([0, 3])
        reads.until(2 * LAYERS)
        through(store.banks(), x, one_each([0, 3]))
        reads.until(2 * LAYERS)
        through(store.banks(), x, one_each([1, 2]))  # not announced
        reads.until(4 * LAYERS)
        assert set(reads.threads) == {"loads experts"}
        assert store.waited > 0


def test_on_demand_the_caller_loads_what_it_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_experts(tmp_path, banks())
    reads = Reads(monkeypatch)
    x = torch.randn(2, DIM)
    with ExpertStore(tmp_path, capacity=2, prefetch=False) as store:
        store.announce([0, 3])
        assert not reads.threads
        for layer, own in enumerate(store.banks()):
            own(x, one_each([0, 3]))
            assert reads.threads == ["MainThread"] * 2 * (layer + 1)


def test_nothing_is_overwritten_while_it_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second pass takes the slots of the first; its loads wait for each layer in turn."""
    stored = banks()
    save_experts(tmp_path, stored)
    reads = Reads(monkeypatch)
    x = torch.randn(2, DIM)
    with ExpertStore(tmp_path, capacity=2, spare=0) as store:
        store.announce([0, 1])
        store.announce([2, 3])
        for layer, (own, bank) in enumerate(zip(store.banks(), stored, strict=True)):
            reads.until(2 * LAYERS + 2 * layer)
            y = own(x, one_each([1, 0]))
            torch.testing.assert_close(y, bank(x, one_each([1, 0])), rtol=1e-6, atol=1e-6)
        routing = one_each([3, 2])
        torch.testing.assert_close(through(store.banks(), x, routing), through(stored, x, routing))


@pytest.mark.parametrize("prefetch", [True, False])
def test_what_goes_wrong_in_the_thread_is_told_to_the_caller(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prefetch: bool
) -> None:
    save_experts(tmp_path, banks())

    def broken(layer, load, page_cache) -> None:
        raise OSError("the disk is on fire")

    monkeypatch.setattr(module._Layer, "read", broken)
    with ExpertStore(tmp_path, 2, prefetch=prefetch) as store:
        store.announce([0, 1])
        for _ in range(2):
            with pytest.raises(InputError, match=r"^experts cannot be read: the disk is on fire$"):
                store.banks()[0](torch.randn(1, DIM), one_each([0]))
        with pytest.raises(InputError, match=r"on fire"):
            store.announce([2])


def test_a_file_that_shrinks_is_told(tmp_path: Path) -> None:
    save_experts(tmp_path, banks())
    with ExpertStore(tmp_path, 2) as store:
        with (tmp_path / "layer-001.safetensors").open("rb+") as file:
            file.truncate(2000)
        store.announce([EXPERTS - 1])
        with pytest.raises(InputError, match=r"layer-001.safetensors ends within expert 5"):
            through(store.banks(), torch.randn(1, DIM), one_each([EXPERTS - 1]))


def test_closing_ends_the_thread_and_is_told(tmp_path: Path) -> None:
    save_experts(tmp_path, banks())
    store = ExpertStore(tmp_path, 2)
    store.announce([0, 1])
    store.announce([2, 3])  # the thread waits for slots
    bank = store.banks()[0]
    store.close()
    store.close()
    with pytest.raises(InputError, match=r"closed; open it anew"):
        bank(torch.randn(1, DIM), one_each([0]))
    with pytest.raises(InputError, match=r"closed"):
        store.announce([0])
    forgotten = ExpertStore(tmp_path, 2)
    assert threading.active_count() > 1
    del forgotten
    gc.collect()  # the fixture sees that the thread is gone


def test_another_order_than_announced_is_told_and_can_be_mended(tmp_path: Path) -> None:
    stored = banks()
    save_experts(tmp_path, stored)
    x = torch.randn(2, DIM)
    with ExpertStore(tmp_path, 2) as store:
        store.announce([0, 1])
        store.announce([4, 5])
        store.banks()[0](x, one_each([0, 0]))  # fewer than announced is fine
        with pytest.raises(InputError, match=r"layer 1 needs experts \[2\], and \[0, 1\] were"):
            store.banks()[1](x, one_each([2, 2]))
        store.withdraw()
        routing = one_each([2, 4])
        torch.testing.assert_close(through(store.banks(), x, routing), through(stored, x, routing))


def test_an_error_inside_a_layer_leaves_the_store_usable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = banks()
    save_experts(tmp_path, stored)
    x = torch.randn(3, DIM)
    with ExpertStore(tmp_path, 2) as store:
        with monkeypatch.context() as broken:
            broken.setattr(module, "dispatch", lambda *given: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                store.banks()[0](x, one_each([0, 1, 2]))
        for experts in ([3, 4, 5], [0, 1, 2]):
            routing = one_each(experts)
            found = through(store.banks(), x, routing)
            torch.testing.assert_close(found, through(stored, x, routing))


def test_pages_may_be_dropped(tmp_path: Path) -> None:
    stored = banks()
    save_experts(tmp_path, stored)
    x, routing = torch.randn(5, DIM), one_each([0, 1, 2, 3, 4])
    with ExpertStore(tmp_path, 2, page_cache=False) as store:
        torch.testing.assert_close(through(store.banks(), x, routing), through(stored, x, routing))


def test_autocast_computes_in_half_precision_as_in_memory(tmp_path: Path) -> None:
    stored = banks()
    save_experts(tmp_path, stored)
    x, routing = torch.randn(5, DIM), one_each([0, 1, 2, 3, 4])
    with ExpertStore(tmp_path, 5) as store, torch.autocast("cpu", torch.bfloat16):
        found, truth = through(store.banks(), x, routing), through(stored, x, routing)
        torch.testing.assert_close(found, truth, rtol=2e-2, atol=2e-2)


def test_bad_calls_are_refused(tmp_path: Path) -> None:
    save_experts(tmp_path, banks())
    x, routing = torch.randn(2, DIM), one_each([0, 1])
    with ExpertStore(tmp_path, 2) as store:
        bank = DiskExperts(store, 0)
        with pytest.raises(InputError, match=r"width 9 for experts on disk, 6 of width 8"):
            bank(torch.randn(2, 9), routing)
        with pytest.raises(InputError, match=r"a routing over 4 experts"):
            bank(x, replace(routing, scores=torch.zeros(2, 4)))
        with pytest.raises(InputError, match=r"float64 on cpu for .*, in torch.float32"):
            bank(x.double(), routing)
        with pytest.raises(InputError, match=r"no gradients"):
            bank(x.requires_grad_(), routing)
        with torch.no_grad():
            bank(x, routing)
        with pytest.raises(InputError, match=r"expert 6 of 6"):
            store.announce([6])
        with pytest.raises(InputError, match=r"expert -2 of 6"):
            store.announce([0], later=[-2])
        assert "layer 0, 6 × 8, on disk" in repr(bank)


def test_bad_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no layers"):
        ExpertStore(tmp_path / "nowhere", 2)
    with pytest.raises(InputError, match=r"one of swiglu, geglu"):
        save_experts(tmp_path, banks(1, kind=ClampedSwiGLU()))
    stored = banks(2)
    save_experts(tmp_path, stored)
    with pytest.raises(InputError, match=r"capacity=0"):
        ExpertStore(tmp_path, 0)
    with pytest.raises(InputError, match=r"spare=-1"):
        ExpertStore(tmp_path, 1, spare=-1)
    with pytest.raises(InputError, match=r"unknown cache policy"):
        ExpertStore(tmp_path, 1, "mru")
    save_experts(tmp_path, [stored[0], stored[1].double()])
    with pytest.raises(InputError, match=r"the same experts, width and dtype"):
        ExpertStore(tmp_path, 2)
    path = tmp_path / "layer-001.safetensors"
    good = (tmp_path / "layer-000.safetensors").read_bytes()
    for content in (b"", b"abc", good[:-1], good + b"x"):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"layer-001.safetensors is not a whole file of save"):
            ExpertStore(tmp_path, 2)
    tensors = load_file(tmp_path / "layer-000.safetensors")
    save_file(tensors, path)
    with pytest.raises(InputError, match=r"not a whole file of save_experts: 'kind'"):
        ExpertStore(tmp_path, 2)
    save_file(tensors | {"0.inner": tensors["0.inner"][:3].clone()}, path, {"kind": "swiglu"})
    with pytest.raises(InputError, match=r"differ in their tensors"):
        ExpertStore(tmp_path, 2)
