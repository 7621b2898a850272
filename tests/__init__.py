"""The tests; a package, so that a test finds the fakes of its neighbours by one name."""
