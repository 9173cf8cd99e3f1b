"""Faster R-CNN and the operations it is made of; JAX, Flax and NumPy are all it needs."""
