"""Rooms of BabyAI: several coloured objects, of which the mission names one or two."""
