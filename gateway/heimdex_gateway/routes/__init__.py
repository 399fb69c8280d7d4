"""The routes, thin: decode, one call, encode."""
