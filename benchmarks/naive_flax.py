"""The same networks as a first attempt in Flax would write them, as a peer for timing."""

import flax.linen as nn
import jax
import jax.numpy as jnp


class NaiveResNet(nn.Module):
    """Basic blocks with zero-padded shortcuts (CIFAR), or bottleneck blocks with projections (ImageNet, v1.5)."""

    stage_sizes: tuple[int, ...]
    width: int
    num_classes: int
    imagenet: bool

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        def norm() -> nn.Module:
            return nn.BatchNorm(use_running_average=not train, momentum=0.9)

        def conv(filters: int, size: int, strides: int = 1) -> nn.Module:
            return nn.Conv(filters, (size, size), strides, padding=size // 2, use_bias=False)

        x = nn.relu(norm()(conv(self.width, 7 if self.imagenet else 3, 2 if self.imagenet else 1)(x)))
        if self.imagenet:
            x = nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        for stage, blocks in enumerate(self.stage_sizes):
            for block in range(blocks):
                strides = 2 if stage and not block else 1
                filters = self.width * 2**stage
                if self.imagenet:
                    y = nn.relu(norm()(conv(filters, 1)(x)))
                    y = nn.relu(norm()(conv(filters, 3, strides)(y)))
                    y = norm()(conv(4 * filters, 1)(y))
                    if not block:
                        x = norm()(conv(4 * filters, 1, strides)(x))
                else:
                    y = nn.relu(norm()(conv(filters, 3, strides)(x)))
                    y = norm()(conv(filters, 3)(y))
                    extra = filters - x.shape[-1]
                    if extra:
                        x = jnp.pad(x[:, ::2, ::2], ((0, 0), (0, 0), (0, 0), (extra // 2, extra - extra // 2)))
                x = nn.relu(x + y)
        return nn.Dense(self.num_classes)(x.mean(axis=(1, 2)))
