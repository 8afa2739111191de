"""Tools for the hands: look at artifacts, compare them, mend, clean up and sign them."""
