"""Times a compiled model beside its alternatives: eager, plain exports, the unreduced model."""
