"""Spatio-temporal detection on clips: EVAD, its backbone and its head, which students share."""
