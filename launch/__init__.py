"""The only room that starts things: the door, the stages, the report."""
