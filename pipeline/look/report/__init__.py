"""Ways to look at a run: a table in the terminal, JSON for programs, one HTML page for people.

Import what you need from its module: only `page` loads matplotlib.
"""
