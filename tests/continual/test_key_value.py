import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from etude.continual.key_value import KeyValueBottleneck
from etude.data.randomness import stream


def embeddings(n: int, seed: int = 0, width: int = 12) -> torch.Tensor:
    return torch.randn(n, width, generator=stream(seed, "x"))


def bottleneck(placed: bool = True, **options) -> KeyValueBottleneck:
    sizes = {"in_features": 12, "num_codebooks": 6, "num_pairs": 16, "key_dim": 3, "value_dim": 4} | options
    kv = KeyValueBottleneck(**sizes, generator=stream(0, "init"))
    return kv.initialize_keys(embeddings(200), epochs=3).freeze_keys() if placed else kv


def test_shapes_of_rows_and_tokens() -> None:
    kv = bottleneck(topk=2)
    e = embeddings(10)
    out = kv(e, return_dict=True)
    assert out.values.shape == (10, 6, 4)
    assert out.indices.shape == out.distances.shape == out.counts.shape == (10, 6, 2)
    tokens = kv(e.view(2, 5, 12))
    assert tokens.shape == (2, 5, 6, 4)
    assert kv.vote(e).shape == (10, 4) and kv.vote(e.view(2, 5, 12)).shape == (2, 4)


def test_the_values_are_those_of_the_nearest_keys() -> None:
    kv = bottleneck(topk=2, value_init=1.0).train()
    e = embeddings(30, 1)
    out = kv(e, return_dict=True)
    for c in range(6):
        u = e @ kv.projection[:, 3 * c : 3 * c + 3]
        d = torch.cdist(u, kv.keys[c]).square()
        nearest = d.topk(2, largest=False).indices
        assert torch.equal(out.indices[:, c], nearest)
        assert torch.allclose(out.distances[:, c], d.gather(1, nearest), atol=1e-4)
        assert torch.allclose(out.values[:, c], kv.values[c][nearest].mean(1))
    assert torch.allclose(kv.vote(e), out.values.mean(1), atol=1e-6)
    e3 = e.view(3, 10, 12)
    assert torch.allclose(kv.vote(e3), kv(e3).mean((1, 2)), atol=1e-6)


def test_random_directions_have_unit_length_and_stay() -> None:
    kv = bottleneck()
    assert torch.allclose(kv.projection.norm(dim=0), torch.ones(18), atol=1e-6)
    assert {n for n, p in kv.named_parameters() if p.requires_grad} == {"values"}
    assert not kv.values.detach().any()  # the vote of an untaught cell is neutral
    own = torch.nn.Linear(12, 18)
    kv = bottleneck(projection=own)
    assert not own.weight.requires_grad and kv(embeddings(3)).shape == (3, 6, 4)


def test_chunks_are_consecutive_pieces() -> None:
    kv = bottleneck(projection="chunk", num_codebooks=4)
    e = embeddings(5)
    assert torch.equal(kv.heads(e), e.view(5, 4, 3))
    with pytest.raises(ValueError, match=r"num_codebooks \* key_dim = 18"):
        bottleneck(projection="chunk")


def test_kept_cells_are_the_embeddings() -> None:
    kv = bottleneck(value_init=1.0, topk=2)
    e = embeddings(20).view(4, 5, 12)
    for mode in (True, False):
        kv.train(mode)
        cells = kv.cells(e)
        assert cells.dtype == torch.int16 and cells.shape == (4, 5, 6, 2)
        assert torch.equal(kv(cells), kv(e)) and torch.equal(kv.vote(cells), kv.vote(e))


@pytest.mark.parametrize("module", [False, True])
def test_cells_do_not_hang_on_the_callers_autocast(module: bool) -> None:
    options = {"projection": nn.Linear(12, 18)} if module else {}
    kv, e = bottleneck(num_pairs=64, **options), embeddings(500, 1)
    cells = kv.cells(e)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(kv.cells(e), cells)


