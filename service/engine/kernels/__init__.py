"""Native kernels: a whole step of the common model in one call. Built with the package; without them torch computes."""
