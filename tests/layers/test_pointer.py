"""The pointer network and its fixed-vocabulary rivals: loss, masks, generation, learning, bad input."""

import math

import pytest
import torch

from etude.data.randomness import seeded_build, stream
from etude.layers import PointerNetwork, RecurrentSeq2Seq

NETS = {
    "pointer": lambda: PointerNetwork(input_size=2, hidden_size=8),
    "attention": lambda: RecurrentSeq2Seq(2, 8, max_length=6, attention=True),
    "lstm": lambda: RecurrentSeq2Seq(2, 8, max_length=6),
}


def net(kind="pointer", seed=0):
    return seeded_build(NETS[kind], stream(seed, "init"))


def x(batch=3, n=6, seed=0):
    return torch.rand(batch, n, 2, generator=stream(seed, "x"))


TARGET = torch.tensor([[0, 3, 2, -1], [1, 4, -1, -1], [2, 0, 1, 5]])


class TestTraining:
    @pytest.mark.parametrize("kind", NETS)
    def test_shapes_and_loss_by_hand(self, kind):
        out = net(kind)(x(), TARGET)
        assert out.logits.shape == (3, 4, 7)
        logp = out.logits.log_softmax(-1)
        first = [logp[0, 0, 1], logp[0, 1, 4], logp[0, 2, 3], logp[0, 3, 0]]  # slot = index + 1, then END
        alone = net(kind)(x()[:1], TARGET[:1])
        assert alone.loss.item() == pytest.approx(-sum(f.item() for f in first) / 4, abs=1e-5)

    @pytest.mark.parametrize("kind", NETS)
    def test_teacher_forcing_equals_a_loop_over_prefixes(self, kind):
        model, points = net(kind), x()
        whole = model(points, TARGET).logits
        for i in range(4):  # the scores of step i need targets before i only
            part = model(points, TARGET[:, : i + 1].clone()).logits
            assert torch.allclose(part, whole[:, : i + 1], atol=1e-6)

    def test_end_after_a_full_row_is_in_the_loss(self):
        model, target = net(), torch.tensor([[0, 3, 2]])
        shown = model(x(1), target)
        longer = model(x(1), torch.tensor([[0, 3, 2, -1]]))
        assert shown.loss.item() == pytest.approx(longer.loss.item(), abs=1e-6)
        assert torch.allclose(shown.logits, longer.logits[:, :3], atol=1e-6)

    def test_reductions_weigh_steps_or_rows(self):
        model = net()
        rows = [model(x()[i : i + 1], TARGET[i : i + 1]).loss.item() for i in range(3)]
        steps = [4, 3, 5]
        assert model(x(), TARGET, reduction="sequence").loss.item() == pytest.approx(sum(rows) / 3, abs=1e-5)
        want = sum(r * s for r, s in zip(rows, steps, strict=True)) / 12
        assert model(x(), TARGET).loss.item() == pytest.approx(want, abs=1e-5)

    @pytest.mark.parametrize("kind", NETS)
    def test_padding_changes_nothing(self, kind):
        model, points = net(kind), x()
        lengths = torch.tensor([4, 6, 6])  # unsorted further down
        alone = model(points[:1, :4], TARGET[:1])
        padded = points.clone()
        padded[0, 4:] = 123.0
        order = torch.tensor([1, 0, 2])
        together = model(padded[order], TARGET[order], lengths=lengths[order], target_lengths=torch.tensor([2, 3, 4]))
        assert torch.allclose(together.logits[1, :4, :5], alone.logits[0, :, :5], atol=1e-5)
        assert bool(torch.isneginf(together.logits[1, :, 5:]).all())

    def test_target_lengths_cut_and_pads_of_both_kinds_agree(self):
        model = net()
        want = model(x(), TARGET).loss
        other = torch.where(TARGET < 0, -100, TARGET)
        assert torch.equal(model(x(), other).loss, want)
        filled = torch.where(TARGET < 0, 4, TARGET)
        sizes = (TARGET >= 0).sum(1)
        assert torch.allclose(model(x(), filled, target_lengths=sizes).loss, want, atol=1e-6)
        assert torch.allclose(model(x(), filled, target_lengths=sizes.tolist()).loss, want, atol=1e-6)

    def test_everything_gets_a_gradient(self):
        for kind in NETS:
            model = net(kind)
            model(x(), TARGET).loss.backward()
            for name, p in model.named_parameters():
                assert p.grad is not None, name
                assert float(p.grad.abs().sum()) > 0, name

    def test_the_chosen_input_is_fed_back(self):
        model, points = net(), x(1)
        target = torch.tensor([[0, 3, 2]])
        fed = []
        hook = model.decoder.register_forward_pre_hook(lambda m, args: fed.append(args[0]))
        model(points, target)
        hook.remove()
        assert torch.equal(fed[0][0, 1:], points[0, [0, 3, 2]]) and torch.equal(fed[0][0, 0], model.start)

    def test_training_mask(self):
        model, target = net(), torch.tensor([[2, 0, 1, 5, 3, 4]])
        logits = model(x(1), target, mask="permutation").logits[0]
        for i in range(6):
            allowed = {j for j in range(7) if math.isfinite(logits[i, j].item())}
            assert allowed == {j + 1 for j in range(6)} - {int(t) + 1 for t in target[0, :i]}
        assert not torch.isneginf(model(x(1), target, mask="none").logits).any()
        assert bool(torch.isfinite(model(x(1), torch.tensor([[2, 2, 1, 0, 0, 4]]), mask="permutation").loss))

    def test_user_mask_in_training(self):
        def only_even(prefix):
            return torch.tensor([True, True, False, True, False, True, False]).expand(prefix.shape[0], -1)

        logits = net()(x(), torch.tensor([[0, 2], [4, 0], [2, 4]]), mask=only_even).logits
        assert bool(torch.isneginf(logits[..., [2, 4, 6]]).all()) and bool(
            torch.isfinite(logits[..., [0, 1, 3, 5]]).all()
        )

    def test_check_targets(self):
        twice, short = torch.tensor([[0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 0]]), torch.tensor([[0, 1, 2]])
        net()(x(2), twice, mask="permutation")
        with pytest.raises(ValueError, match="row 1: target 0 stands twice"):
            net()(x(2), twice, mask="permutation", check_targets=True)
        with pytest.raises(ValueError, match="no permutation"):
            net()(x(1), short, mask="permutation", check_targets=True)
        net()(x(1), short, mask="no_repeat", check_targets=True)
        net()(x(2), twice, check_targets=True)


