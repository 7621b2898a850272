"""HTTP for customers, operators and cars; stateless but for catalogue and objects."""
