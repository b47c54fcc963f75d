import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from urbancross.errors import ConfigError
from urbancross.losses import (
    adversarial,
    contrast,
    coral,
    first_bias,
    hinge,
    infonce,
    mmd,
    pool_segments,
    positives,
    released_triplet,
    reverse_gradient,
    segment_contrast,
    siglip,
    weighted_triplet,
)


def unit(*shape: int, seed: int = 0) -> Tensor:
    rows = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.nn.functional.normalize(rows, dim=-1)


def slow_infonce(image: Tensor, text: Tensor, positive: Tensor, scale: float) -> float:
    def one_way(similarity: list[list[float]], wanted: list[list[bool]]) -> float:
        rows = []
        for i, row in enumerate(similarity):
            total = sum(math.exp(scale * s) for s in row)
            terms = [-math.log(math.exp(scale * row[j]) / total) for j in range(len(row)) if wanted[i][j]]
            if terms:
                rows.append(sum(terms) / len(terms))
        return sum(rows) / len(rows)

    similarity = image @ text.T
    there = one_way(similarity.tolist(), positive.tolist())
    return (there + one_way(similarity.T.tolist(), positive.T.tolist())) / 2


def slow_triplet(image: Tensor, text: Tensor, positive: Tensor, margin: float, weights: Tensor, negative: str) -> float:
    b = len(image)
    d = [[1 - float(torch.cosine_similarity(image[i], text[j], dim=0)) for j in range(b)] for i in range(b)]
    total = 0.0
    for i in range(b):
        others = [j for j in range(b) if j != i]
        for far in ([d[i][j] for j in others if not positive[i, j]], [d[j][i] for j in others if not positive[j, i]]):
            if negative == "semi-hard" and any(x > d[i][i] for x in far):
                far = [x for x in far if x > d[i][i]]
            if far:
                total += float(weights[i]) * max(0.0, margin + d[i][i] - min(far))
    return total / (2 * float(weights.sum()))


def slow_siglip(image: Tensor, text: Tensor, positive: Tensor, scale: float, bias: float) -> float:
    total = 0.0
    for i in range(len(image)):
        for j in range(len(text)):
            logit = scale * float(image[i] @ text[j]) + bias
            total -= math.log(1 / (1 + math.exp(-logit if positive[i, j] else logit)))
    return total / len(text)


def slow_hinge(image: Tensor, text: Tensor, positive: Tensor, margin: float) -> float:
    captions = len(text) // len(image)
    of_tiles, of_captions = [], []
    for j in range(len(text)):
        i = j // captions
        right = float(image[i] @ text[j])
        of_tiles += [max(0, margin + float(image[i] @ text[k]) - right) for k in range(len(text)) if not positive[i, k]]
        of_captions += [
            max(0, margin + float(image[k] @ text[j]) - right) for k in range(len(image)) if not positive[k, j]
        ]
    return (sum(of_tiles) / len(of_tiles) + sum(of_captions) / len(of_captions)) / 2


def five(image: Tensor, text: Tensor, positive: Tensor) -> Tensor:
    return infonce(image, text, positive, 5.0)


TILES, TEXTS = torch.tensor([0, 0, 1, 2, 3]), torch.tensor([[5], [6], [7], [7], [8]])


def test_a_positive_shares_the_tile_or_the_wording():
    wanted = torch.eye(5, dtype=torch.bool)
    wanted[0, 1] = wanted[1, 0] = True  # two captions of tile 0
    wanted[2, 3] = wanted[3, 2] = True  # one wording for tiles 1 and 2
    assert torch.equal(positives(TILES, TEXTS), wanted)


def test_several_captions_of_a_tile_are_columns_of_their_own():
    keys = torch.tensor([[5, 6], [6, 7], [8, 9]])  # tiles 0 and 1 share the wording 6
    wanted = [
        [True, True, True, False, False, False],
        [False, True, True, True, False, False],
        [False, False, False, False, True, True],
    ]
    assert positives(torch.arange(3), keys).tolist() == wanted
    image, text, positive = unit(3, 4), unit(6, 4, seed=1), torch.tensor(wanted)
    assert infonce(image, text, positive, 7.0).item() == pytest.approx(slow_infonce(image, text, positive, 7.0))
    without_the_second = segment_contrast(five, image, torch.tensor([True, False, True]), text, positive)
    rows, columns = torch.tensor([0, 2]), torch.tensor([0, 1, 4, 5])
    alone = infonce(image[rows], text[columns], positive[rows][:, columns], 5.0)
    torch.testing.assert_close(without_the_second, alone)