def test_only_fetched_cells_move() -> None:
    kv = bottleneck().train()
    e, y = embeddings(8), torch.tensor([0, 1, 2, 3, 0, 1, 2, 3])
    optimizer = torch.optim.SGD(kv.parameters(), lr=0.3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert kv.check_optimizer(optimizer)
    before = {n: t.clone() for n, t in kv.state_dict().items()}
    kv.loss(e, y).backward()
    optimizer.step()
    touched = torch.zeros(6, 16, dtype=torch.bool)
    cells = kv.cells(e)[..., 0].long()
    for c in range(6):
        touched[c, cells[:, c]] = True
    moved = (kv.values != before["values"]).any(-1)
    assert torch.equal(moved, touched) and 0 < touched.float().mean() < 1
    changed = {n for n, t in kv.state_dict().items() if not torch.equal(t.nan_to_num(), before[n].nan_to_num())}
    assert changed == {"values", "quantizer.usage", "quantizer.idle"}


@given(
    seed=st.integers(0, 10**6),
    clip=st.sampled_from([None, 1.0, 0.01]),
    smoothing=st.sampled_from([0.0, 0.1]),
    topk=st.integers(1, 2),
    tokens=st.booleans(),
)
def test_the_direct_update_is_clipped_sgd(
    seed: int, clip: float | None, smoothing: float, topk: int, tokens: bool
) -> None:
    a, b = bottleneck(topk=topk, value_init=1.0), bottleneck(topk=topk, value_init=1.0)
    e = embeddings(24, seed)
    e = e.view(8, 3, 12) if tokens else e
    y = torch.randint(0, 4, (len(e),), generator=stream(seed, "y"))
    a.train()
    optimizer = torch.optim.SGD(a.parameters(), lr=5.0)
    loss = a.loss(e, y, label_smoothing=smoothing)
    loss.backward()
    if clip is not None:
        torch.nn.utils.clip_grad_norm_(a.parameters(), clip)
    optimizer.step()
    said = b.learn(b.cells(e, visited_only=False), y, lr=5.0, label_smoothing=smoothing, clip_norm=clip)
    assert said == pytest.approx(loss.item(), rel=1e-5)
    assert torch.allclose(a.values, b.values, atol=1e-6) and torch.equal(a.counts, b.counts)


def test_optimizers_that_break_locality_are_named() -> None:
    kv = bottleneck()
    for optimizer, reason in (
        (torch.optim.SGD(kv.parameters(), lr=0.1, momentum=0.9), "momentum 0.9"),
        (torch.optim.SGD(kv.parameters(), lr=0.1, weight_decay=1e-4), "weight decay"),
        (torch.optim.Adam(kv.parameters()), "Adam"),
    ):
        with pytest.warns(UserWarning, match=reason):
            assert not kv.check_optimizer(optimizer)


def test_keys_find_the_data_and_are_counted_from_zero() -> None:
    centers = torch.tensor([[-10.0, 0.0], [10.0, 0.0], [0.0, 10.0], [0.0, -10.0]])
    x = centers.repeat(40, 1) + 0.1 * torch.randn(160, 2, generator=stream(0, "x"))
    for method, pairs in (("ema", 16), ("kmeans", 4)):
        kv = KeyValueBottleneck(2, 1, pairs, 2, 3, projection="chunk", generator=stream(1, "init"))
        kv.initialize_keys(x.split(40), method=method)
        assert float(torch.cdist(centers, kv.keys[0]).amin(1).max()) < 0.5
        assert int(kv.counts.sum()) == 0
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, torch.zeros(160)), batch_size=40)
    for data in (x, x.numpy(), loader, iter([x[:80], x[80:]])):
        kv = KeyValueBottleneck(2, 1, 16, 2, 3, projection="chunk", generator=stream(1, "init"))
        assert float(torch.cdist(centers, kv.initialize_keys(data).keys[0]).amin(1).max()) < 0.5


def test_initialization_is_repeatable_and_draws_from_its_generator_alone() -> None:
    state = torch.get_rng_state()
    one, two = bottleneck(), bottleneck()
    assert torch.equal(one.keys, two.keys) and torch.equal(state, torch.get_rng_state())


def test_frozen_keys_cannot_be_placed_again() -> None:
    with pytest.raises(ValueError, match="frozen"):
        bottleneck().initialize_keys(embeddings(50))


