"""Tasks that are asked of cached features or of further images, one file each."""