def test_infonce_agrees_with_a_two_loop_version():
    image, text, positive = unit(5, 4), unit(5, 4, seed=1), positives(TILES, TEXTS)
    assert infonce(image, text, positive, 7.0).item() == pytest.approx(slow_infonce(image, text, positive, 7.0))
    uneven = torch.eye(5, dtype=torch.bool)
    uneven[0, 1:4] = uneven[2, 4] = True  # else the two directions could be mixed up unseen
    assert infonce(image, text, uneven, 7.0).item() == pytest.approx(slow_infonce(image, text, uneven, 7.0))


@pytest.mark.parametrize("captions", [1, 3])
def test_siglip_and_hinge_agree_with_two_loop_versions(captions):
    image, text = unit(5, 4), unit(5 * captions, 4, seed=1)
    keys = torch.arange(5 * captions).reshape(5, captions)
    keys[4, 0] = keys[1, -1]  # a wording of two tiles
    positive = positives(torch.arange(5), keys)
    assert siglip(image, text, positive, 7.0, -1.5).item() == pytest.approx(slow_siglip(image, text, positive, 7, -1.5))
    assert hinge(image, text, positive, 0.4).item() == pytest.approx(slow_hinge(image, text, positive, 0.4))


def test_siglip_starts_where_nothing_known_costs_least():
    image, text, positive = torch.zeros(8, 2), torch.zeros(8, 2), torch.eye(8, dtype=torch.bool)
    at = {
        bias: siglip(image, text, positive, 10.0, bias).item() for bias in (first_bias(8) + d for d in (-0.1, 0, 0.1))
    }
    assert min(at, key=at.__getitem__) == first_bias(8)


def test_hinge_does_not_grow_with_the_batch():
    image, text = unit(64, 16), unit(64, 16, seed=1)
    few, many = (hinge(image[:n], text[:n], torch.eye(n, dtype=torch.bool), 0.2).item() for n in (8, 64))
    assert many == pytest.approx(few, rel=0.3)


def test_infonce_of_identical_embeddings_is_the_log_of_the_batch():
    same = torch.ones(4, 2) / math.sqrt(2)
    assert infonce(same, same, torch.eye(4, dtype=torch.bool), 100.0).item() == pytest.approx(math.log(4))


def test_a_row_without_positives_leaves_the_mean_of_its_direction():
    image, text, positive = unit(3, 4), unit(3, 4, seed=1), torch.eye(3, dtype=torch.bool)
    positive[1] = torch.tensor([True, False, False])  # no tile is positive for caption 1
    positive[2] = False
    assert infonce(image, text, positive, 3.0).item() == pytest.approx(slow_infonce(image, text, positive, 3.0))


def test_no_positives_at_all_is_a_zero_that_can_be_descended():
    image = unit(3, 4).requires_grad_()
    loss = infonce(image, unit(3, 4, seed=1), torch.zeros(3, 3, dtype=torch.bool), 3.0)
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(image.grad, torch.zeros_like(image))


def test_a_duplicate_caption_is_not_pushed_away_from_the_tile_it_also_describes():
    image, text = unit(3, 4), unit(3, 4, seed=1)
    text[1] = text[0]
    apart = torch.eye(3, dtype=torch.bool)
    together = positives(torch.arange(3), torch.tensor([[9], [9], [4]]))

    def pull(positive: Tensor) -> Tensor:
        """How strongly descent moves tile 0 towards its own caption and towards the twin's."""
        x = image.clone().requires_grad_()
        infonce(x, text, positive, 5.0).backward()
        return -(x.grad[0] @ text[0])

    assert pull(together) > pull(apart)


@pytest.mark.parametrize("negative", ["hardest", "semi-hard"])
def test_no_loss_depends_on_the_order_of_the_batch(negative):
    image, text, weights = unit(5, 4), unit(5, 4, seed=1), torch.tensor([1.0, 2, 3, 4, 5], dtype=torch.float64)
    order = torch.tensor([3, 0, 4, 1, 2])
    a, b = positives(TILES, TEXTS), positives(TILES[order], TEXTS[order])
    has = torch.tensor([True, False, True, True, True])
    torch.testing.assert_close(infonce(image, text, a, 5.0), infonce(image[order], text[order], b, 5.0))
    torch.testing.assert_close(
        segment_contrast(five, image, has, text, a),
        segment_contrast(five, image[order], has[order], text[order], b),
    )
    torch.testing.assert_close(
        weighted_triplet(image, text, a, 0.5, weights, negative),
        weighted_triplet(image[order], text[order], b, 0.5, weights[order], negative),
    )


