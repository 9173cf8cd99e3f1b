"""``python predict.py --help`` says what it does; see resnet_jax/programs/predict.py."""

from resnet_jax.programs.predict import main

if __name__ == "__main__":
    main()
