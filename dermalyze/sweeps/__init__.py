"""Many runs as one: each in a process of its own under any launcher, and what they say together."""
