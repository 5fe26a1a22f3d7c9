"""The public functions of the ops: argument checks, fake implementations, autograd formulas."""
