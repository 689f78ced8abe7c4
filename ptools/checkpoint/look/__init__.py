"""Looking into checkpoints: `describe` one, `diff_checkpoints` of two."""
