"""The commands of the service: they choose implementations and wire them."""
