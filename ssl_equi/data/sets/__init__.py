"""The data sets that are known by name: one file each, or one for those that are opened alike."""
