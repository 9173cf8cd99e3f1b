"""``python train.py --help`` says what it does; see resnet_jax/programs/train.py."""

from resnet_jax.programs.train import main

if __name__ == "__main__":
    main()
