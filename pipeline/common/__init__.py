"""What every room uses: errors, the machine, text."""
