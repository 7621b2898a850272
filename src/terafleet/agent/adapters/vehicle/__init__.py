"""Where readings come from: a timetable; a car's own bus later."""
