"""oneDNN through its public C interface: primitives made once for a shape and run with two microseconds of overhead."""
