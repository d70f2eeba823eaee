"""Transforms obey the laws of linear maps and of their names; training with them recovers T D T^-1."""

import json
import math
from itertools import combinations

import pytest
import torch

from voxscore.diffusion import EDM, VP, Denoiser, Gaussian, GaussianDenoiser, LowRankCovariance
from voxscore.diffusion.augmentation import Augmentation, Brightness, Cutout, Flip, QuarterTurn, ScoreAug, Translate
from voxscore.diffusion.objectives import EDMWeight, denoising_loss

FAMILIES = [Flip(), QuarterTurn(), Translate(0.5), Brightness(3.0), Cutout(0.7)]
INVERTIBLE = FAMILIES[:2] + FAMILIES[3:4]
SHAPE = (2, 4, 3, 4)


def by_name(transform):
    return type(transform).__name__


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normals(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def numbers(*values):
    return torch.tensor(values, dtype=torch.float64)


def members(transform, shape=SHAPE, draws=60):
    """Different parameters of a family, none of them the identity, as an augmentation with a volume for each."""
    g = generator(1)
    drawn = torch.stack([transform.draw(shape[1:], g) for _ in range(draws)])
    drawn = drawn[drawn.any(dim=1)].unique(dim=0)
    return Augmentation(ScoreAug([transform], len(shape) - 1), drawn)


# ---------------------------------------------------------------------------------------- laws


@pytest.mark.parametrize("transform", FAMILIES, ids=by_name)
def test_transforms_are_linear_and_leave_their_argument_alone(transform):
    t = members(transform)
    n = len(t.omega)
    x, y = normals(n, *SHAPE, seed=2), normals(n, *SHAPE, seed=3)
    before = x.clone()
    torch.testing.assert_close(t(1.7 * x - 0.3 * y), 1.7 * t(x) - 0.3 * t(y), rtol=0, atol=1e-14)
    assert torch.equal(x, before)
    assert t(x).shape == x.shape
    assert t(x.float()).dtype == torch.float32


@pytest.mark.parametrize("transform", FAMILIES, ids=by_name)
def test_omega_tells_every_member_from_every_other_and_from_the_identity(transform):
    t = members(transform)
    n = len(t.omega)
    assert n >= (3 if isinstance(transform, Flip) else 5)
    assert t.omega.shape == (n, transform.features(3))
    volume = normals(1, *SHAPE)
    results = torch.cat([volume, t(volume.expand(n, -1, -1, -1, -1))]).flatten(1)
    assert torch.pdist(results).min() > 1e-6


@pytest.mark.parametrize("transform", INVERTIBLE, ids=by_name)
def test_inverse_undoes_the_transform_both_ways(transform):
    t = members(transform)
    x = normals(len(t.omega), *SHAPE)
    for first, second in ((t, t.inverse()), (t.inverse(), t)):
        torch.testing.assert_close(second(first(x)), x, rtol=1e-14, atol=0)


@pytest.mark.parametrize("transform", [Translate(), Cutout()], ids=by_name)
def test_transforms_that_lose_voxels_have_no_inverse(transform):
    with pytest.raises(ValueError, match=f"{by_name(transform)} loses voxels"):
        members(transform).inverse()


@pytest.mark.parametrize("shape", [(1, 5), (3, 4, 4), (1, 4, 3, 3)], ids=len)
def test_draws_survive_json_and_depend_on_the_seed_alone(shape):
    families = FAMILIES if len(shape) > 2 else [Flip(), Translate(), Brightness(), Cutout()]
    score_aug = ScoreAug(families, len(shape) - 1)
    batch = (40, *shape)
    drawn = score_aug.draw(batch, generator(5))
    assert drawn.omega.shape == (40, score_aug.features)
    assert torch.equal(score_aug.draw(batch, generator(5)).omega, drawn.omega)
    assert not torch.equal(score_aug.draw(batch, generator(6)).omega, drawn.omega)
    again = Augmentation(score_aug, torch.tensor(json.loads(json.dumps(drawn.omega.tolist())), dtype=torch.float64))
    x = normals(*batch)
    assert torch.equal(again(x), drawn(x))


def test_a_volume_of_a_batch_gets_its_own_transform():
    score_aug = ScoreAug(FAMILIES)
    drawn = score_aug.draw((20, *SHAPE), generator(2))
    x = normals(20, *SHAPE)
    alone = [Augmentation(score_aug, drawn.omega[k : k + 1])(x[k : k + 1]) for k in range(20)]
    assert torch.equal(drawn(x), torch.cat(alone))


def test_all_transforms_and_the_identity_are_equally_likely():
    n = 3000
    score_aug = ScoreAug(FAMILIES)
    # Of a volume this large hardly any shift is zero, which would count as the identity.
    omega = score_aug.draw((n, 1, 64, 64, 64), generator()).omega
    named = torch.stack([part.any(dim=1) for part in omega.split(score_aug.sizes, dim=1)], dim=1)
    counts = [*named.sum(0).tolist(), int((~named.any(dim=1)).sum())]
    p = 1 / (len(FAMILIES) + 1)
    assert sum(counts) == n
    assert all(abs(count - n * p) < 5 * math.sqrt(n * p * (1 - p)) for count in counts)
    for family in (0, 1):  # their members too
        each = omega.split(score_aug.sizes, dim=1)[family].sum(0)
        q = p / len(each)
        assert (abs(each - n * q) < 5 * math.sqrt(n * q)).all()


@pytest.mark.parametrize(("transform", "low", "high"), [(Translate(0.25), -0.25, 0.25), (Brightness(3.0), -1.1, 1.1)])
def test_parameters_fill_their_range_and_stay_in_it(transform, low, high):
    g = generator()
    omega = torch.cat([transform.draw((16, 16), g) for _ in range(500)])
    assert ((omega >= low) & (omega <= high)).all()
    assert omega.min() < 0.9 * low
    assert omega.max() > 0.9 * high
    assert abs(omega.mean()) < 5 * high / math.sqrt(3 * len(omega))


def test_boxes_lie_anywhere_in_the_volume_and_have_any_side_up_to_the_limit():
    drawn = members(Cutout(0.5), (1, 6, 8), draws=500)
    boxes = 1 - drawn(torch.ones(len(drawn.omega), 1, 6, 8))[:, 0]
    for axis, longest in ((1, 3), (2, 4)):
        sides = boxes.amax(dim=3 - axis).sum(1)
        assert set(sides.tolist()) == set(range(1, longest + 1))
    # Whole boxes, no less, and every voxel is in some of them.
    assert torch.equal(boxes.sum((1, 2)), boxes.amax(2).sum(1) * boxes.amax(1).sum(1))
    assert (boxes.amax(0) == 1).all()


# ---------------------------------------------------------------------------------------- what each one does


def apply(transform, x, *omega):
    return transform.apply(torch.tensor([x], dtype=torch.float64), numbers(*omega))[0].tolist()


PICTURE = [[1, 2, 3], [4, 5, 6]]


def test_flip():
    assert apply(Flip(), PICTURE, 1, 0) == [[4, 5, 6], [1, 2, 3]]
    assert apply(Flip(), PICTURE, 0, 1) == [[3, 2, 1], [6, 5, 4]]


def test_translate():
    assert apply(Translate(), PICTURE, 0, 1 / 3) == [[0, 1, 2], [0, 4, 5]]
    assert apply(Translate(), PICTURE, -0.5, -2 / 3) == [[6, 0, 0], [0, 0, 0]]


def test_cutout():
    assert apply(Cutout(), PICTURE, 0.5, 1 / 3, 0.5, 2 / 3) == [[1, 2, 3], [4, 0, 0]]


def test_brightness_scales_its_channels_alone():
    x = normals(3, 2, 2)
    assert torch.equal(Brightness(channels=[2]).apply(x, numbers(math.log(2.0)))[:2], x[:2])
    torch.testing.assert_close(Brightness(channels=[2]).apply(x, numbers(math.log(2.0)))[2], 2 * x[2])
    torch.testing.assert_close(Brightness().apply(x, numbers(math.log(2.0))), 2 * x)


def test_quarter_turns_of_every_plane():
    """A turn by k quarters takes the voxel (i, j) of its plane as a rotation takes a point."""
    n, transform = 3, QuarterTurn()
    x = normals(1, n, n, n)
    for plane, (a, b) in enumerate(combinations(range(3), 2)):
        for k in (1, 2, 3):
            turned = transform.apply(x, (torch.arange(9) == 3 * plane + k - 1).double())
            for index in ((0, 0, 0), (0, 1, 2), (2, 1, 1)):
                point = list(index)
                for _ in range(k):
                    point[a], point[b] = n - 1 - point[b], point[a]
                assert turned[(0, *point)] == x[(0, *index)]


def test_a_plane_with_different_sides_is_turned_by_180_degrees_only():
    transform = QuarterTurn(planes=[(0, 1)])
    g = generator()
    drawn = {tuple(transform.draw((4, 3), g).tolist()) for _ in range(20)}
    assert drawn == {(0, 1, 0)}
    assert apply(transform, PICTURE, 0, 1, 0) == [[6, 5, 4], [3, 2, 1]]
    with pytest.raises(ValueError, match=r"axes 0 and 1 of a volume \(2, 3\) differ in length"):
        apply(transform, PICTURE, 1, 0, 0)


def test_turns_stay_in_the_planes_they_were_given():
    transform = QuarterTurn(planes=[(1, 2)])
    assert transform.features(3) == 3
    t = members(transform, (1, 3, 3, 3))
    x = normals(len(t.omega), 1, 3, 3, 3)
    torch.testing.assert_close(t(x).sum((3, 4)), x.sum((3, 4)), rtol=0, atol=1e-14)


def test_a_label_moves_with_its_image_and_keeps_its_classes():
    """A permutation of voxels keeps one-hot channels one-hot; what a shift leaves empty has no class."""
    classes = torch.randint(3, (1, 4, 4, 4), generator=generator())
    image = classes[:, None].double() + 1
    state = torch.cat([image, torch.nn.functional.one_hot(classes, 3).movedim(-1, 1).double()], dim=1)
    for transform in (Flip(), QuarterTurn(), Translate(0.5), Cutout(), Brightness(channels=[0])):
        t = members(transform, (4, 4, 4, 4))
        moved = t(state.expand(len(t.omega), -1, -1, -1, -1))
        image, label = moved[:, 0], moved[:, 1:]
        has_class = label.sum(1)
        if isinstance(transform, Brightness):
            assert torch.equal(label, state[:, 1:].expand_as(label))
        else:
            assert torch.equal(image, (label.argmax(1) + 1) * has_class)
        lossy = isinstance(transform, (Translate, Cutout))
        assert bool((has_class == 1).all()) != lossy


# ---------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Translate(1.0), "between 0 and 1"),
        (lambda: Brightness(1.0), "a factor above 1"),
        (lambda: Cutout(0.0), "a part of the length"),
        (lambda: ScoreAug([Flip()], 3).draw((2, 1, 4, 4), generator()), "3 spatial dimensions"),
        (lambda: ScoreAug([QuarterTurn()], 1).draw((20, 1, 4), generator()), "no plane to turn"),
        (lambda: Augmentation(ScoreAug([Flip()]), torch.zeros(2, 4)), r"shape \(2, 4\), expected \(batch, 3\)"),
        (lambda: Augmentation(ScoreAug([Flip(), Translate()], 1), torch.ones(1, 2)), "names several"),
        (lambda: Augmentation(ScoreAug([Flip()], 1), torch.ones(2, 1))(torch.ones(3, 1, 4)), "a batch of 2"),
    ],
)
def test_errors_say_what_was_wrong(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# ---------------------------------------------------------------------------------------- the optimum of training

SMALL = (1, 2, 2, 2)
N = math.prod(SMALL)


def gaussian():
    """A dense covariance and a mean."""
    vectors = torch.linalg.qr(normals(N, N, seed=1)).Q.T.reshape(N, *SMALL)
    return Gaussian(normals(*SMALL, seed=2), LowRankCovariance(vectors, torch.linspace(0.2, 2, N).double(), 0.0))


class Linear(Denoiser):
    """D(x) = K x + b, told of a transform it does not look at."""

    def __init__(self, path, parameters):
        super().__init__(path)
        self.k, self.b = parameters[: N * N].reshape(N, N), parameters[N * N :]

    def forward(self, x, t, cond):
        self.cond = cond
        return (x.flatten(1) @ self.k.T + self.b).reshape(x.shape)


def trained(path, t, transform, omega):
    """The linear denoiser with the least loss: one Newton step, since the loss is quadratic.

    The expectation over signal and noise is a mean over 4 N points, exact for quadratics.
    """
    n = 2 * N
    points = math.sqrt(n) * torch.cat([torch.eye(n).double(), -torch.eye(n).double()])
    signal, noise = (part.reshape(-1, *SMALL) for part in points.chunk(2, dim=1))
    x0 = gaussian().sample(signal, EDM(), numbers(0.0)[0])
    augmentation = Augmentation(ScoreAug([transform]), omega.expand(len(x0), -1))

    def loss(parameters):
        return denoising_loss(Linear(path, parameters), x0, t, noise, EDMWeight(), augmentation).mean()

    start = torch.zeros(N * N + N, dtype=torch.float64)
    gradient = torch.autograd.functional.jacobian(loss, start)
    hessian = torch.autograd.functional.hessian(loss, start)
    return Linear(path, -torch.linalg.pinv(hessian, rtol=1e-10, hermitian=True) @ gradient)


@pytest.mark.parametrize("path", [EDM(), VP()], ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("transform", INVERTIBLE, ids=by_name)
def test_training_with_an_invertible_transform_finds_its_conjugate_of_the_denoiser(path, transform):
    t = path.time(numbers(0.8))[0]
    exact = GaussianDenoiser(path, gaussian())
    y = normals(5, *SMALL, seed=9)
    for omega in members(transform, SMALL).omega[:2]:
        model = trained(path, t, transform, omega)
        augmentation = Augmentation(ScoreAug([transform]), omega.expand(5, -1))
        expected = augmentation(exact(augmentation.inverse()(y), t))
        torch.testing.assert_close(model(y, t, None), expected, rtol=0, atol=1e-8)
        assert (exact(y, t) - expected).abs().max() > 1e-2


def test_training_with_a_cutout_finds_what_the_rest_of_the_volume_tells():
    path, t, cutout = EDM(), numbers(0.8)[0], Cutout()
    omega = numbers(0, 0, 0, 1, 1, 0.5)
    x = normals(5, *SMALL, seed=9)
    cut = Augmentation(ScoreAug([cutout]), omega.expand(5, -1))
    model, data = trained(path, t, cutout, omega), gaussian()

    kept = cut(torch.ones(5, *SMALL, dtype=torch.float64))[0].flatten().bool()
    assert kept.sum() == N // 2
    covariance = data.covariance.apply(lambda v: v, torch.eye(N, dtype=torch.float64).reshape(N, *SMALL)).flatten(1)
    c, m = covariance[kept][:, kept], data.mean.flatten()[kept]
    expected = m + (x.flatten(1)[:, kept] - m) @ torch.linalg.inv(c + 0.8**2 * torch.eye(N // 2)) @ c
    found = model(cut(x), t, None).flatten(1)
    torch.testing.assert_close(found[:, kept], expected, rtol=0, atol=1e-8)
    assert found[:, ~kept].abs().max() < 1e-8
    assert (cut(GaussianDenoiser(path, data)(x, t)).flatten(1)[:, kept] - expected).abs().max() > 1e-2


def test_the_identity_alone_is_plain_denoising_bit_for_bit():
    class Told(Denoiser):
        def forward(self, x, t, cond=None):
            self.cond = cond
            return torch.tanh(x)

    denoiser, score_aug = Told(VP()), ScoreAug(FAMILIES)
    x0, noise, t = normals(4, *SHAPE), normals(4, *SHAPE, seed=1), numbers(0.1, 0.3, 0.6, 1.0)
    plain = denoising_loss(denoiser, x0, t, noise, EDMWeight())
    assert denoiser.cond is None
    identity = Augmentation(score_aug, torch.zeros(4, score_aug.features, dtype=torch.float64))
    assert torch.equal(denoising_loss(denoiser, x0, t, noise, EDMWeight(), identity), plain)
    assert torch.equal(denoiser.cond, torch.zeros(4, score_aug.features, dtype=torch.float64))
    assert not ScoreAug([]).draw((4, *SHAPE), generator()).omega.numel()
    drawn = score_aug.draw((4, *SHAPE), generator())
    assert not torch.equal(denoising_loss(denoiser, x0, t, noise, EDMWeight(), drawn), plain)
    assert torch.equal(denoiser.cond, drawn.omega)
