"""Marks what the appliance speaks, signs a statement about it, and examines recordings for both."""
