"""Chooses the forms of token operators by measurement, and remembers them."""
