"""How well holes are filled, beside what networks must beat: methods, figures, tables."""
