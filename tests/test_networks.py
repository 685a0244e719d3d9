"""Networks as people write them, in plain torch: each captured once, then run everywhere at several sizes.

The reference is the module itself in float64; how far a backend may be from it is `zoo.tolerances`' to say, by what
torch's own float32 run is off.
"""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from modules import Arrays, expected, floats, seeded
from tolerances import GRADIENT, GRADIENT_FLOOR, SMALLEST_STD
from torch import nn
from torch.nn import functional as F

import zoo
from zoo.arrays import to_numpy
from zoo.errors import CaptureError
from zoo.model import Package
from zoo.tolerances import tolerance

BACKENDS = ("numpy", "torch", "jax", "tensorflow", "keras", "native")
Tensor = torch.Tensor


def conv(c_in: int, c_out: int, kernel: int = 3, stride: int = 1, groups: int = 1, act: Any = nn.ReLU) -> nn.Sequential:
    padding = kernel // 2
    body = nn.Conv2d(c_in, c_out, kernel, stride, padding, groups=groups, bias=False)
    return nn.Sequential(body, nn.BatchNorm2d(c_out), act())


class Residual(nn.Module):
    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class DropPath(nn.Module):
    """timm's stochastic depth: nothing in evaluation."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        return x * x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(0.9).div_(0.9)


def head(channels: int, classes: int = 5) -> nn.Sequential:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))


# In the manner of timm


def conv_mixer() -> nn.Module:
    def block() -> nn.Module:
        spatial = nn.Sequential(nn.Conv2d(8, 8, 5, groups=8, padding="same"), nn.GELU(), nn.BatchNorm2d(8))
        return nn.Sequential(Residual(spatial), nn.Conv2d(8, 8, 1), nn.GELU(), nn.BatchNorm2d(8))

    return nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.GELU(), nn.BatchNorm2d(8), block(), block(), head(8))


class SqueezeExcite(nn.Module):
    def __init__(self, channels: int, inner: Any = nn.SiLU, gate: Any = nn.Sigmoid) -> None:
        super().__init__()
        self.down, self.act = nn.Conv2d(channels, channels // 4, 1), inner()
        self.up, self.gate = nn.Conv2d(channels // 4, channels, 1), gate()

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(self.up(self.act(self.down(x.mean((2, 3), keepdim=True)))))


class MBConv(nn.Module):
    def __init__(self, c_in: int, c_out: int, stride: int, act: Any = nn.SiLU, gate: Any = nn.Sigmoid) -> None:
        super().__init__()
        inner = nn.ReLU if act is nn.Hardswish else act
        self.body = nn.Sequential(
            conv(c_in, 4 * c_in, 1, act=act),
            conv(4 * c_in, 4 * c_in, 5, stride, groups=4 * c_in, act=act),
            SqueezeExcite(4 * c_in, inner, gate),
            nn.Conv2d(4 * c_in, c_out, 1, bias=False),
            nn.BatchNorm2d(c_out),
            DropPath(),
        )
        self.skips = stride == 1 and c_in == c_out

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.skips else self.body(x)


def efficient_net() -> nn.Module:
    return nn.Sequential(conv(3, 8, 3, 2, act=nn.SiLU), MBConv(8, 8, 1), MBConv(8, 16, 2), nn.Dropout(0.2), head(16))


def mobile_net_v3() -> nn.Module:
    act, gate = nn.Hardswish, nn.Hardsigmoid
    stem = conv(3, 8, 3, 2, act=act)
    return nn.Sequential(stem, MBConv(8, 8, 1, act, gate), MBConv(8, 16, 2, act, gate), head(16))


class LayerScale(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.linspace(0.5, 1, width))

    def forward(self, x: Tensor) -> Tensor:
        return x.mul_(self.gamma)


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.qkv, self.proj = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        if bias is None:
            x = F.scaled_dot_product_attention(q, k, v)
        else:
            x = (q * (c // self.heads) ** -0.5 @ k.transpose(-2, -1) + bias).softmax(-1) @ v
        return self.proj(x.transpose(1, 2).reshape(b, n, c))


def mlp(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))


class VisionTransformer(nn.Module):
    """Positions are interpolated to the image's size, as in timm's dynamic_img_size."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, 4)
        self.cls_token = nn.Parameter(torch.randn(1, 1, 8))
        self.pos_embed = nn.Parameter(torch.randn(1, 8, 4, 4))
        self.blocks = nn.ModuleList(
            nn.Sequential(
                Residual(nn.Sequential(nn.LayerNorm(8), Attention(8, 2), LayerScale(8), DropPath())),
                Residual(nn.Sequential(nn.LayerNorm(8), mlp(8), LayerScale(8), DropPath())),
            )
            for _ in range(2)
        )
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x)
        x = x + F.interpolate(self.pos_embed, size=x.shape[-2:], mode="bicubic", antialias=True)
        x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x.flatten(2).mT], 1)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0])