def test_a_tile_without_segments_leaves_the_segment_loss_as_row_and_as_column():
    pooled, text, positive = unit(4, 3), unit(4, 3, seed=1), torch.eye(4, dtype=torch.bool)
    has = torch.tensor([True, False, True, True])
    pooled[1] = float("nan")
    rest = torch.tensor([0, 2, 3])
    wanted = infonce(pooled[rest], text[rest], torch.eye(3, dtype=torch.bool), 5.0)
    torch.testing.assert_close(segment_contrast(five, pooled, has, text, positive), wanted)


@pytest.mark.parametrize("kind", ["infonce", "siglip", "hinge"])
def test_a_batch_without_segments_has_zero_segment_loss_and_still_a_graph(kind):
    pooled, text = torch.zeros(3, 2, requires_grad=True), unit(3, 2).requires_grad_()
    scale, bias = torch.tensor(5.0, requires_grad=True), torch.tensor(0.0, requires_grad=True)
    eye = torch.eye(3, dtype=torch.bool)
    loss = contrast(kind, scale, bias, 0.2)
    loss = segment_contrast(loss, pooled.double(), torch.zeros(3, dtype=torch.bool), text, eye)
    loss.backward()
    assert loss.item() == 0
    used = (pooled, text) if kind == "hinge" else (pooled, text, scale)
    assert all(x.grad.abs().sum().item() == 0 for x in used)


