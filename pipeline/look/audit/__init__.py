"""audit: what a directory is, whether it is whole, and where every number in it comes from. Reads, and changes nothing."""
