"""init: what a first config needs to know of the user's model and data, and the config itself."""
