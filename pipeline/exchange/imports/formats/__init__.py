"""One format a file. Each module states its class as FORMAT; a new file here is a new format."""
