"""Data from elsewhere, and for elsewhere."""