class TestGenerate:
    @pytest.mark.parametrize("kind", NETS)
    def test_scores_equal_teacher_forcing(self, kind):
        model, points = net(kind), x(5)
        out = model.generate(points, mask="no_repeat")
        forced = model(points, out.sequences, mask="no_repeat", reduction="sequence")
        steps = (out.sequences >= 0).sum(1) + 1
        for row in range(5):
            if bool(out.finished[row]):
                alone = model(points[row : row + 1], out.sequences[row : row + 1], mask="no_repeat")
                assert alone.loss.item() * int(steps[row]) == pytest.approx(-float(out.scores[row]), abs=1e-4)
        assert bool(torch.isfinite(forced.loss))

    @pytest.mark.parametrize("beam_size", [1, 3])
    def test_permutation_with_lengths(self, beam_size):
        lengths = torch.tensor([3, 6, 5])
        out = net().generate(x(), lengths=lengths, beam_size=beam_size, mask="permutation")
        assert bool(out.finished.all())
        for row, n in zip(out.sequences, lengths.tolist(), strict=True):
            assert sorted(row[row >= 0].tolist()) == list(range(n))

    def test_beam_finds_at_least_the_greedy_score(self):
        model, points = net(seed=3), x(30, seed=3)
        for p in model.parameters():
            p.data.mul_(6.0)  # untrained scores are almost even: greedy would be best
        greedy, beam = (model.generate(points, beam_size=b, mask="permutation").scores for b in (1, 4))
        assert bool((beam >= greedy - 1e-5).float().mean() > 0.9) and float((beam - greedy).max()) > 0

    def test_never_loops_forever(self):
        model = net()
        model.end.data.zero_()
        with torch.no_grad():
            model.attention.key_proj.weight.mul_(50)
            model.attention.v.fill_(5.0)
        out = model.generate(x(), max_steps=4)
        assert out.sequences.shape[1] <= 4
        never = lambda prefix: torch.tensor([False] + [True] * 6).expand(prefix.shape[0], -1)
        out = model.generate(x(), mask=never)
        assert out.sequences.shape == (3, 13) and not bool(out.finished.any())

    def test_user_mask_sees_outputs_by_beam(self):
        seen = []

        def first_then_end(prefix):
            seen.append(prefix.clone())
            allowed = torch.zeros(prefix.shape[0], 7, dtype=torch.bool)
            allowed[:, 0] = prefix.shape[1] > 0
            allowed[:, 3] = prefix.shape[1] == 0
            return allowed

        out = net().generate(x(), mask=first_then_end, beam_size=2)
        assert out.sequences.tolist() == [[2]] * 3 and bool(out.finished.all())
        assert seen[0].shape == (6, 0) and (seen[1][::2] == 2).all()

    def test_bad_mask(self):
        with pytest.raises(ValueError, match="permutation"):
            net().generate(x(), mask="tour")
        with pytest.raises(ValueError, match="allowed"):
            net().generate(x(), mask=lambda prefix: torch.ones(3, 3, dtype=torch.bool))
        with pytest.raises(ValueError, match="max_steps"):
            net().generate(x(), max_steps=0)


