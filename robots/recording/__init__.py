"""Records what a server sees and does: journals while it serves, a LeRobot folder afterwards."""
