"""The netlist and its simulation in Lava. Importing this package does not import Lava."""