class TestLearning:
    def test_pointer_learns_to_sort_two_numbers_and_the_untrained_does_not(self):
        """Order two numbers: the simplest thing that needs the input's content."""
        model = seeded_build(lambda: PointerNetwork(1, 16), stream(1, "init"))
        generator = stream(1, "data")
        test = torch.rand(200, 2, 1, generator=generator)
        want = test[..., 0].argsort(1)
        before = (model.generate(test, mask="permutation").sequences == want).all(1).float().mean()
        optimizer = torch.optim.Adam(model.parameters(), 1e-2)
        for _ in range(150):
            batch = torch.rand(64, 2, 1, generator=generator)
            optimizer.zero_grad()
            model(batch, batch[..., 0].argsort(1)).loss.backward()
            optimizer.step()
        after = (model.generate(test).sequences[:, :2] == want).all(1).float().mean()
        assert float(after) > 0.9 > 0.7 > float(before)

    def test_state_dict_round_trip(self):
        a, b = net(seed=1), net(seed=2)
        b.load_state_dict(a.state_dict())
        assert torch.equal(a(x(), TARGET).logits, b(x(), TARGET).logits)

    def test_start_relates_query_and_item(self):
        """The scores' interaction part (what no sum of a query's and an item's part gives) is there from the start."""

        def interaction(init):
            model = seeded_build(lambda: PointerNetwork(2, 32, init=init), stream(0, "i"))
            scores = model(x(20), torch.zeros(20, 5, dtype=torch.long)).logits.detach()[..., 1:]
            return float((scores - scores.mean(1, keepdim=True) - scores.mean(2, keepdim=True) + scores.mean()).std())

        assert interaction("scaled") > 10 * interaction("orthogonal")
        with pytest.raises(ValueError, match="init"):
            PointerNetwork(2, 8, init="xavier")

    def test_paper_initialisation(self):
        model = PointerNetwork(2, 8, init="uniform")
        for name, p in model.named_parameters():  # the forget biases too
            assert 0 < p.abs().max().item() <= 0.08, name

    @pytest.mark.parametrize("beam_size", [1, 3])
    def test_scores_in_the_precision_of_the_net(self, beam_size):
        model = net().double()
        out = model.generate(x(1).double(), beam_size=beam_size, max_steps=20)
        assert not bool(out.finished)  # so the end is not in the score
        logp = model(x(1).double(), out.sequences).logits[:, :20].log_softmax(-1)
        want = logp.gather(2, out.sequences[..., None] + 1).sum().item()
        assert out.scores.dtype == torch.float64
        assert out.scores.item() == pytest.approx(want, rel=1e-12)


