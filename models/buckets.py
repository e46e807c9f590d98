"""Sizes are rounded up to a few buckets, so that new lengths and pictures meet compiled programs."""


def bucket(size: int, minimum: int, steps: int = 4) -> int:
    """The smallest bucket >= `size` and >= `minimum`: so many steps per octave, by four at most 25 % more."""
    size = max(size, minimum)
    octave = 1 << (size.bit_length() - 1)
    step = max(octave // steps, 1)
    return -(-size // step) * step