def test_pooled_segments_are_the_direction_of_the_mean_of_those_present():
    segments = torch.tensor([[[1.0, 0], [0, 1], [-1, 0]]])
    present = torch.tensor([[True, True, False]])
    torch.testing.assert_close(pool_segments(segments, present), torch.tensor([[1.0, 1.0]]) / math.sqrt(2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_absent_segments_leak_neither_value_nor_gradient(dtype):
    segments = torch.tensor([[[0.6, 0.8], [float("nan"), float("inf")]], [[float("nan")] * 2] * 2], dtype=dtype)
    segments.requires_grad_()
    pooled = pool_segments(segments, torch.tensor([[True, False], [False, False]]))
    torch.testing.assert_close(pooled, torch.tensor([[0.6, 0.8], [0, 0]], dtype=dtype))
    pooled[:, 0].sum().backward()
    assert torch.equal(segments.grad[0, 1], torch.zeros(2, dtype=dtype))
    assert torch.equal(segments.grad[1], torch.zeros(2, 2, dtype=dtype))
    assert segments.grad[0, 0].abs().sum() > 0
    assert torch.isfinite(segments.grad).all()


def test_adversarial_agrees_with_the_formula_by_hand():
    s, t, w = [0.5, -1.0], [2.0, 0.0, -3.0], [1.0, 3.0]
    wanted = -(1 * math.log(1 / (1 + math.exp(-0.5))) + 3 * math.log(1 / (1 + math.exp(1.0)))) / 4
    wanted += sum(-math.log(1 - 1 / (1 + math.exp(-x))) for x in t) / 3
    assert adversarial(torch.tensor(s), torch.tensor(t), torch.tensor(w)).item() == pytest.approx(wanted)


def test_adversarial_stays_finite_where_a_half_precision_sigmoid_saturates():
    logits = torch.tensor([60.0, -60.0], dtype=torch.float16, requires_grad=True)
    loss = adversarial(logits, logits, torch.ones(2, dtype=torch.float16))
    loss.backward()
    assert loss.item() == pytest.approx(60)
    assert torch.isfinite(logits.grad).all()


def test_adversarial_with_all_weights_zero_is_the_target_term():
    loss = adversarial(torch.tensor([5.0]), torch.tensor([0.0]), torch.zeros(1))
    assert loss.item() == pytest.approx(math.log(2))


def test_adversarial_refuses_shapes_that_would_broadcast():
    with pytest.raises(ConfigError, match="differ in shape"):
        adversarial(torch.zeros(3, 1), torch.zeros(2), torch.ones(3))


def adversarial_gradients(strength: float | None) -> tuple[Tensor, Tensor]:
    """Gradient at a linear encoder and at a linear discriminator; `None`: nothing between them."""
    encoder, discriminator = unit(3, 2).requires_grad_(), unit(2, seed=1).requires_grad_()

    def logits(x: Tensor) -> Tensor:
        f = x @ encoder
        return (f if strength is None else reverse_gradient(f, strength)) @ discriminator

    loss = adversarial(logits(unit(4, 3, seed=2)), logits(unit(5, 3, seed=3)), torch.ones(4, dtype=torch.float64))
    at_encoder, at_discriminator = torch.autograd.grad(loss, [encoder, discriminator])
    return at_encoder, at_discriminator


def test_reversal_flips_the_encoders_gradient_and_leaves_the_discriminators_alone():
    plain_encoder, plain_discriminator = adversarial_gradients(None)
    assert plain_encoder.abs().max() > 0.01
    at_encoder, at_discriminator = adversarial_gradients(0.7)
    torch.testing.assert_close(at_encoder, -0.7 * plain_encoder)
    assert torch.equal(at_discriminator, plain_discriminator)


def test_reversal_of_strength_zero_cuts_the_encoder_off():
    at_encoder, at_discriminator = adversarial_gradients(0.0)
    assert at_encoder.abs().sum() == 0
    assert at_discriminator.abs().sum() > 0


def test_reversal_changes_no_value():
    x = unit(3, 2)
    assert torch.equal(reverse_gradient(x, 0.7), x)


def gap_after_play(strength: float) -> float:
    """A target 3 away from the source, an encoder that can shift it, a discriminator: both descend one loss."""
    g = torch.Generator().manual_seed(0)
    source, target = torch.randn(64, 2, generator=g), torch.randn(64, 2, generator=g)
    shift, discriminator = torch.tensor([3.0, 0.0], requires_grad=True), torch.zeros(3, requires_grad=True)
    for _ in range(200):
        f_s, f_t = reverse_gradient(source, strength), reverse_gradient(target + shift, strength)
        w, bias = discriminator[:2], discriminator[2]
        loss = adversarial(f_s @ w + bias, f_t @ w + bias, torch.ones(64))
        at_shift, at_discriminator = torch.autograd.grad(loss, [shift, discriminator])
        with torch.no_grad():
            shift -= 0.1 * at_shift
            discriminator -= 0.5 * at_discriminator
    return (source.mean(0) - (target + shift).detach().mean(0)).norm().item()


def test_the_adversarial_game_brings_shifted_domains_together():
    assert gap_after_play(1.0) < 0.2


def test_without_a_flipped_sign_the_same_game_drives_domains_apart():
    assert gap_after_play(-1.0) > 4  # what minimising one term with both players does


@pytest.mark.parametrize("negative", ["hardest", "semi-hard"])
@pytest.mark.parametrize("seed", range(5))
def test_weighted_triplet_agrees_with_a_two_loop_version(negative, seed):
    image, text = 2 * unit(5, 3, seed=seed), unit(5, 3, seed=seed + 10)  # lengths are no part of a cosine
    positive, weights = positives(TILES, TEXTS), torch.tensor([0.5, 1, 2, 0, 3], dtype=torch.float64)
    found = weighted_triplet(image, text, positive, 0.4, weights, negative).item()
    assert found == pytest.approx(slow_triplet(image, text, positive, 0.4, weights, negative))


def points(*degrees: float) -> Tensor:
    radians = torch.deg2rad(torch.tensor(degrees))
    return torch.stack([radians.cos(), radians.sin()], dim=1)


def test_semi_hard_takes_the_nearest_negative_beyond_the_own_partner():
    image, text = points(0, 180, 90), points(60, 180, 90)  # tile 0: own caption at 60, others at 180 and 90 degrees
    text[1] = points(20)[0]  # closer than the own caption: hardest, but not semi-hard
    only_first, eye = torch.tensor([1.0, 0, 0]), torch.eye(3, dtype=torch.bool)

    def cos(degrees: float) -> float:
        return math.cos(math.radians(degrees))

    # Back from caption 0 at 60 degrees, own tile 60 away: tile 2 is 30 away (hardest), tile 1 is 120 away.
    hardest = (0.5 + cos(20) - cos(60)) + (0.5 + cos(30) - cos(60))
    semi_hard = (0.5 + cos(90) - cos(60)) + max(0.0, 0.5 + cos(120) - cos(60))
    assert weighted_triplet(image, text, eye, 0.5, only_first).item() == pytest.approx(hardest / 2)
    assert weighted_triplet(image, text, eye, 0.5, only_first, "semi-hard").item() == pytest.approx(
        semi_hard / 2, abs=1e-6
    )


def test_semi_hard_falls_back_to_the_hardest_where_all_negatives_are_closer():
    image, text, eye = points(0, 90), points(90, 0), torch.eye(2, dtype=torch.bool)  # each next to the other's partner
    weights = torch.ones(2)
    assert weighted_triplet(image, text, eye, 0.2, weights, "semi-hard").item() == pytest.approx(1.2)


def test_a_duplicate_is_no_negative_and_a_row_without_negatives_adds_nothing():
    image, text = points(0, 10).requires_grad_(), points(0, 0)
    everything = torch.ones(2, 2, dtype=torch.bool)
    loss = weighted_triplet(image, text, everything, 0.5, torch.ones(2))
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(image.grad, torch.zeros(2, 2))
    assert weighted_triplet(image, text, torch.eye(2, dtype=torch.bool), 0.5, torch.ones(2)).item() > 0.4


def test_the_own_pair_is_no_negative_even_where_nobody_calls_it_positive():
    nobody = torch.zeros(2, 2, dtype=torch.bool)
    assert weighted_triplet(points(0, 180), points(0, 180), nobody, 0.5, torch.ones(2)).item() == 0


def test_a_pair_of_weight_zero_moves_nothing():
    image = unit(3, 4).requires_grad_()
    text, eye = unit(3, 4, seed=1), torch.eye(3, dtype=torch.bool)
    alone = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
    weighted_triplet(image, text, eye, 0.5, alone).backward()
    gradient, image.grad = image.grad, None
    weighted_triplet(image, text, eye, 0.5, 9 * alone).backward()
    torch.testing.assert_close(image.grad, gradient)  # the scale of the weights cancels
    assert weighted_triplet(image, text, eye, 0.5, 0 * alone).item() == 0


def test_weighted_triplet_refuses_what_it_does_not_know():
    image, eye = points(0, 10), torch.eye(2, dtype=torch.bool)
    with pytest.raises(ConfigError, match="unknown negative"):
        weighted_triplet(image, image, eye, 0.5, torch.ones(2), "softest")
    with pytest.raises(ConfigError, match="one weight per pair"):
        weighted_triplet(image, image, eye, 0.5, torch.ones(2, 1))


def test_coral_agrees_with_the_covariances_written_out():
    generator = torch.Generator().manual_seed(0)
    a, b = (normalize(torch.randn(n, 4, generator=generator), dim=1) for n in (9, 6))

    def covariance(rows: Tensor) -> Tensor:
        centred = rows - rows.mean(dim=0)
        return sum((torch.outer(row, row) for row in centred), torch.zeros(4, 4)) / (len(rows) - 1) * 4

    slow = (covariance(a) - covariance(b)).square().sum() / (4 * 16)
    torch.testing.assert_close(coral(a, b), slow)
    assert coral(a, a) == 0


def test_mmd_agrees_with_its_kernels_written_out_and_grows_with_the_gap():
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(5, 3, generator=generator), torch.randn(4, 3, generator=generator)
    rows = torch.cat([a, b])
    apart = torch.tensor([[float((x - y).square().sum()) for y in rows] for x in rows])

    def mean_kernel(i: slice, j: slice) -> float:
        widths = (0.25, 0.5, 1.0, 2.0, 4.0)
        return float(sum(torch.exp(-apart[i, j] / (w * apart.mean())) for w in widths).mean())  # type: ignore[union-attr]

    here, there = slice(0, 5), slice(5, 9)
    slow = mean_kernel(here, here) + mean_kernel(there, there) - 2 * mean_kernel(here, there)
    assert mmd(a, b).item() == pytest.approx(slow, rel=1e-4)
    assert mmd(a, a).item() == pytest.approx(0, abs=1e-6)
    assert mmd(a, b + 3) > mmd(a, b)


def test_the_released_triplet_agrees_with_a_loop_and_pushes_the_domains_apart():
    generator = torch.Generator().manual_seed(0)
    v, u, t = (normalize(torch.randn(n, 4, generator=generator), dim=1).requires_grad_() for n in (5, 5, 3))
    weights = torch.rand(5, generator=generator)
    slow = 0.0
    for i in range(5):
        nearest = min(float((1 - v[i] @ t[j]).detach()) for j in range(3))
        slow += float(weights[i]) * max(0.3 + float((1 - v[i] @ u[i]).detach()) - nearest, 0)
    loss = released_triplet(v, u, t, 0.3, weights)
    assert loss.item() == pytest.approx(slow / float(weights.sum()), rel=1e-5)
    before = (v @ t.T).max(dim=1).values.mean()
    loss.backward()
    moved = normalize(t - 0.1 * t.grad, dim=1)
    assert (v @ moved.T).max(dim=1).values.mean() < before