class TestSymbols:
    def test_symbols_in_and_out(self):
        model = RecurrentSeq2Seq(4, 8, symbols=5)
        source = torch.tensor([[0, 4, 2], [1, 1, 3]])
        assert model(source, source).logits.shape == (2, 3, 6)
        model.head.bias.data[0] = -50.0  # no END
        out = model.generate(source, max_steps=7)
        assert out.sequences.shape == (2, 7) and 0 <= int(out.sequences.min()) <= int(out.sequences.max()) < 5
        assert not bool(out.finished.any())
        attentive = RecurrentSeq2Seq(4, 8, symbols=5, attention=True)
        assert attentive(source, source, lengths=[2, 3]).logits.shape == (2, 3, 6)

    def test_reversed_source(self):
        """Reading backwards is reading the flipped source, each row by its own length; feedback is not flipped."""
        build = lambda **o: seeded_build(lambda: RecurrentSeq2Seq(4, 8, symbols=5, **o), stream(0, "s"))
        source = torch.tensor([[0, 4, 2, 1], [1, 3, 0, 0]])
        flipped = torch.tensor([[1, 2, 4, 0], [3, 1, 0, 0]])
        a = build(reverse_source=True)(source, source, lengths=[4, 2])
        b = build()(flipped, source, lengths=[4, 2])
        assert torch.allclose(a.logits, b.logits, atol=1e-6)
        assert not torch.allclose(a.logits, build()(source, source, lengths=[4, 2]).logits, atol=1e-3)

    def test_bad_symbols(self):
        model = RecurrentSeq2Seq(4, 8, symbols=5)
        with pytest.raises(ValueError, match=r"0\.\.4"):
            model(torch.tensor([[0, 5]]), torch.tensor([[0, 1]]))
        with pytest.raises(ValueError, match="integer|symbols"):
            model(torch.rand(1, 2), torch.tensor([[0, 1]]))
        with pytest.raises(ValueError, match="symbols"):
            model.generate(torch.tensor([[0, 1]]), mask="permutation")
        for sizes in ({}, {"max_length": 3, "symbols": 3}):
            with pytest.raises(ValueError, match="one of"):
                RecurrentSeq2Seq(4, 8, **sizes)


class TestBadInput:
    def test_index_at_or_above_the_row_length_is_named(self):
        with pytest.raises(ValueError, match=r"row 1: target 4 .* length 3"):
            net()(x(), TARGET, lengths=[6, 3, 6])
        with pytest.raises(ValueError, match="row 0: target 6"):
            net()(x(1), torch.tensor([[0, 6]]))

    @pytest.mark.parametrize("bad", [-2, -7, -99])
    def test_negative_target_that_is_no_padding(self, bad):
        with pytest.raises(ValueError, match=f"target {bad}"):
            net()(x(1), torch.tensor([[0, 1, bad]]))

    def test_padding_in_the_middle(self):
        with pytest.raises(ValueError, match="padding"):
            net()(x(1), torch.tensor([[0, -1, 2]]))
        with pytest.raises(ValueError, match="padding"):
            net()(x(1), torch.tensor([[0, 1, -1]]), target_lengths=[3])

    @pytest.mark.parametrize("kind", NETS)
    @pytest.mark.parametrize("lengths", [[0, 3, 6], [3, 7, 6], [3, 6]])
    def test_lengths(self, kind, lengths):
        with pytest.raises(ValueError, match="length"):
            net(kind)(x(), torch.full((3, 2), 0), lengths=lengths)

    @pytest.mark.parametrize("bad", [math.nan, math.inf])
    def test_coordinates(self, bad):
        points = x()
        points[2, 1, 0] = bad
        with pytest.raises(ValueError, match="row 2"):
            net()(points, TARGET)
        with pytest.raises(ValueError, match="row 2"):
            net().generate(points)

    def test_shapes(self):
        with pytest.raises(ValueError, match="input_size|shape"):
            net()(torch.rand(3, 6, 3), TARGET)
        with pytest.raises(ValueError, match="integers"):
            net()(x(), TARGET.float())
        with pytest.raises(ValueError, match="integers"):
            net()(x(), TARGET > 0)
        with pytest.raises(ValueError, match="positions"):
            net("lstm")(torch.rand(3, 9, 2), TARGET)
        with pytest.raises(ValueError, match="target_lengths"):
            net()(x(), TARGET, target_lengths=[1, 2, 9])


