"""What is checked of each kind of artifact: its own rows, and what they say of the artifacts they were made from."""
