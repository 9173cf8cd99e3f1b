"""A small residual network on the digits of scikit-learn, to see everything work.

Command:   python train.py --config configs/quickstart.py --workdir runs/quickstart
Hardware:  two CPU cores, half a minute, no download
Expected:  at most 3 % test error
"""

from resnet_jax import recipes


def get_config():
    return recipes.digits_quickstart()
