"""Images: characters drawn in many typefaces, more or less shifted, and the networks that look at them."""

import math
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

DIGITS = "0123456789"
LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
# Files in matplotlib's font folder, so that every machine draws from the same typefaces.
TYPEFACES = """DejaVuSans DejaVuSerif STIXGeneral cmr10 DejaVuSans-Bold DejaVuSans-Oblique DejaVuSansMono
DejaVuSansMono-Bold DejaVuSerif-Bold DejaVuSerif-Italic STIXGeneralBol STIXGeneralItalic STIXGeneralBolIta
cmb10 cmss10 cmtt10""".split()
SOURCE_TYPEFACES = TYPEFACES[:4]


def draw_atlas(characters: str) -> torch.Tensor:
    """Every character in every typeface, centred: (typefaces, characters, 48, 48) in [0, 1], ink = 1."""
    import matplotlib  # for its font files only
    from PIL import Image, ImageDraw, ImageFont

    atlas = np.zeros((len(TYPEFACES), len(characters), 48, 48), dtype=np.float32)
    for i, typeface in enumerate(TYPEFACES):
        font = ImageFont.truetype(f"{matplotlib.get_data_path()}/fonts/ttf/{typeface}.ttf", size=42)
        for j, character in enumerate(characters):
            left, top, right, bottom = font.getbbox(character)
            corner = (24 - (left + right) / 2, 24 - (top + bottom) / 2)
            image = Image.new("L", (48, 48))
            ImageDraw.Draw(image).text(corner, character, fill=255, font=font)
            atlas[i, j] = np.asarray(image, dtype=np.float32) / 255
    return torch.from_numpy(atlas)


def render(characters: str, y, severity, generator) -> torch.Tensor:
    """characters[y], y (N,), at severity () or (N,) in [0, 1] as images (N, 1, 28, 28) in [0, 1].

    At 0: a source typeface, turned by up to 15 degrees, scaled by .75 to 1.1, shifted by up to 2 pixels. With
    severity grow: the share of other typefaces, rotation (to 40 degrees), a second character reaching in
    from the border, loss of contrast, noise (deviation to .5), and the share of inverted images (to 1/2).
    """

    def uniform(shape, low, high):
        return low + (high - low) * torch.rand(shape, generator=generator)

    atlas, images = draw_atlas(characters), []
    severity = torch.as_tensor(severity, dtype=torch.float32).expand(len(y))
    for character, s in zip(y.split(2000), severity.split(2000)):  # in pieces, to keep memory small
        n = len(character)
        source = torch.randint(len(SOURCE_TYPEFACES), (n,), generator=generator)
        other = torch.randint(len(TYPEFACES), (n,), generator=generator)
        typeface = torch.where(uniform(n, 0, 1) < s, other, source)
        angle, size = uniform(n, -1, 1) * (15 + 25 * s), uniform(n, 0.75, 1.1)
        image = paste(atlas[typeface, character], angle, size, uniform((n, 2), -2, 2))

        neighbour = torch.randint(atlas.shape[1], (n,), generator=generator)
        direction = uniform(n, 0, 2 * math.pi)
        offset = torch.stack([direction.cos(), direction.sin()], dim=1) * uniform((n, 1), 13, 17)
        clutter = paste(atlas[typeface, neighbour], uniform(n, -40, 40), uniform(n, 0.75, 1.1), offset)
        s = s[:, None, None, None]
        image = torch.maximum(image, clutter * (uniform(s.shape, 0, 1) < 2 * s))

        image = image * (1 - s * uniform(s.shape, 0, 0.7))
        image = image + torch.randn(image.shape, generator=generator) * (s * uniform(s.shape, 0, 0.5))
        image = torch.where(uniform(s.shape, 0, 1) < s / 2, 1 - image, image)
        images.append(image.clamp(0, 1))
    return torch.cat(images)


def on_stripes(x, direction) -> torch.Tensor:
    """Images (N, 1, 28, 28) on grey stripes, 7 pixels apart, turned by direction (N,) times 18 degrees."""
    angle, at = direction[:, None, None, None] * (math.pi / 10), torch.arange(28.0)
    phase = angle.cos() * at + angle.sin() * at[:, None]
    return torch.maximum(x, 0.25 + 0.25 * (phase * (2 * math.pi / 7)).sin())


def paste(glyphs, angle, size, offset) -> torch.Tensor:
    """Glyphs (N, 48, 48), turned by angle (N,) degrees, scaled by size (N,) where 1 fills the image, moved by
    offset (N, 2) pixels -> images (N, 1, 28, 28)."""
    cos, sin = angle.deg2rad().cos() / size, angle.deg2rad().sin() / size
    # affine_grid maps output to input, so this is the inverse: undo the offset, then turn back and shrink.
    turn = torch.stack([cos, sin, -sin, cos], dim=1).view(-1, 2, 2)
    shift = -turn @ (offset / 14)[:, :, None]
    # Drawn at twice the resolution and averaged, so that thin strokes do not break.
    grid = F.affine_grid(torch.cat([turn, shift], dim=2), [len(glyphs), 1, 56, 56], align_corners=False)
    return F.avg_pool2d(F.grid_sample(glyphs[:, None], grid, align_corners=False), 2)


