"""What a camera sees of a scene: which surface each ray meets, and in which colour."""

from __future__ import annotations

import functools
import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from unflicker.data.scenes.base import FACES, FLOOR, NEAR, Part, Scene, View

FINE = 3  # samples per pixel along each axis, where a pixel sees more than one surface
# How wide a texel of the level that is looked up is, in pixels. To interpolate between texels and levels blurs by
# itself: at 1 frames are softer than the mean of many rays, at 0.5 they are not, but then what is fine crawls.
SHARP = 0.7


def pixels(n: int, fine: int) -> Tensor:
    """The places of n * fine samples along an axis, in pixels from the middle."""
    return (torch.arange(n * fine, dtype=torch.float64) + 0.5).div(fine).sub(n / 2).float()


def cast(scene: Scene, view: View, size: tuple[int, int], focal: float, fine: int) -> tuple[Tensor, Tensor]:
    """Return what each ray meets first: depth along the optical axis in metres, and the surface's number.

    Both are (H * fine, W * fine), for `size` (H, W) pixels with `fine` x `fine` rays each, `focal` in pixels. The depth
    is inf in the sky.

    >>> from unflicker.data.scenes.base import BALL, Light, Part, Path, Scene, Textures
    >>> ball = Part("ball", (1.0, 1.0, 1.0), Path((0.0, 0.0, 4.0)), (BALL,) * 6)
    >>> scene = Scene([ball], Textures([torch.ones(3, 1, 1)]), Light((0.0, 0.0, 9.0)), lambda tau: np.eye(4))
    >>> depth, surface = cast(scene, scene.view(np.eye(4), 0.0), (3, 3), 2.0, 1)
    >>> depth[1].tolist(), scene.labels[surface[1, 1]].item() == BALL
    ([inf, 3.0, inf], True)
    """
    height, width = size[0] * fine, size[1] * fine
    x, y = pixels(size[1], fine) / focal, (pixels(size[0], fine) / focal)[:, None]
    depth = torch.full((height, width), torch.inf)
    surface = torch.full((height, width), FACES * len(scene.parts))
    boxes = _outlines(scene, view, size, focal, fine)
    for i, (left, right, top, bottom) in enumerate(boxes):
        if left >= right or top >= bottom:
            continue
        here = (slice(top, bottom), slice(left, right))
        met, face = _meet(scene.parts[i], view.turn[i].tolist(), view.shift[i].tolist(), x[left:right], y[top:bottom])
        nearer = met < depth[here]
        depth[here] = torch.where(nearer, met, depth[here])
        surface[here] = torch.where(nearer, face + FACES * i, surface[here])
    return depth, surface


