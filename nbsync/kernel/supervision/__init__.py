"""Who is stuck, who failed, what is to be told of it, and how the world becomes whole again."""
