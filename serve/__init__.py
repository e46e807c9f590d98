"""Many streams over one decode step, and the server around them."""
