"""Sizes are rounded up to a few buckets, so that new lengths and pictures meet compiled programs."""


def bucket(size: int, minimum: int) -> int:
    """The smallest bucket >= `size` and >= `minimum`: four steps per octave, so at most 25 % is padding."""
    size = max(size, minimum)
    octave = 1 << (size.bit_length() - 1)
    step = max(octave // 4, 1)
    return -(-size // step) * step
