"""Every setting of the commands: typed Hydra groups, each field with its meaning and what it allows."""
