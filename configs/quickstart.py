"""A small residual network on the digits of scikit-learn, to see everything work.

Command:   python train.py --config configs/quickstart.py --workdir runs/quickstart
Hardware:  two CPU cores, half a minute, no download
Expected:  at most 3 % test error
"""

from resnet_jax.config import Config, Model
from resnet_jax.data import Resident
from resnet_jax.data.transforms import RandomCrop, Transforms
from resnet_jax.train.optimizers import SGD
from resnet_jax.train.schedules import Cosine


def get_config() -> Config:
    return Config(
        steps=800,
        batch_size=64,
        log_every=50,
        eval_every=200,
        checkpoint_every=200,
        model=Model(name="resnet20", width=8, stage_sizes=(1, 1, 1)),
        data=Resident(name="digits"),
        # Not mirrored: that is another shape. Shifted by more than 2 pixels, digits are cut off.
        transforms=Transforms(random_crop=RandomCrop(pad=2)),
        optimizer=SGD(learning_rate=0.1, momentum=0.9, weight_decay=1e-4),
        schedule=Cosine(),
    )
