"""What measures the energy of the car's computer."""