@pytest.mark.parametrize("beam_size", [1, 3])
@pytest.mark.parametrize("mask", ["none", "permutation"])
def test_an_empty_batch_gives_empty_answers(beam_size, mask):
    found = PointerNetwork(2, 8).generate(torch.rand(0, 4, 2), beam_size=beam_size, mask=mask)
    assert found.sequences.shape == (0, 0)
    assert found.scores.shape == found.finished.shape == (0,)
    assert [t.dtype for t in found] == [torch.int64, torch.float32, torch.bool]


@pytest.mark.parametrize("mask", ["no_repeat", "permutation"])
def test_named_masks_in_training_are_those_of_every_prefix(mask):
    model, inputs = net(), x()
    logits = model(inputs, TARGET, lengths=[4, 5, 6], mask=mask).logits
    for row, (n, targets) in enumerate(zip([4, 5, 6], TARGET.tolist(), strict=True)):
        for step in range(3):
            used = [t for t in targets[:step] if t >= 0]
            open_ = [j + 1 for j in range(n) if j not in used]
            end = mask == "no_repeat" or len(used) == n
            want = set(open_) | ({0} if end else set()) | {targets[step] + 1}
            assert set(logits[row, step].isfinite().nonzero()[:, 0].tolist()) == want


@pytest.mark.parametrize("found", [torch.ones(1, 7, dtype=torch.bool), torch.ones(3, 7)])
def test_a_mask_of_ones_own_is_checked_in_training_too(found):
    with pytest.raises(ValueError, match=r"bool \(3, 7\), got"):
        net()(x(), TARGET, mask=lambda prefix: found)


def test_symbols_of_an_empty_batch_and_sizes_of_nothing():
    model = RecurrentSeq2Seq(4, 8, symbols=3)
    nothing = torch.zeros(0, 4, dtype=torch.long)
    assert model.generate(nothing).sequences.shape == (0, 0)
    assert model(nothing, nothing).logits.shape == (0, 4, 4)
    for size in ({"symbols": 0}, {"max_length": 0}):
        with pytest.raises(ValueError, match="at least 1, got 0"):
            RecurrentSeq2Seq(4, 8, **size)


def test_target_lengths_are_whole():
    with pytest.raises(ValueError, match="whole numbers"):
        net()(x(), TARGET, target_lengths=[2.7, 1, 2])


def test_targets_of_any_integer_type():
    net, x, target = PointerNetwork(2, 8), torch.rand(2, 4, 2), torch.tensor([[0, 2, 1], [3, 1, 0]])
    assert net(x, target.to(torch.uint8)).loss == net(x, target.int()).loss == net(x, target).loss


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_attention_over_symbols_in_half_precision(dtype):
    net = seeded_build(lambda: RecurrentSeq2Seq(4, 6, symbols=5, attention=True), stream(0, "net"))
    x = torch.randint(5, (3, 7), generator=stream(0, "x"))
    whole = net(x, x[:, :4]).loss.item()
    net.to(dtype)
    assert net(x, x[:, :4]).loss.item() == pytest.approx(whole, rel=0.05)
    assert net.generate(x, beam_size=2).sequences.shape[0] == 3
