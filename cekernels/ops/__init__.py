"""Public functions of the ops, with argument checks, fake implementations and derivatives."""