def test_use_before_the_keys_are_placed() -> None:
    with pytest.warns(UserWarning, match="initialize_keys"):
        bottleneck(placed=False)(embeddings(3))
    with pytest.raises(ValueError, match="initialize_keys"):
        bottleneck(placed=False, strict=True)(embeddings(3))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bottleneck(placed=False, strict=True).freeze_keys()(embeddings(3))  # random keys on purpose


def test_more_keys_than_embeddings_is_a_warning() -> None:
    with pytest.warns(UserWarning, match="16 keys a codebook were placed on 10 embeddings"):
        bottleneck(placed=False).initialize_keys(embeddings(10), epochs=1)


def test_coverage_tells_keys_that_lie_elsewhere() -> None:
    kv = bottleneck()
    own, far = kv.coverage(embeddings(200)), kv.coverage(embeddings(200) + 30)
    assert own.distance_ratio == pytest.approx(1.0, rel=1e-4) and own.visited > 0.9
    assert far.distance_ratio > 20 and far.visited < 0.5
    assert int(kv.counts.sum()) == 0


def test_evaluation_falls_back_to_visited_keys_and_counts_nothing() -> None:
    kv = bottleneck().train()
    kv.learn(embeddings(6), torch.zeros(6, dtype=torch.long))
    seen = kv.counts.clone()
    assert int(seen.sum()) == 36
    kv.eval()
    cells = kv.cells(embeddings(100, 2))[..., 0].long()
    for c in range(6):
        kept = (seen[c] > 0).nonzero()[:, 0]
        u = kv.heads(embeddings(100, 2))[:, c]
        assert torch.equal(cells[:, c], kept[torch.cdist(u, kv.keys[c, kept]).argmin(1)])
    assert torch.equal(seen, kv.counts)
    # in training every key may be fetched, and without a visit all may be in evaluation as well
    assert not torch.equal(kv.train().cells(embeddings(100, 2))[..., 0].long(), cells)
    fresh = bottleneck()
    assert torch.equal(fresh.eval().cells(embeddings(9)), fresh.train().cells(embeddings(9)))
    free = bottleneck(visited_only=False)
    free.learn(embeddings(6), torch.zeros(6, dtype=torch.long))
    assert torch.equal(free.eval().cells(embeddings(9)), free.train().cells(embeddings(9)))


def test_topk_with_one_visited_key_still_answers() -> None:
    kv = bottleneck(topk=3).eval()
    kv.quantizer.usage[:, 0] = 1
    assert kv(embeddings(4)).shape == (4, 6, 4)


def test_grown_columns_are_zero_and_change_no_vote() -> None:
    kv = bottleneck(value_init=1.0)
    before = kv.vote(embeddings(5)).detach()
    kv.grow_values(6)
    after = kv.vote(embeddings(5)).detach()
    assert torch.equal(after[:, :4], before) and not after[:, 4:].any()
    kv.learn(embeddings(5), torch.full((5,), 5))
    with pytest.raises(ValueError, match="only grow"):
        kv.grow_values(3)


def test_state_round_trips_mid_stream() -> None:
    a = bottleneck()
    y = torch.randint(0, 4, (20,), generator=stream(0, "y"))
    a.learn(embeddings(20, 3), y)
    b = KeyValueBottleneck(12, 6, 16, 3, 4)
    b.load_state_dict(a.state_dict())
    for kv in (a, b):
        kv.learn(embeddings(20, 4), y)
        kv.eval()
    assert all(torch.equal(t, b.state_dict()[n]) for n, t in a.state_dict().items())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(a(embeddings(9, 5)), b(embeddings(9, 5)))
    with pytest.raises(ValueError, match="frozen"):
        b.initialize_keys(embeddings(9))


