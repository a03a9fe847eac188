"""Distributed GAN training and image generation: the job this engine is shown with.

Two commands, both with `--help`:

    python -m ml.gan.train      train a DCGAN in one process, or in N workers on a cluster
    python -m ml.gan.generate   draw images with a trained generator

Importing this package imports neither torch nor miniray.
"""