class ShiftedWindows(nn.Module):
    """Two blocks of Swin: windows of 4 x 4, moved by 2 in the second, with relative positions and a mask."""

    def __init__(self, side: int = 8, window: int = 4) -> None:
        super().__init__()
        self.side, self.window = side, window
        self.patches, self.norms = nn.Conv2d(3, 8, 2, 2), nn.ModuleList(nn.LayerNorm(8) for _ in range(4))
        self.attentions, self.mlps = nn.ModuleList(Attention(8, 2) for _ in range(2)), nn.ModuleList((mlp(8), mlp(8)))
        self.table = nn.Parameter(torch.randn((2 * window - 1) ** 2, 2))
        grid = torch.stack(torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")).flatten(1)
        apart = (grid[:, :, None] - grid[:, None, :]).permute(1, 2, 0) + window - 1
        self.register_buffer("index", apart[..., 0] * (2 * window - 1) + apart[..., 1])
        regions = torch.zeros(1, side, side, 1)
        cuts = (slice(0, -window), slice(-window, -window // 2), slice(-window // 2, None))
        for number, (rows, columns) in enumerate((r, c) for r in cuts for c in cuts):
            regions[:, rows, columns] = number
        regions = self.windows(regions).squeeze(-1)
        mask = (regions[:, None] != regions[:, :, None]) * -100.0
        self.register_buffer("mask", mask, persistent=False)

    def windows(self, x: Tensor) -> Tensor:
        b, h, w, c = x.shape
        m = self.window
        return x.view(b, h // m, m, w // m, m, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, m * m, c)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).permute(0, 2, 3, 1)
        b, h, w, c = x.shape
        m = self.window
        bias = self.table[self.index.view(-1)].view(m * m, m * m, -1).permute(2, 0, 1)
        for number, (attention, feed) in enumerate(zip(self.attentions, self.mlps, strict=True)):
            y = self.norms[2 * number](x)
            shift = number * m // 2
            y = self.windows(torch.roll(y, (-shift, -shift), (1, 2)) if shift else y)
            scores = bias.unsqueeze(0)
            if shift:
                scores = scores + self.mask[:, None].repeat(b, 1, 1, 1)
            y = attention(y, scores).view(b, h // m, w // m, m, m, c).permute(0, 1, 3, 2, 4, 5).reshape(b, h, w, c)
            x = x + (torch.roll(y, (shift, shift), (1, 2)) if shift else y)
            x = x + feed(self.norms[2 * number + 1](x))
        return x.mean((1, 2))


class GlobalResponse(nn.Module):
    """ConvNeXt V2's, channels last."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma, self.beta = nn.Parameter(torch.randn(width)), nn.Parameter(torch.randn(width))

    def forward(self, x: Tensor) -> Tensor:
        norm = x.norm(p=2, dim=(1, 2), keepdim=True)
        return x + torch.addcmul(self.beta, self.gamma, x * (norm / (norm.mean(-1, keepdim=True) + 1e-6)))


class ConvNext(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.depthwise = nn.Conv2d(3, 8, 4, 4), nn.Conv2d(8, 8, 7, padding=3, groups=8)
        self.norm, self.grn = nn.LayerNorm(8, eps=1e-6), GlobalResponse(16)
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        return x + self.down(self.grn(F.gelu(self.up(y)))).permute(0, 3, 1, 2)


def mlp_mixer() -> nn.Module:
    class Across(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.mix = nn.LayerNorm(8), mlp(16)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.mix(self.norm(x).transpose(1, 2)).transpose(1, 2)

    patches = nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.Flatten(2), nn.Unflatten(1, (8, 1)))
    return nn.Sequential(patches, Merge(), Across(), Residual(nn.Sequential(nn.LayerNorm(8), mlp(8))))


class Merge(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.squeeze(2).mT


class Fourier(nn.Module):
    """FNet's mixing, and the spectral convolution of Fourier neural operators with complex weights."""

    def __init__(self) -> None:
        super().__init__()
        self.lift, self.weight = nn.Linear(3, 6), nn.Parameter(torch.randn(6, 6, 3, 2) * 0.3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.lift(x)
        mixed = torch.fft.fft2(x.to(torch.complex64 if x.dtype == torch.float32 else torch.complex128)).real
        modes = torch.fft.rfft(x.mT, norm="ortho")
        kept = torch.einsum("bim,iom->bom", modes[..., :3], torch.view_as_complex(self.weight))
        padded = F.pad(torch.view_as_real(kept), (0, 0, 0, modes.shape[-1] - 3))
        return torch.fft.irfft(torch.view_as_complex(padded), n=x.shape[1], norm="ortho").mT + mixed.tanh()


# In the manner of torchvision


def vgg() -> nn.Module:
    pool = nn.MaxPool2d(2, 2)
    body = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(True), pool, nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(True)
    )
    return nn.Sequential(
        body,
        pool,
        nn.AdaptiveAvgPool2d((3, 3)),
        nn.Flatten(1),
        nn.Linear(72, 12),
        nn.ReLU(True),
        nn.Dropout(),
        nn.Linear(12, 5),
    )


class DenseNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(nn.BatchNorm2d(c), nn.ReLU(inplace=True), nn.Conv2d(c, 4, 3, padding=1)) for c in (3, 7, 11)
        )
        self.transition = nn.Sequential(nn.Conv2d(15, 8, 1), nn.AvgPool2d(2, 2))

    def forward(self, x: Tensor) -> Tensor:
        features = [x]
        for layer in self.layers:
            features.append(layer(torch.cat(features, 1)))
        return self.transition(torch.cat(features, 1)).flatten(2).amax(-1)


class Inception(nn.Module):
    """Branches side by side, GoogLeNet's normalisation over channels, and a pool with ceil_mode."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.three = conv(3, 4, 1), nn.Sequential(conv(3, 4, 1), conv(4, 6, 3))
        self.wide = nn.Sequential(nn.Conv2d(3, 4, (1, 7), padding=(0, 3)), nn.Conv2d(4, 4, (7, 1), padding=(3, 0)))
        self.pooled = nn.Sequential(nn.AvgPool2d(3, 1, 1, count_include_pad=False), conv(3, 2, 1))
        self.norm, self.pool = nn.LocalResponseNorm(5, alpha=0.5), nn.MaxPool2d(3, 2, ceil_mode=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(self.norm(torch.cat([self.one(x), self.three(x), self.wide(x), self.pooled(x)], 1)))


class ShuffleNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.branch = conv(3, 8, 3, 2), nn.Sequential(conv(4, 4, 1), conv(4, 4, 3, groups=4), conv(4, 4, 1))

    def forward(self, x: Tensor) -> Tensor:
        still, moved = self.stem(x).chunk(2, dim=1)
        x = torch.cat((still, self.branch(moved)), 1)
        b, c, h, w = x.size()
        return x.view(b, 2, c // 2, h, w).transpose(1, 2).contiguous().view(b, -1, h, w)


class DeepLab(nn.Module):
    """Atrous convolutions side by side, one branch of the whole image, all at the input's size in the end."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 8, 3, 2)
        self.branches = nn.ModuleList(nn.Conv2d(8, 4, 3, padding=rate, dilation=rate) for rate in (1, 2, 4))
        self.whole = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 4, 1), nn.ReLU())
        self.classes = nn.Conv2d(16, 5, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y = self.stem(x)
        parts = [branch(y) for branch in self.branches]
        parts.append(F.interpolate(self.whole(y), size=y.shape[-2:], mode="bilinear", align_corners=False))
        y = self.classes(torch.cat(parts, 1))
        return {"out": F.interpolate(y, size=x.shape[-2:], mode="bilinear", align_corners=False), "aux": y.argmax(1)}


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2, self.pool = conv(3, 6), conv(6, 12), nn.MaxPool2d(2)
        self.up, self.merge = nn.ConvTranspose2d(12, 6, 2, 2), conv(12, 6)
        self.smooth = nn.ConvTranspose2d(6, 4, 3, 2, 1, output_padding=1, groups=2)

    def forward(self, x: Tensor) -> Tensor:
        first = self.down1(x)
        second = self.up(self.down2(self.pool(first)))
        rows, columns = first.shape[2] - second.shape[2], first.shape[3] - second.shape[3]
        second = F.pad(second, [columns // 2, columns - columns // 2, rows // 2, rows - rows // 2])
        return F.leaky_relu(self.smooth(self.merge(torch.cat([first, second], 1))), 0.2)


class PyramidDetector(nn.Module):
    """A feature pyramid from top to bottom, and RetinaNet's heads over all of its levels."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList((conv(3, 4, 3, 2), conv(4, 8, 3, 2), conv(8, 16, 3, 2)))
        self.lateral = nn.ModuleList(nn.Conv2d(c, 8, 1) for c in (4, 8, 16))
        self.classes, self.boxes = nn.Conv2d(8, 3 * 5, 3, padding=1), nn.Conv2d(8, 3 * 4, 3, padding=1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        levels = []
        for stage in self.stages:
            x = stage(x)
            levels.append(x)
        top = self.lateral[2](levels[2])
        pyramid = [top]
        for level, lateral in zip(levels[1::-1], (self.lateral[1], self.lateral[0]), strict=True):
            top = lateral(level) + F.interpolate(top, size=level.shape[-2:], mode="nearest")
            pyramid.insert(0, top)
        logits = [self.flat(self.classes(level), 5) for level in pyramid]
        return {
            "scores": torch.cat(logits, 1).sigmoid(),
            "boxes": torch.cat([self.flat(self.boxes(p), 4) for p in pyramid], 1).exp(),
        }

    def flat(self, x: Tensor, width: int) -> Tensor:
        n, _, h, w = x.shape
        return x.view(n, -1, width, h, w).permute(0, 3, 4, 1, 2).reshape(n, -1, width)


class OpticalFlow(nn.Module):
    """RAFT's parts: all pairs' correlation, lookup by sampling a grid, and a convex upsampling by unfold."""

    def __init__(self) -> None:
        super().__init__()
        self.features, self.update, self.mask = conv(3, 8, 3, 2), nn.Conv2d(11, 2, 3, padding=1), nn.Conv2d(8, 36, 1)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        a, b = self.features(first), self.features(second)
        n, c, h, w = a.shape
        correlation = torch.matmul(a.flatten(2).mT, b.flatten(2)).view(n * h * w, 1, h, w) / math.sqrt(c)
        rows, columns = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
        at = torch.stack((columns, rows), -1).to(a.dtype).expand(n, h, w, 2)
        offsets = torch.stack([torch.arange(-1, 2), torch.zeros(3, dtype=torch.int64)], -1).to(a.dtype)
        points = at.reshape(-1, 1, 1, 2) + offsets.view(1, 1, 3, 2)
        points = torch.stack((2 * points[..., 0] / (w - 1) - 1, 2 * points[..., 1] / (h - 1) - 1), -1)
        found = F.grid_sample(correlation, points, align_corners=True).view(n, h, w, 3).permute(0, 3, 1, 2)
        flow = self.update(torch.cat([a, found], 1))
        weights = self.mask(a).view(n, 1, 9, 2, 2, h, w).softmax(2)
        fine = F.unfold(2 * flow, (3, 3), padding=1).view(n, 2, 9, 1, 1, h, w)
        return (weights * fine).sum(2).permute(0, 1, 4, 2, 5, 3).reshape(n, 2, 2 * h, 2 * w)


class SpatialTransformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.locate = nn.Sequential(nn.Conv2d(1, 4, 5, 2), nn.ReLU(), nn.AdaptiveMaxPool2d(3), nn.Flatten())
        self.theta = nn.Linear(36, 6)

    def forward(self, x: Tensor) -> Tensor:
        theta = 0.1 * self.theta(self.locate(x)).view(-1, 2, 3) + torch.eye(2, 3)
        grid = F.affine_grid(theta, list(x.size()), align_corners=False)
        return F.grid_sample(x, grid, mode="bicubic", padding_mode="reflection", align_corners=False)


def super_resolution() -> nn.Module:
    body = [Residual(nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.PReLU(8), nn.Conv2d(8, 8, 3, padding=1)))]
    return nn.Sequential(
        nn.ReflectionPad2d(1), nn.Conv2d(3, 8, 3), *body, nn.Conv2d(8, 12, 3, padding=1), nn.PixelShuffle(2), nn.Tanh()
    )


class Video(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv3d(3, 6, (3, 3, 3), (1, 2, 2), 1), nn.BatchNorm3d(6), nn.ReLU())
        self.split = nn.Sequential(nn.Conv3d(6, 6, (1, 3, 3), padding=(0, 1, 1), groups=3), nn.Conv3d(6, 6, (3, 1, 1)))
        self.up = nn.ConvTranspose3d(6, 4, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool3d(self.split(self.stem(x)), (1, 2, 2))
        x = F.interpolate(self.up(x), scale_factor=(1, 1.5, 1.5), mode="trilinear", align_corners=False)
        return torch.cat([F.adaptive_avg_pool3d(x, (2, 3, 1)).flatten(1), x.amax((2, 3, 4))], 1)


class StyledConvolution(nn.Module):
    """StyleGAN2: every sample has weights of its own, as groups of one convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.affine = nn.Parameter(torch.randn(1, 6, 4, 3, 3)), nn.Linear(5, 4)

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        b, c, h, w = x.shape
        weight = self.weight * self.affine(style).view(b, 1, c, 1, 1)
        weight = weight * torch.rsqrt(weight.pow(2).sum([2, 3, 4]) + 1e-8).view(b, 6, 1, 1, 1)
        x = x.reshape(1, b * c, h, w)
        return F.conv2d(x, weight.view(b * 6, c, 3, 3), padding=1, groups=b).view(b, 6, h, w)


# Sequences


class Tagger(nn.Module):
    """A convolution over characters, and a bidirectional LSTM of two layers over words."""

    def __init__(self) -> None:
        super().__init__()
        self.letters, self.words = nn.Embedding(20, 4, padding_idx=0), nn.Embedding(30, 6, padding_idx=0)
        self.convolution = nn.Conv1d(4, 6, 3, padding=1)
        self.lstm = nn.LSTM(12, 5, num_layers=2, bidirectional=True, batch_first=True, dropout=0.3)
        self.tags = nn.Linear(10, 7)

    def forward(self, words: Tensor, letters: Tensor) -> Tensor:
        b, t, length = letters.shape
        y = self.convolution(self.letters(letters.view(b * t, length)).mT).amax(-1).view(b, t, -1)
        return self.tags(self.lstm(torch.cat([self.words(words), y], -1))[0]).log_softmax(-1)


class Translator(nn.Module):
    """A GRU reads, another writes cell by cell with Bahdanau's attention."""

    def __init__(self) -> None:
        super().__init__()
        self.source, self.target = nn.Embedding(20, 6), nn.Embedding(20, 6)
        self.encoder, self.cell = nn.GRU(6, 8, batch_first=True), nn.GRUCell(14, 8)
        self.keys, self.query, self.energy = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 1)
        self.out = nn.Linear(8, 20)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        memory, state = self.encoder(self.source(source))
        state, keys, steps = state[-1], self.keys(memory), []
        hidden = (source == 0).unsqueeze(-1)
        for step in self.target(target).unbind(1):
            energy = self.energy(torch.tanh(keys + self.query(state)[:, None])).masked_fill(hidden, -1e4)
            context = (energy.softmax(1) * memory).sum(1)
            state = self.cell(torch.cat([step, context], -1), state)
            steps.append(self.out(state))
        return torch.stack(steps, 1)


class Seq2Seq(nn.Module):
    """nn.Transformer with a causal mask, a padding mask and sinusoidal positions."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 8)
        self.model = nn.Transformer(8, 2, 2, 2, 16, dropout=0.1, batch_first=True, activation="gelu")
        self.model.encoder.use_nested_tensor = False  # prototypes, of which torch warns
        self.out = nn.Linear(8, 20)

    def positions(self, x: Tensor) -> Tensor:
        at = torch.arange(x.shape[1], dtype=x.dtype)[:, None]
        rates = torch.exp(torch.arange(0, 8, 2, dtype=x.dtype) * (-math.log(10000.0) / 8))
        return x + torch.stack([torch.sin(at * rates), torch.cos(at * rates)], -1).flatten(1)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        causal = nn.Transformer.generate_square_subsequent_mask(target.shape[1], dtype=self.out.weight.dtype)
        padded = torch.zeros_like(source, dtype=self.out.weight.dtype).masked_fill(source == 0, -math.inf)
        y = self.model(
            self.positions(self.embedding(source)),
            self.positions(self.embedding(target)),
            tgt_mask=causal,
            src_is_causal=False,
            tgt_is_causal=True,
            src_key_padding_mask=padded,
            memory_key_padding_mask=padded,
        )
        return self.out(y)


class Encoder(nn.Module):
    """nn.TransformerEncoder, whose fast path in evaluation must not be what is captured."""

    def __init__(self, norm_first: bool) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=norm_first)
        self.layers = nn.TransformerEncoder(layer, 2, nn.LayerNorm(8), enable_nested_tensor=False)

    def forward(self, x: Tensor, padded: Tensor) -> Tensor:
        return self.layers(x, src_key_padding_mask=padded)


class CrossAttention(nn.Module):
    """nn.MultiheadAttention with weights asked for, other widths of keys and values, and a bool mask."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, kdim=5, vdim=6, add_bias_kv=True)

    def forward(self, query: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        mask = torch.ones(query.shape[0], keys.shape[0]).tril() == 0
        return self.attention(query, keys, values, attn_mask=mask, average_attn_weights=False)


class WaveNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        norm = nn.utils.parametrizations.weight_norm
        self.start = nn.Conv1d(1, 6, 1)
        self.gates = nn.ModuleList(norm(nn.Conv1d(6, 12, 2, dilation=2**i)) for i in range(3))
        self.skips = nn.ModuleList(norm(nn.Conv1d(6, 10, 1)) for _ in range(3))
        self.rest, self.end = nn.ModuleList(nn.Conv1d(6, 6, 1) for _ in range(3)), nn.Conv1d(10, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x, total = self.start(x), 0
        for i, (gate, skip, rest) in enumerate(zip(self.gates, self.skips, self.rest, strict=True)):
            value, control = gate(F.pad(x, (2**i, 0))).chunk(2, 1)
            y = torch.tanh(value) * torch.sigmoid(control)
            total, x = total + skip(y), x + rest(y)
        return self.end(F.relu(total))


class Spectrogram(nn.Module):
    """Short-time spectra, mel bands and decibels with a floor under the loudest, before a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("window", torch.hann_window(32), persistent=False)
        self.register_buffer("bands", torch.rand(17, 8, generator=torch.Generator().manual_seed(0)))
        self.body = nn.Sequential(nn.InstanceNorm1d(8), nn.Conv1d(8, 6, 3, padding=1), nn.GELU())

    def forward(self, x: Tensor) -> Tensor:
        spectra = torch.stft(x, 32, 8, window=self.window, center=True, return_complex=True)
        mel = 10 * torch.log10((spectra.abs() ** 2).mT @ self.bands + 1e-6)
        mel = torch.maximum(mel, mel.amax((1, 2), keepdim=True) - 40)
        return self.body(mel.mT)


class Vocoder(nn.Module):
    """A filter in the frequency domain, and the wave back out of it."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("window", torch.hann_window(16), persistent=False)
        self.gain = nn.Parameter(torch.randn(9, 1))

    def forward(self, x: Tensor) -> Tensor:
        spectra = torch.stft(x, 16, 4, window=self.window, return_complex=True)
        loud, phase = spectra.abs() * self.gain.sigmoid(), spectra.angle()
        return torch.istft(torch.polar(loud, phase), 16, 4, window=self.window)


class SelectiveScan(nn.Module):
    """A state-space model's recurrence, step by step."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.randn(6, 4))
        self.step, self.b, self.c, self.d = (
            nn.Linear(6, 6),
            nn.Linear(6, 4),
            nn.Linear(6, 4),
            nn.Parameter(torch.randn(6)),
        )

    def forward(self, x: Tensor) -> Tensor:
        step = F.softplus(self.step(x))
        decay = torch.exp(torch.einsum("bld,dn->bldn", step, -torch.exp(self.a)))
        driven = torch.einsum("bld,bln,bld->bldn", step, self.b(x), x)
        state, outputs = x.new_zeros(x.shape[0], 6, 4), []
        for i in range(x.shape[1]):
            state = decay[:, i] * state + driven[:, i]
            outputs.append(torch.einsum("bdn,bn->bd", state, self.c(x)[:, i]))
        return torch.stack(outputs, 1) + x * self.d


class LinearAttention(nn.Module):
    """Causal, by running sums."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(6, 18)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        q, k = F.elu(q) + 1, F.elu(k) + 1
        memory = torch.cumsum(torch.einsum("bti,btj->btij", k, v), 1)
        return torch.einsum("bti,btij->btj", q, memory) / (q * k.cumsum(1)).sum(-1, keepdim=True)


# Other structures


class Experts(nn.Module):
    """The two best of four experts for each token, their outputs added where the token was."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(6, 4, bias=False)
        self.up, self.down = nn.Parameter(torch.randn(4, 6, 10) * 0.4), nn.Parameter(torch.randn(4, 10, 6) * 0.4)

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(0, -2)
        weights, chosen = torch.topk(self.router(flat).softmax(-1), 2)
        weights = weights / weights.sum(-1, keepdim=True)
        gates = torch.zeros(flat.shape[0], 4, dtype=x.dtype).scatter_(1, chosen, weights)
        hidden = F.silu(torch.einsum("ti,eio->teo", flat, self.up))
        return torch.einsum("teo,eoi,te->ti", hidden, self.down, gates).view_as(x)


class GraphNetwork(nn.Module):
    """Messages along edges, summed at their ends, averaged over neighbours, the largest kept."""

    def __init__(self) -> None:
        super().__init__()
        self.message, self.update = nn.Linear(9, 6), nn.Linear(18, 4)

    def forward(self, x: Tensor, edges: Tensor, weights: Tensor) -> Tensor:
        source, target = edges
        m = F.relu(self.message(torch.cat([x[source], x[target], weights[:, None]], -1)))
        total = x.new_zeros(x.shape[0], 6).index_add(0, target, m)
        where = target[:, None].expand_as(m)
        mean = torch.zeros_like(total).scatter_reduce(0, where, m, "mean", include_self=False)
        top = torch.zeros_like(total).scatter_reduce(0, where, m, "amax", include_self=False)
        return self.update(torch.cat([total, mean, top], -1))


class PointNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.turn = nn.Sequential(
            nn.Conv1d(3, 8, 1), nn.BatchNorm1d(8), nn.ReLU(), nn.AdaptiveMaxPool1d(1), nn.Flatten()
        )
        self.matrix, self.features = nn.Linear(8, 9), nn.Sequential(nn.Conv1d(3, 8, 1), nn.GroupNorm(2, 8), nn.ELU())

    def forward(self, points: Tensor) -> Tensor:
        matrix = self.matrix(self.turn(points)).view(-1, 3, 3) + torch.eye(3).unsqueeze(0)
        turned = torch.bmm(points.transpose(2, 1), matrix)
        near = torch.cdist(turned, turned).topk(3, largest=False)[0].mean(-1)
        return torch.cat([self.features(turned.mT).max(2)[0], near.std(1, keepdim=True)], 1)


class Autoencoder(nn.Module):
    """A variational one, whose noise is handed in."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(1, 4, 4, 2, 1), nn.LeakyReLU(0.1), nn.Flatten(), nn.Linear(64, 8))
        self.decoder = nn.Sequential(nn.Linear(4, 64), nn.Unflatten(1, (4, 4, 4)), nn.ConvTranspose2d(4, 1, 4, 2, 1))

    def forward(self, x: Tensor, noise: Tensor) -> dict[str, Tensor]:
        mean, log_var = self.encoder(x).chunk(2, 1)
        image = torch.sigmoid(self.decoder(mean + torch.exp(0.5 * log_var) * noise))
        kl = -0.5 * torch.sum(1 + log_var - mean**2 - log_var.exp(), -1)
        return {"image": image, "loss": F.binary_cross_entropy(image, x.sigmoid()) + kl.mean()}


class Quantizer(nn.Module):
    """The nearest of a book of codes, with the gradient passed through."""

    def __init__(self) -> None:
        super().__init__()
        self.codes = nn.Embedding(16, 6)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        far = x.pow(2).sum(-1, keepdim=True) - 2 * x @ self.codes.weight.T + self.codes.weight.pow(2).sum(-1)
        index = far.argmin(-1)
        return x + (self.codes(index) - x).detach(), index


class Recommender(nn.Module):
    """Bags of ids, products of all pairs of fields, and a gaussian process's posterior mean."""

    def __init__(self) -> None:
        super().__init__()
        self.bags, self.dense = nn.EmbeddingBag(30, 4, mode="mean"), nn.Linear(3, 4)
        self.anchors, self.values = nn.Parameter(torch.randn(6, 4)), nn.Parameter(torch.randn(6))

    def forward(self, ids: Tensor, x: Tensor) -> Tensor:
        fields = torch.stack([self.bags(ids), torch.tanh(self.dense(x))], 1)
        pairs = torch.bmm(fields, fields.mT)
        upper = torch.triu_indices(2, 2)
        kernel = torch.exp(-(torch.cdist(self.anchors, self.anchors) ** 2)) + torch.eye(6)
        weights = torch.linalg.solve(kernel, self.values)
        near = torch.exp(-(torch.cdist(fields[:, 1], self.anchors) ** 2))
        return torch.cat([pairs[:, upper[0], upper[1]], (near @ weights)[:, None]], 1)


class Visible(nn.Module):
    """Points that a mask leaves, as many as there are: each looks at all of them."""

    def __init__(self) -> None:
        super().__init__()
        self.features, self.out = nn.Linear(3, 6), nn.Linear(6, 2)

    def forward(self, points: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
        x = torch.tanh(self.features(points[seen]))
        return self.out((x @ x.T).softmax(-1) @ x), seen.nonzero()


def ids(low: int, high: int, *shape: int) -> np.ndarray:
    return np.random.default_rng([low, high, *shape]).integers(low, high, shape)


def graph_of(nodes: int, edges: int) -> Arrays:
    return {"x": floats(nodes, 4), "edges": ids(0, nodes, 2, edges), "weights": floats(edges)}


def padding(rows: int, length: int) -> np.ndarray:
    return np.arange(length)[None] >= np.maximum(length - np.arange(rows), 2)[:, None]


def image(name: str = "x", channels: int = 3) -> Callable[..., Arrays]:
    return lambda b=2, h=16, w=16: {name: floats(b, channels, h, w)}


IMAGES = [(2, 16, 16), (3, 16, 16), (1, 24, 20)]
# How to make a network, its inputs by sizes, and sizes: of the example first.
NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[..., Arrays], list[tuple[int, ...]]]] = {
    "conv mixer": (conv_mixer, image("input"), IMAGES),
    "efficient net": (efficient_net, image("input"), IMAGES),
    "mobile net v3": (mobile_net_v3, image("input"), IMAGES),
    "vision transformer": (VisionTransformer, image(), IMAGES),
    "shifted windows": (ShiftedWindows, image(), [(2, 16, 16), (3, 16, 16)]),
    "convnext": (ConvNext, image(), IMAGES),
    "mlp mixer": (mlp_mixer, image("input"), [(2, 16, 16), (5, 16, 16)]),
    "fourier": (Fourier, lambda b, t: {"x": floats(b, t, 3)}, [(2, 12), (3, 15)]),
    "vgg": (vgg, image("input"), [(2, 24, 24), (3, 24, 36)]),
    "dense net": (DenseNet, image(), IMAGES),
    "inception": (Inception, image(), [*IMAGES, (2, 17, 19)]),
    "shuffle net": (ShuffleNet, image(), IMAGES),
    "deeplab": (DeepLab, image(), [*IMAGES, (2, 17, 19)]),
    "u-net": (UNet, image(), [(2, 16, 18), (1, 17, 19)]),
    "pyramid detector": (PyramidDetector, image(), [(2, 16, 24), (3, 20, 21)]),
    "optical flow": (
        OpticalFlow,
        lambda b, h, w: {"first": floats(b, 3, h, w), "second": floats(b, 3, h, w, seed=1)},
        [(2, 12, 16), (3, 14, 10)],
    ),
    "spatial transformer": (SpatialTransformer, image(channels=1), [(2, 17, 19), (3, 17, 19)]),
    "super resolution": (super_resolution, image("input"), [(2, 8, 9), (3, 5, 7)]),
    "video": (Video, lambda b, t, h: {"x": floats(b, 3, t, h, h)}, [(2, 6, 16), (3, 7, 20)]),
    "styled convolution": (
        StyledConvolution,
        lambda b, h, w: {"x": floats(b, 4, h, w), "style": floats(b, 5)},
        [(2, 6, 7), (2, 9, 5)],
    ),
    "tagger": (Tagger, lambda b: {"words": ids(0, 30, b, 4), "letters": ids(0, 20, b, 4, 6)}, [(2,), (5,)]),
    "translator": (Translator, lambda b: {"source": ids(0, 20, b, 5), "target": ids(1, 20, b, 4)}, [(2,), (3,)]),
    "transformer": (
        Seq2Seq,
        lambda b, s, t: {"source": np.maximum(ids(0, 20, b, s), np.arange(s) < 2), "target": ids(1, 20, b, t)},
        [(2, 7, 5), (3, 9, 8)],
    ),
    "encoder, norm last": (
        functools.partial(Encoder, False),
        lambda b, t: {"x": floats(b, t, 8), "padded": padding(b, t)},
        [(2, 5), (4, 9)],
    ),
    "encoder, norm first": (
        functools.partial(Encoder, True),
        lambda b, t: {"x": floats(b, t, 8), "padded": padding(b, t)},
        [(2, 5), (4, 9)],
    ),
    "cross attention": (
        CrossAttention,
        lambda b, t, s: {"query": floats(t, b, 8), "keys": floats(s, b, 5), "values": floats(s, b, 6)},
        [(2, 5, 7), (3, 4, 6)],
    ),
    "wavenet": (WaveNet, lambda b, t: {"x": floats(b, 1, t)}, [(2, 20), (3, 33)]),
    "spectrogram": (Spectrogram, lambda b, t: {"x": floats(b, t)}, [(2, 160), (3, 160)]),
    "vocoder": (Vocoder, lambda b, t: {"x": floats(b, t)}, [(2, 64), (3, 64)]),
    "selective scan": (SelectiveScan, lambda b: {"x": floats(b, 6, 6)}, [(2,), (5,)]),
    "linear attention": (LinearAttention, lambda b, t: {"x": floats(b, t, 6)}, [(2, 5), (3, 9)]),
    "experts": (Experts, lambda b, t: {"x": floats(b, t, 6)}, [(2, 5), (3, 7)]),
    "graph network": (GraphNetwork, graph_of, [(5, 12), (8, 17)]),
    "point net": (PointNet, lambda b, n: {"points": floats(b, 3, n)}, [(2, 12), (3, 20)]),
    "autoencoder": (Autoencoder, lambda b: {"x": floats(b, 1, 8, 8), "noise": floats(b, 4)}, [(2,), (5,)]),
    "quantizer": (Quantizer, lambda b, t: {"x": floats(b, t, 6)}, [(2, 5), (3, 8)]),
    "recommender": (Recommender, lambda b: {"ids": ids(0, 30, b, 3), "x": floats(b, 3)}, [(2,), (5,)]),
    "visible": (Visible, lambda b, n: {"points": floats(b, n, 3), "seen": ids(0, 3, b, n) > 0}, [(2, 6), (3, 9)]),
}

by_network = pytest.mark.parametrize(
    "network", [pytest.param(name, marks=pytest.mark.xdist_group(name)) for name in NETWORKS]
)


@functools.lru_cache(maxsize=4)
def captured(network: str) -> tuple[nn.Module, Package]:
    build, inputs, sizes = NETWORKS[network]
    module = seeded(build)
    return module, zoo.capture(module, **inputs(*sizes[0]))


@functools.lru_cache(maxsize=4)
def references(network: str) -> list[tuple[Arrays, Arrays, dict[str, float]]]:
    """Per size: inputs, outputs in float64, and how far torch's own float32 is off."""
    module, (_, inputs, sizes) = captured(network)[0], NETWORKS[network]
    found = []
    for size in sizes:
        given = inputs(*size)
        exact, single = expected(module, given), expected(module, given, exact=False)
        found.append((given, exact, {name: error(single[name], exact[name]) for name in exact}))
    return found


def error(got: np.ndarray, reference: np.ndarray) -> float:
    return float(np.abs(got.astype(np.float64) - reference).max() / np.abs(reference).max())


@by_network
@pytest.mark.parametrize("backend", BACKENDS)
def test_outputs_are_those_of_the_network(network: str, backend: str) -> None:
    """At the size of the example and at others."""
    model = captured(network)[1].load(backend)
    for given, exact, own in references(network):
        got = model(**given)
        assert got.keys() == exact.keys()
        for name, reference in exact.items():
            found = to_numpy(got[name])
            assert found.shape == reference.shape, name
            if reference.dtype.kind != "f":
                assert np.array_equal(found, reference), name
                continue
            limit = tolerance(backend, "float32", own[name])
            assert error(found, reference) <= limit, (
                f"{name}: {error(found, reference):.2g}, torch's own {own[name]:.2g}"
            )


@by_network
def test_outputs_say_something(network: str) -> None:
    """Nearly constant outputs would agree with anything."""
    for _, exact, _ in references(network):
        assert any(array.std() > SMALLEST_STD for array in exact.values())


GRADIENTS = (
    *("shifted windows", "u-net", "tagger", "transformer", "experts", "graph network", "fourier", "recommender"),
    "visible",  # JAX compiles it in parts
)


@pytest.mark.parametrize("network", [pytest.param(name, marks=pytest.mark.xdist_group(name)) for name in GRADIENTS])
@pytest.mark.parametrize("backend", ["jax", "tensorflow"])
def test_gradients_are_those_of_the_network(network: str, backend: str) -> None:
    """Of the mean square of the first output, for every parameter, against float64."""
    module, package = captured(network)
    given, exact, _ = references(network)[-1]
    first = next(iter(exact))
    model = package.load(backend)
    if backend == "jax":
        import jax

        trained = {name: array for name, array in model.params.items() if package.graph.params[name].trainable}
        others = {name: array for name, array in model.params.items() if name not in trained}
        gradients = jax.grad(lambda p: (model.apply({**others, **p}, **given)[first] ** 2).mean())(trained)
    else:
        import tensorflow as tf

        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(model(**given)[first] ** 2)
        trained = {name: variable for name, variable in model.params.items() if variable.trainable}
        gradients = dict(zip(trained, tape.gradient(loss, list(trained.values())), strict=True))
    wide = copy.deepcopy(module).double()
    results = wide(
        **{n: torch.from_numpy(x).double() if x.dtype.kind == "f" else torch.from_numpy(x) for n, x in given.items()}
    )
    while not isinstance(results, Tensor):
        results = next(iter(results.values())) if isinstance(results, dict) else results[0]
    (results**2).mean().backward()
    wanted = {name: p.grad.numpy() for name, p in wide.named_parameters() if p.grad is not None}
    largest = max(np.abs(gradient).max() for gradient in wanted.values())
    for name, reference in wanted.items():
        off = np.abs(
            np.asarray(tf.convert_to_tensor(gradients[name]) if backend == "tensorflow" else gradients[name])
            - reference
        ).max()
        assert off <= max(GRADIENT * np.abs(reference).max(), GRADIENT_FLOOR * largest), f"{name} is off by {off:.2g}"


# What is refused


class Sampled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.randn_like(x)


class Packed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 5, batch_first=True)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        return self.lstm(nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True))[0].data


class Loop(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cond(x.sum() > 0, torch.sin, torch.cos, (x,))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("module", "inputs", "line"),
    [
        (Sampled(), {"x": floats(2, 4)}, "torch.randn_like(x)"),
        (Packed(), {"x": floats(2, 3, 4), "lengths": np.array([3, 2])}, "pack_padded_sequence(x, lengths"),
        (Loop(), {"x": floats(2, 4)}, "torch.cond(x.sum() > 0"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_what_cannot_be_captured_is_said_by_its_line(module: nn.Module, inputs: Arrays, line: str) -> None:
    with pytest.raises(CaptureError) as caught:
        zoo.capture(module, **inputs)
    assert line in str(caught.value) and caught.value.do
