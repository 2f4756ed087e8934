"""Which documents are used: what is measured of them, what is left out, what is replaced."""
