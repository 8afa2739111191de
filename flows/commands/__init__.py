"""The commands of `rollbook`, one file each."""
