"""The program that runs AI models in the car, as a process of its own."""
