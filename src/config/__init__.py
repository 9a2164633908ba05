"""What can be set: the schema, where it comes from, what is checked."""
