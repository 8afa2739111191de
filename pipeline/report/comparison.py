def write_comparison(found, store, path):
    return path
