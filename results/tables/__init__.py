"""Tables and pictures made of what experiments measured."""