def test_bad_input_is_named() -> None:
    kv = bottleneck()
    e = embeddings(4)
    broken = e.clone()
    broken[2, 1] = torch.nan
    for call, message in [
        (lambda: kv(e[:, :5]), r"float \(\.\.\., 12\), got torch.float32 \(4, 5\)"),
        (lambda: kv(broken), "NaN or infinities, first in row 2"),
        (lambda: bottleneck(placed=False).initialize_keys(broken), "first in row"),
        (lambda: bottleneck(placed=False).initialize_keys([]), "at least one batch"),
        (lambda: bottleneck(placed=False).initialize_keys(e, epochs=0), "epochs"),
        (lambda: kv.loss(e, torch.tensor([0, 1, 4, 0])), "label 4 is not one of the 4 classes"),
        (lambda: kv.learn(e, torch.tensor([0, 1, -1, 0])), "label -1 is not one of the 4 classes"),
        (lambda: kv(kv.cells(e)[:, :3]), "cells must have shape"),
        (lambda: bottleneck(num_pairs=0), "at least 1"),
        (lambda: bottleneck(topk=17), "k must lie in"),
        (lambda: bottleneck(projection="pca"), "random"),
        (lambda: bottleneck(value_init="ones"), "zeros"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()


def test_learning_one_class_leaves_the_others_alone() -> None:
    # two clouds far apart: what the second teaches cannot change a vote of the first
    kv = KeyValueBottleneck(2, 1, 8, 2, 2, projection="chunk", generator=stream(0, "init"))
    first, second = (torch.randn(50, 2, generator=stream(i, "x")) + 20 * i for i in (0, 1))
    kv.initialize_keys(torch.cat([first, second])).freeze_keys()
    kv.learn(first, torch.zeros(50, dtype=torch.long), lr=1.0)
    before = kv.eval().vote(first)
    for _ in range(200):
        kv.learn(second, torch.ones(50, dtype=torch.long), lr=1.0)
    assert torch.equal(kv.vote(first), before)
    assert (kv.vote(first).argmax(1) == 0).all() and (kv.vote(second).argmax(1) == 1).all()


def test_double_precision_learns_as_single_does():
    e, y = torch.randn(32, 10, generator=stream(0, "x")), torch.arange(32) % 3
    tables = []
    for dtype in (torch.float32, torch.float64):
        kv = KeyValueBottleneck(10, 4, 8, 5, 3, generator=stream(0, "init")).to(dtype)
        kv.initialize_keys(e.to(dtype), generator=stream(0, "keys"))
        kv.learn(e.to(dtype), y)
        tables.append(kv.values.detach().float())
    torch.testing.assert_close(*tables, rtol=1e-4, atol=1e-5)


def test_placing_keys_on_nothing_is_refused():
    with pytest.raises(ValueError, match="no embeddings"):
        KeyValueBottleneck(10, 4, 8, 5, 3).initialize_keys(torch.zeros(0, 10))


def test_a_projection_of_another_width_is_refused():
    kv = KeyValueBottleneck(10, 4, 8, 5, 3, projection=torch.nn.Linear(10, 19))
    with pytest.raises(ValueError, match="20 features, got 19"):
        kv.initialize_keys(torch.randn(30, 10))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_learns_as_single_does(dtype):
    e, y = embeddings(32), torch.arange(32) % 4
    single, half = bottleneck(), bottleneck().to(dtype)
    cells = single.cells(e)
    for kv in (single, half):
        kv.learn(cells, y, lr=10.0)
    assert half.values.dtype == dtype and single.values.abs().max() > 0.1
    torch.testing.assert_close(half.values.float(), single.values, rtol=0.02, atol=0.01)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"lr": r}, "lr must be finite") for r in (-1.0, torch.nan, torch.inf)]
    + [({"label_smoothing": s}, "label_smoothing must be a share") for s in (-1.0, 2.0, torch.nan)]
    + [({"clip_norm": c}, "clip_norm must be positive") for c in (0.0, -1.0, torch.nan)],
)
def test_rates_that_ruin_the_table_are_refused(options, message):
    kv = bottleneck()
    with pytest.raises(ValueError, match=message):
        kv.learn(embeddings(4), torch.arange(4), **options)
    if "label_smoothing" in options:
        with pytest.raises(ValueError, match=message):
            kv.loss(embeddings(4), torch.arange(4), **options)
    assert not kv.values.detach().any() and not kv.counts.any()


@pytest.mark.parametrize(
    ("rows", "labels", "error", "message"),
    [
        (7, torch.arange(3), ValueError, r"labels must be whole numbers \(7,\)"),
        (4, torch.zeros(4), ValueError, "got torch.float32"),
        (0, torch.arange(0), ValueError, "no row to learn"),
        (4, [0, 1, 2, 3], TypeError, "labels must be a tensor, got list"),
    ],
)
def test_labels_are_checked_before_anything_is_counted(rows, labels, error, message):
    kv = bottleneck().train()
    for call in (kv.loss, kv.learn):
        with pytest.raises(error, match=message):
            call(embeddings(rows), labels)
    assert not kv.counts.any()


