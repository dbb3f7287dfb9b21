"""Guards, one file each; importing this registers them all."""