def motion(now: View, then: View, depth: Tensor, surface: Tensor, focal: float) -> Tensor:
    """Return the way of what `cast` met with one sample per pixel to another time: (2, H, W) pixels along x and y.

    In the sky it is that of infinitely far points. What is behind the camera then is led far away.
    """
    height, width = depth.shape
    # From the camera now, by the frame of the part, in which its points rest, to the camera then.
    back = np.swapaxes(then.turn, 1, 2)
    parts = np.concatenate([back @ now.turn, back @ (now.shift - then.shift)[..., None]], 2)
    sky = np.concatenate([then.pose[:3, :3].T @ now.pose[:3, :3], np.zeros((3, 1))], 1)  # infinitely far: only turned
    table = torch.from_numpy(np.concatenate([parts, sky[None]]))
    x, y = pixels(width, 1).double(), pixels(height, 1).double()[:, None]
    reach = torch.where(depth == torch.inf, 1.0, depth.double())
    points = torch.stack([x / focal * reach, y / focal * reach, reach, torch.ones_like(reach)], -1)
    there = (table[surface // FACES] @ points[..., None])[..., 0]
    moved = focal * there[..., :2] / there[..., 2:].clamp_min(NEAR)
    return torch.stack([moved[..., 0] - x, moved[..., 1] - y]).float()


def _outlines(scene: Scene, view: View, size: tuple[int, int], focal: float, fine: int) -> list[list[int]]:
    """Return the samples (left, right, top, bottom) among which each part lies; none if it is not in the frame."""
    signs = np.array(np.meshgrid([-1, 1], [-1, 1], [-1, 1])).reshape(3, 8).T
    corners = signs * scene.half[:, None] - view.shift[:, None]
    seen = corners @ view.turn  # the inverse of a turn is its transpose
    z = seen[..., 2]
    hidden, whole = (z <= NEAR).all(1), (z <= NEAR).any(1)
    for axis, n in ((0, size[1]), (1, size[0])):  # also what is beside the camera may lie on one side of the view
        side, border = seen[..., axis] * focal, z * n / 2
        hidden |= (side > border).all(1) | (side < -border).all(1)
    edges = []
    for axis, n in ((0, size[1]), (1, size[0])):
        place = (seen[..., axis] / np.maximum(z, NEAR) * focal + n / 2) * fine
        low = np.where(whole, 0, np.floor(place.min(1))).clip(0, n * fine)
        high = np.where(whole, n * fine, np.ceil(place.max(1)) + 1).clip(0, n * fine)
        edges += [low, np.where(hidden, 0, high)]
    return np.stack(edges, 1).astype(int).tolist()


def _meet(part: Part, turn: list[list[float]], shift: list[float], x: Tensor, y: Tensor) -> tuple[Tensor, Tensor | int]:
    """Return where the rays (x, y, 1), of x (w,) and y (h, 1), enter a part, inf where they do not, and by which face.

    All parts but the shell are convex, so a ray enters where it has entered all of the slabs and tubes that bound it.
    """
    rays = [a * x + (b * y + c) for a, b, c in turn]
    half = part.half
    if part.kind == "ball":
        enter, leave = _tube(rays, shift, half, (0, 1, 2))
        return torch.where((enter < leave) & (enter > NEAR), enter, torch.inf), 0
    if part.kind == "shell":
        ends = [_slab(rays[i], shift[i], half[i])[1] for i in range(3)]
        met = torch.minimum(torch.minimum(ends[0], ends[1]), ends[2])
        # The outward normal of the wall that is hit points along the ray.
        face = torch.where(
            met == ends[0],
            (rays[0] > 0).long(),
            torch.where(met == ends[1], 2 + (rays[1] > 0).long(), 4 + (rays[2] > 0).long()),
        )
        return met, face
    axes = (0, 1, 2) if part.kind == "box" else (2,)
    slabs = [_slab(rays[i], shift[i], half[i]) for i in axes]
    if part.kind == "cylinder":
        slabs = [_tube(rays, shift, half, (0, 1)), *slabs]
    enter, leave = slabs[0]
    for begin, end in slabs[1:]:
        enter, leave = torch.maximum(enter, begin), torch.minimum(leave, end)
    met = torch.where((enter < leave) & (enter > NEAR), enter, torch.inf)
    # From outside, one face of each axis can be seen: that on the camera's side.
    sides = [2 * i + int(shift[i] > 0) for i in range(3)]
    if part.kind == "cylinder":
        return met, torch.where(enter == slabs[0][0], 0, sides[2])
    return met, torch.where(enter == slabs[0][0], sides[0], torch.where(enter == slabs[1][0], sides[1], sides[2]))


def _slab(ray: Tensor, shift: float, half: float) -> tuple[Tensor, Tensor]:
    inverse = ray.reciprocal().clamp_(-1e12, 1e12)  # a ray along the slab is in it for as good as ever, or never
    middle, reach = inverse * -shift, inverse.abs() * half
    return middle - reach, middle + reach


def _tube(
    rays: list[Tensor], shift: list[float], half: tuple[float, float, float], axes: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    """Where rays enter and leave the unit ball of some axes; NaN, which compares as false, where they pass by."""
    scaled, start = [rays[i] / half[i] for i in axes], [shift[i] / half[i] for i in axes]
    length = functools.reduce(torch.add, [ray.square() for ray in scaled]).clamp_min_(1e-12)
    middle = functools.reduce(torch.add, [ray * -s for ray, s in zip(scaled, start, strict=True)]) / length
    # How far the ray passes from the centre: by its nearest point, for b^2 - a c cancels when the ball is far.
    passes = functools.reduce(
        torch.add,
        [torch.addcmul(torch.full((), s), middle, ray).square() for ray, s in zip(scaled, start, strict=True)],
    )
    reach = ((1 - passes) / length).sqrt()
    return middle - reach, middle + reach


def picture(scene: Scene, view: View, size: tuple[int, int], focal: float) -> Tensor:
    """Return a frame (3, H, W) in [0, 1]: one colour a pixel inside a surface, FINE x FINE averaged on the outlines."""
    height, width = size
    depth, surface = (
        each.view(height, FINE, width, FINE).permute(0, 2, 1, 3).reshape(height * width, FINE * FINE)
        for each in cast(scene, view, size, focal, FINE)
    )
    centre = FINE * FINE // 2
    mixed = (surface != surface[:, centre : centre + 1]).any(1)
    inside, outline = (~mixed).nonzero()[:, 0], mixed.nonzero()[:, 0]
    x, y = pixels(width, FINE).view(width, FINE), pixels(height, FINE).view(height, FINE)
    fine_x, fine_y = x[outline % width].repeat(1, FINE), y[outline // width].repeat_interleave(FINE, 1)

    def both(at_centre: Tensor, at_all: Tensor) -> Tensor:
        return torch.cat([at_centre, at_all.flatten()])

    colours = _colours(
        scene,
        view,
        both(x[inside % width, FINE // 2], fine_x) / focal,
        both(y[inside // width, FINE // 2], fine_y) / focal,
        both(depth[inside, centre], depth[outline]),
        both(surface[inside, centre], surface[outline]),
        1 / focal,
    )
    frame = torch.empty(height * width, 3)
    frame[inside] = colours[: len(inside)]
    frame[outline] = colours[len(inside) :].view(-1, FINE * FINE, 3).mean(1)
    return frame.T.reshape(3, height, width).clamp_(0, 1)


def _colours(scene: Scene, view: View, x: Tensor, y: Tensor, depth: Tensor, surface: Tensor, pixel: float) -> Tensor:
    """Return the colours (n, 3) of points on surfaces, seen along (x, y, 1) by pixels of this size at depth 1."""
    colours = torch.empty(len(x), 3)
    rays = torch.stack([x, y, torch.ones_like(x)], 1)
    sky = surface >= FACES * len(scene.parts)
    solid, open_ = (~sky).nonzero()[:, 0], sky.nonzero()[:, 0]
    colours[open_] = _sky(scene, view, rays[open_], pixel)
    colours[solid] = _solid(scene, view, rays[solid], depth[solid], surface[solid], pixel)
    return colours


def _solid(scene: Scene, view: View, rays: Tensor, depth: Tensor, surface: Tensor, pixel: float) -> Tensor:
    light = scene.light
    part, face = surface // FACES, surface % FACES
    axis = face // 2
    geometry = torch.from_numpy(np.concatenate([view.turn.reshape(-1, 9), view.shift, view.lamp, view.up], 1)).float()
    turn, shift, lamp, up = geometry[part].split([9, 3, 3, 3], 1)
    half, tile, offset, repeats, inner = scene.looks[part].split([3, 1, 2, 1, 1], 1)
    tile, repeats = tile[:, 0], repeats[:, 0]
    along = (turn.view(-1, 3, 3) * rays[:, None]).sum(2)  # the ray in the part's frame
    point = torch.addcmul(shift, along, depth[:, None])
    curved = scene.curved[part] & (face == 0)
    ball = scene.round[part]
    # Normals.
    flat = F.one_hot(axis, 3) * (2 * (face % 2) - 1)[:, None]
    flat = torch.where(inner > 0, -flat, flat).float()
    bent = point / half.square()
    bent = torch.cat([bent[:, :2], bent[:, 2:] * ball[:, None]], 1)
    normal = torch.where(curved[:, None], F.normalize(bent, dim=1), flat)
    # Where in the texture, in repeats of it, and how many of them a pixel covers at most.
    px, py, pz = point.unbind(1)
    around = torch.atan2(py, px) / (2 * math.pi) * repeats
    u = torch.where(curved, around, torch.where(axis == 0, py, px) / tile) + offset[:, 0]
    v = torch.where(curved | (axis < 2), -pz, py) / tile + offset[:, 1]
    length = along.norm(dim=1)
    slant = ((normal * along).sum(1).abs() / length).clamp_min(0.03)
    covers = SHARP * pixel * depth * length / slant / tile
    pole = (1 - (pz / half[:, 2]).square()).clamp_min(1e-3).rsqrt()  # meridians draw together
    covers = torch.where(ball, covers * pole, covers)
    paint = scene.textures.at(scene.texture_of[surface], u, v, covers)
    # Light: what comes from everywhere, more from above, and one lamp.
    to_lamp = lamp - point
    distance = to_lamp.norm(dim=1)
    lit = ((to_lamp * normal).sum(1) / distance).clamp_min(0)
    if math.isfinite(light.fades):
        lit = lit / (1 + (distance / light.fades).square())
    bright = light.ambient * (0.8 + 0.2 * (normal * up).sum(1)) + light.direct * lit
    bright = bright * _shade(scene, view, rays, depth, surface, point, half, inner[:, 0])
    colour = paint * bright[:, None]
    haze = 1 - torch.exp(-light.density * depth * rays.norm(dim=1))
    return torch.lerp(colour, torch.tensor(light.haze), haze[:, None])


def _shade(
    scene: Scene,
    view: View,
    rays: Tensor,
    depth: Tensor,
    surface: Tensor,
    point: Tensor,
    half: Tensor,
    inner: Tensor,
) -> Tensor:
    """How much of the light gets to a point: less in the corners of a room, and on the floor under things."""
    gap = (half - point.abs()).sort(1).values[:, 1]  # to the nearer of the two other walls; its own is at 0
    open_ = 1 - 0.4 * inner * torch.exp(-gap / 0.35)
    floor = (scene.labels[surface] == FLOOR).nonzero()[:, 0]
    if len(floor) and len(view.shadows):
        pose = torch.from_numpy(view.pose).float()
        where = (rays[floor] * depth[floor, None]) @ pose[:2, :3].T + pose[:2, 3]
        spots = torch.from_numpy(view.shadows).float()
        gaps = (where[:, None] - spots[None, :, :2]).square().sum(2) / (1.3 * spots[:, 2] + 0.05).square()
        open_[floor] *= (1 - 0.45 * torch.exp(-gaps * gaps)).prod(1)
    return open_


def _sky(scene: Scene, view: View, rays: Tensor, pixel: float) -> Tensor:
    """Clouds on a plane infinitely far above, which fade into the haze towards the horizon."""
    light = scene.light
    world = F.normalize(rays, dim=1) @ torch.from_numpy(view.pose[:3, :3]).float().T
    rise = world[:, 2].clamp_min(0) + 0.12
    u, v = (0.12 * world[:, i] / rise for i in (0, 1))
    clouds = scene.textures.at(torch.full((len(u),), light.sky), u, v, 0.12 * pixel / rise.square())
    return torch.lerp(torch.tensor(light.haze), clouds, (1 - torch.exp(-world[:, 2].clamp_min(0) / 0.15))[:, None])