def frame(pixels: torch.Tensor) -> torch.Tensor:
    """Grey images (N, H, W) in 0..255 -> (N, 1, 28, 28) in [0, 1]: the ink's box centred, its longer side 20.

    MNIST leaves a margin, USPS none: without this the shift between them would mostly be one of framing.
    """
    n, height, width = pixels.shape
    pixels = pixels.float()[:, None] / 255
    ink = pixels[:, 0] > 0.2

    def extent(inked):  # bool (N, L) -> centre and length of the inked stretch, (N,) each, in pixels
        first = inked.float().argmax(1)
        end = inked.shape[1] - inked.flip(1).float().argmax(1)
        return (first + end) / 2, (end - first).float()

    (y, box_height), (x, box_width) = extent(ink.any(2)), extent(ink.any(1))
    shown = torch.maximum(box_height, box_width) * 28 / 20  # input pixels across the output
    zero = torch.zeros(n)
    place = [shown / width, zero, 2 * x / width - 1, zero, shown / height, 2 * y / height - 1]
    grid = F.affine_grid(torch.stack(place, dim=1).view(n, 2, 3), [n, 1, 28, 28], align_corners=False)
    return F.grid_sample(pixels, grid, align_corners=False)


def linear_net(num_classes, inputs=28 * 28):
    return nn.Sequential(nn.Flatten(), nn.Linear(inputs, num_classes))


def mlp_net(num_classes, inputs=28 * 28):
    return nn.Sequential(nn.Flatten(), nn.Linear(inputs, 128), nn.ReLU(), nn.Linear(128, num_classes))


def cnn_net(num_classes, _):
    first = nn.Conv2d(1, 16, 5, stride=2, padding=2), nn.ReLU()
    second = nn.Conv2d(16, 32, 5, stride=2, padding=2), nn.ReLU()
    return nn.Sequential(*first, *second, nn.Flatten(), nn.Linear(32 * 7 * 7, num_classes))


def convolution(inputs, outputs, stride=1):
    return nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False), nn.BatchNorm2d(outputs)


def photo_net(num_classes, _):
    """Images (N, 3, H, W) of any size -> (N, C)."""
    layers = [(*convolution(i, o, stride=2), nn.ReLU()) for i, o in ((3, 16), (16, 32), (32, 64), (64, 64))]
    return nn.Sequential(*sum(layers, ()), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, num_classes))


class ResidualBlock(nn.Module):
    """He et al. 2016: `as_published` the shortcut is normalised, and a convolution only between shapes."""

    def __init__(self, inputs, channels, stride, as_published=False):
        super().__init__()
        self.conv1, self.norm1 = convolution(inputs, channels, stride)
        self.conv2, self.norm2 = convolution(channels, channels)
        self.skip = nn.Conv2d(inputs, channels, 1, stride, bias=False)
        if as_published:
            normalised = nn.Sequential(self.skip, nn.BatchNorm2d(channels))
            self.skip = nn.Identity() if inputs == channels else normalised

    def forward(self, x):
        return F.relu(self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x))))) + self.skip(x))


def residual_net(width: int, num_classes: int):
    """Images (N, 1, 28, 28) -> features (N, 16 * width), the last map averaged 2 x 2 -> (N, C)."""
    stem, sizes = convolution(1, width, stride=2), ((1, 1, 1), (1, 2, 2), (2, 4, 2))
    blocks = [ResidualBlock(width * inputs, width * outputs, stride) for inputs, outputs, stride in sizes]
    last = nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16 * width, num_classes)
    return nn.Sequential(*stem, nn.ReLU(), *blocks, *last)


def normalize():
    """How networks for CIFAR-100 start: images (N, 3, 32, 32), uint8 or in [0, 1]."""
    from torchvision.transforms import v2  # here, as its import takes a second

    means, deviations = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)  # of CIFAR-100's training images
    return v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize(means, deviations)])


def resnet(depth: int, num_classes: int):
    """ResNet20, 32, 56, ...: three stages with 16, 32 and 64 channels."""
    stem = [normalize(), *convolution(3, 16), nn.ReLU()]
    widths = [channels for channels in (16, 32, 64) for _ in range((depth - 2) // 6)]
    blocks = [ResidualBlock(i, o, o // i, as_published=True) for i, o in zip([16, *widths], widths)]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, num_classes))


def vgg(convolutions: int, num_classes: int):
    """VGG8 and VGG13: five stages of 1 or 2 convolutions, the first three halved, the last averaged."""
    from torchvision.models.vgg import make_layers

    stages = [[width] * convolutions + ["M"] * (width < 512) for width in (64, 128, 256, 512, 512)]
    layers = normalize(), *make_layers(sum(stages, []), batch_norm=True), nn.AdaptiveAvgPool2d(1)
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(512, num_classes))


# Whole networks by name, num_classes -> network; [:-1] are its features, [-1] is linear.
NETWORKS = {
    "narrow CNN": partial(residual_net, 8),
    "residual CNN": partial(residual_net, 16),
    "letters CNN": partial(residual_net, 24),
    "resnet20": partial(resnet, 20),
    "resnet56": partial(resnet, 56),
    "vgg8": partial(vgg, 1),
    "vgg13": partial(vgg, 2),
}
