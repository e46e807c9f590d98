"""Kernels for GPUs, each with a twin in plain JAX: one token of a few rows through a decoder layer."""
