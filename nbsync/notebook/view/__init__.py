"""The live view: a snapshot of the world becomes HTML, and the HTML a display or a widget in a cell."""
