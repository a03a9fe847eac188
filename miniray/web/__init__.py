"""The head over HTTP: health, metrics, and a versioned JSON API. Served when it is asked for."""
