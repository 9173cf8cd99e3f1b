"""``python eval.py --help`` says what it does; see resnet_jax/programs/evaluate.py."""

from resnet_jax.programs.evaluate import main

if __name__ == "__main__":
    main()
