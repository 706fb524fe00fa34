"""The network in Loihi 2 arithmetic: 8-bit weights, 24-bit states, integer thresholds."""
