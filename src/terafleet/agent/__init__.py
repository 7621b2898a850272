"""The vehicle agent: the program in the car."""
