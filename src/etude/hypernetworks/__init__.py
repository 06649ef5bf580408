"""Networks that generate the weights of other networks."""