@pytest.mark.parametrize("wrong", [16, 20, -1])
def test_cells_beyond_their_codebook_are_refused(wrong):
    kv = bottleneck(value_init=1.0)
    cells = torch.zeros(1, 6, 1, dtype=torch.long)
    cells[0, 0, 0] = wrong
    for call in (kv, kv.vote, lambda c: kv.learn(c, torch.tensor([0]))):
        with pytest.raises(ValueError, match=rf"cells must lie in 0\.\.15, got {wrong}"):
            call(cells)


def test_arrays_where_tensors_are_needed_are_named():
    kv, e = bottleneck(), embeddings(4).numpy()
    for call in (kv, kv.vote, kv.cells, kv.coverage, lambda e: kv.learn(e, torch.arange(4))):
        with pytest.raises(TypeError, match="must be tensors, got ndarray"):
            call(e)


def test_batches_of_arrays_are_rows():
    e = embeddings(200)
    tensors, arrays = (bottleneck(placed=False) for _ in range(2))
    tensors.initialize_keys(e.split(50), epochs=2)
    arrays.initialize_keys([part.numpy() for part in e.split(50)], epochs=2)
    assert torch.equal(tensors.keys, arrays.keys)


def test_lengths_and_deviations_that_make_no_start_are_refused():
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 10 and 0"):
        bottleneck(placed=False).initialize_keys(embeddings(20), batch_size=0)
    for wrong in (-1.0, torch.nan, torch.inf):
        with pytest.raises(ValueError, match="value_init is a standard deviation"):
            bottleneck(placed=False, value_init=wrong)


def test_coverage_of_random_keys_warns():
    with pytest.warns(UserWarning, match="initialize_keys"):
        bottleneck(placed=False).coverage(embeddings(3))
    with pytest.raises(ValueError, match="initialize_keys"):
        bottleneck(placed=False, strict=True).coverage(embeddings(3))


def test_a_projection_with_a_state_works_as_in_eval_mode() -> None:
    body = nn.Sequential(nn.Linear(12, 18), nn.BatchNorm1d(18), nn.Dropout(0.5))
    kv = KeyValueBottleneck(12, 6, 16, 3, 4, projection=body)
    kv.initialize_keys(embeddings(100, 1)).freeze_keys().train()
    e, rng = embeddings(40, 2), torch.get_rng_state()
    assert torch.equal(kv.cells(e), kv.cells(e)) and torch.equal(torch.get_rng_state(), rng)
    kv(e)
    kv.coverage(e)
    assert not body[1].running_mean.any() and body.training


def test_a_state_of_more_classes_and_an_optimiser_of_before() -> None:
    grown, fresh = bottleneck(value_init=1.0), KeyValueBottleneck(12, 6, 16, 3, 4)
    before = torch.optim.SGD(grown.parameters(), lr=0.1)
    grown.grow_values(6)
    fresh.load_state_dict(grown.state_dict())
    assert fresh.value_dim == 6 and torch.equal(fresh.vote(embeddings(5)), grown.vote(embeddings(5)))
    with pytest.warns(UserWarning, match="`values` is not trained"):
        assert not grown.check_optimizer(before)


def test_coverage_of_nothing_and_of_rows_that_are_all_alike() -> None:
    kv = bottleneck()
    with pytest.raises(ValueError, match="no embeddings to cover"):
        kv.coverage(embeddings(0))
    with pytest.raises(ValueError, match="no tokens to vote"):
        kv.vote(torch.zeros(3, 0, 12))
    alike = bottleneck(placed=False).initialize_keys(torch.ones(100, 12))
    assert alike.coverage(torch.ones(5, 12)).distance_ratio == 1.0
    assert alike.coverage(torch.zeros(5, 12)).distance_ratio == float("inf")


def test_batches_by_name_are_refused():
    with pytest.raises(ValueError, match=r"must be a tensor or a pair, got a mapping of \['x'\]"):
        bottleneck(placed=False).initialize_keys([{"x": embeddings(40)}])
