"""Events: rules over what prediction finds, and where they are reported."""
