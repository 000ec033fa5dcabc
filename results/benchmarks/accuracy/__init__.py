"""Programs that measure what is left of accuracy: of errors, of numbers in int8, of dropped tokens, of time."""
